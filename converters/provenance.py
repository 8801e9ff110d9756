"""What a conversion leaves in writing: beside each file that it puts into the models folder, which checkpoint it is of.

    notes = SourceNotes(source, folder, plain=True)     # before anything is read: what changes meanwhile is noticed
    notes.write({folder / "toy-Q8_0.gguf": "Q8_0"})     # when the files stand

In other folders nothing is written: what lies there is the user's, who moves and deletes it without knowing of notes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from llamalite.converters.notices import warn
from llamalite.files import source_note
from llamalite.files.source_note import SourceNote
from llamalite.files.user_folders import is_models_folder


class SourceNotes:
    """The notes of one conversion of `source` into `folder`; `plain` is that of `SourceNote`."""

    def __init__(self, source: Path, folder: Path, *, plain: bool) -> None:
        self._is_models_folder = is_models_folder(folder)
        self._note: SourceNote | None = None
        if self._is_models_folder and source.is_dir():
            with contextlib.suppress(OSError):  # opening the checkpoint says it better
                self._note = SourceNote.of(source, "", plain=plain)

    def write(self, models: Mapping[Path, str], replaced: Iterable[Path] = ()) -> None:
        """Write the note of each of `models`, type by path, and remove those of the files `replaced`.

        A GGUF source has no note, and that of a file it replaces goes. What cannot be written is told, as the models
        stand.
        """
        if not self._is_models_folder:
            return
        try:
            for model, qtype in models.items():
                if self._note is not None:
                    replace(self._note, qtype=qtype).write(model)
            for model in (*replaced, *(models if self._note is None else ())):
                source_note.path_of(model).unlink(missing_ok=True)
        except OSError as error:
            warn("the models stand, but the note of what they were made of cannot be written: %s", error)
