"""The note beside a converted model: ``NAME.gguf.source`` says which checkpoint ``NAME.gguf`` was made from.

    note = SourceNote.of(folder, "Q4_K_M", plain=True)    # before the conversion, to notice changes during it
    note.write(model)
    read_current(model).changed_files(SourceNote.of(folder, "Q4_K_M", plain=True))    # []: nothing has changed

Only `llamalite.convert` writes notes: one for each file that it puts into the models folder. A note is JSON: the
checkpoint's folder, the type, and the size and modification time of every file that a conversion reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from llamalite.files.replacing import replacing

_SUFFIXES_READ = {".safetensors", ".bin", ".pth", ".json", ".model", ".jinja"}  # of files that a conversion reads


@dataclass(frozen=True)
class SourceNote:
    """What a model was made from.

    - `folder`: the checkpoint's folder, an absolute path without links.
    - `files`: [size, modification time in ns] of the checkpoint's files, by name.
    - `plain`: no option but the type was given, so that the model may be converted again without asking.
    - `model_stamp`: [size, modification time in ns] of the model itself; None until the note is written.
    """

    folder: str
    qtype: str
    files: dict[str, list[int]]
    plain: bool
    model_stamp: list[int] | None = None

    @classmethod
    def of(cls, folder: Path, qtype: str, *, plain: bool) -> SourceNote:
        """Return the note for the checkpoint in `folder` as it is now."""
        paths = [path for path in folder.iterdir() if path.suffix in _SUFFIXES_READ or path.name == "README.md"]
        paths += folder.glob("additional_chat_templates/*.jinja")
        # A broken link is skipped; a conversion that needs it reports it.
        files = {path.relative_to(folder).as_posix(): _stamp(path) for path in sorted(paths) if path.is_file()}
        return cls(absolute(folder), qtype, files, plain)

    def write(self, model: Path) -> None:
        """Write the note beside `model`."""
        facts = {"made": _stamp(model), "plain": self.plain, "qtype": self.qtype, "folder": self.folder}
        with replacing(path_of(model)) as part:
            part.write_text(json.dumps(facts | {"files": self.files}, indent=1) + "\n", encoding="utf-8")

    def changed_files(self, now: SourceNote) -> list[str]:
        """Return the names of the files that were changed, added or removed between this note and `now`."""
        names = self.files.keys() | now.files.keys()
        return sorted(name for name in names if self.files.get(name) != now.files.get(name))


def path_of(model: Path) -> Path:
    """Return the path of the note of `model`; for a split model, `model` is its first file.

    >>> path_of(Path("models/demo-Q4_K_M.gguf")).name
    'demo-Q4_K_M.gguf.source'
    """
    return model.with_name(f"{model.name}.source")


def read(model: Path) -> SourceNote | None:
    """Return the note beside `model`, even if `model` has changed since; None if there is no readable one."""
    try:
        facts = json.loads(path_of(model).read_text(encoding="utf-8"))
        files = {str(name): list(stamp) for name, stamp in facts["files"].items()}
        return SourceNote(str(facts["folder"]), str(facts["qtype"]), files, facts["plain"] is True, list(facts["made"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # missing or damaged
        return None


def read_current(model: Path) -> SourceNote | None:
    """Return the note beside `model` if `model` is still the file that the note was written for."""
    note = read(model)
    return note if note and model.is_file() and note.model_stamp == _stamp(model) else None


def absolute(path: Path) -> str:
    """Return `path` as it is written in a note: absolute, and without links."""
    return str(path.resolve())


def _stamp(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]
