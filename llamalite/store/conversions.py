"""Converts a checkpoint once into the models folder, and again when it changes; never replaces another model's file.

    converted(Path("TinyLlama-1.1B"), "Q4_K_M")        .../models/TinyLlama-1.1B-Q4_K_M.gguf

The note beside a file (`llamalite.files.source_note`) says which checkpoint it was made from. The file is used as it is
until that changes. A file made with further options, or from another folder of the same name, is never replaced.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from llamalite.errors import LlamaliteError
from llamalite.files import source_note
from llamalite.files.source_note import SourceNote
from llamalite.quant_types import file_type
from llamalite.store import names
from llamalite.store.hub import Announce

if TYPE_CHECKING:
    from llamalite.converters.pipeline import Progress


def converted(folder: Path, qtype: str, *, announce: Announce | None = None, progress: Progress | None = None) -> Path:
    """Return the up-to-date file of type `qtype` made from the checkpoint in `folder`; convert it now if need be.

    Raises ``LlamaliteError`` if its possible names are taken by other models, and what `llamalite.convert` raises.
    """
    from llamalite.converters.checkpoints import model_name

    name, qtype = model_name(folder), file_type(qtype).name
    new_note = SourceNote.of(folder, qtype, plain=True)
    suffix = f"{zlib.crc32(new_note.folder.encode()):08x}"[:6]  # for a second name, if another model has the plain one
    for out in (names.default_output(name, qtype), names.default_output(f"{name}-{suffix}", qtype)):
        if not out.exists():
            return convert_to(out, folder, qtype, str(folder), announce=announce, progress=progress)
        old_note = source_note.read_current(out)
        if old_note is None or (old_note.folder, old_note.qtype) != (new_note.folder, new_note.qtype):
            continue
        changed = old_note.changed_files(new_note)
        if not changed:
            return out
        if old_note.plain:
            changes = changed[0] + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
            description = f"{folder}, which has changed ({changes}),"
            return convert_to(out, folder, qtype, description, announce=announce, progress=progress)
    command = f"llamalite convert -o FILE.gguf {names.quoted(str(folder))}"
    raise LlamaliteError(f"{out} exists and was not made from {folder}: name another file, {command}")


def convert_to(
    out: Path,
    folder: Path,
    qtype: str,
    description: str,
    *,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> Path:
    """Convert the checkpoint in `folder`, announced as `description`, to `out` in the models folder, and return `out`.

    If that fails, the old file and its note remain.
    """
    from llamalite.converters import convert

    if announce is not None:
        announce(f"converting {description} to {qtype}, once: {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    convert(folder, out, qtype=qtype, force=True, progress=progress)
    return out
