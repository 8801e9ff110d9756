"""Notes beside the files that a conversion puts into the models folder: which checkpoint each was made from.

    notes = SourceNotes(source, folder, plain=True)     # before anything is read, so that later changes are noticed
    notes.write({folder / "toy-Q8_0.gguf": "Q8_0"})     # when the files are complete

In other folders no notes are written: users move and delete files there without knowing about notes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from llamalite.converters.warning_log import warn
from llamalite.files import source_note
from llamalite.files.source_note import SourceNote
from llamalite.files.user_folders import is_models_folder


class SourceNotes:
    """The notes of one conversion of `source` into `folder`; `plain` as in `llamalite.files.source_note.SourceNote`."""

    def __init__(self, source: Path, folder: Path, *, plain: bool) -> None:
        self._is_models_folder = is_models_folder(folder)
        self._note: SourceNote | None = None
        if self._is_models_folder and source.is_dir():
            with contextlib.suppress(OSError):  # opening the checkpoint gives a better error
                self._note = SourceNote.of(source, "", plain=plain)

    def write(self, models: Mapping[Path, str], replaced: Iterable[Path] = ()) -> None:
        """Write a note for each of `models` (type by path), and remove the notes of the files `replaced`.

        A file made from a GGUF source has no note, and the note of the file it replaced is removed. If a note cannot be
        written, that is only a warning, as the models are complete.
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
            warn("the models are complete, but the note of their source cannot be written: %s", error)
