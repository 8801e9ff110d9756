"""The files of a checkpoint's folder, and where the links among them may lead.

A folder that was downloaded may hold links as well as files. One that leads out of the folder would have the converter
read what its maker chose, so it is refused, but for the one place where links belong: in Hugging Face's cache a file
``models--org--name/snapshots/REVISION/config.json`` is a link into ``models--org--name/blobs``.
"""

from __future__ import annotations

from pathlib import Path

from llamalite.converters.checkpoints.interface import SourceFile
from llamalite.errors import CheckpointError

_LFS_POINTER = b"version https://git-lfs"


def member(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in `folder`; `CheckpointError` where the name or a link leads elsewhere."""
    path = folder / name
    if Path(name).name != name or name in ("", ".", ".."):
        raise CheckpointError(f"{folder} names {name!r}: a file must stand in the checkpoint's own folder")
    home = folder.resolve()
    target = path.resolve()
    if target.is_relative_to(home):
        return path
    if home.parent.name == "snapshots" and target.is_relative_to(home.parent.parent / "blobs"):
        return path
    raise CheckpointError(f"{path} is a link to {target}, outside of its folder: put the file itself there")


def open_member(folder: Path, name: str) -> SourceFile:
    """Return the weights' file `name` of `folder`, open; a Git LFS pointer in its place is a `CheckpointError`."""
    path = member(folder, name)
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file")
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer and not the weights: run `git lfs pull` in {folder}")
    return SourceFile(path)


def listing(folder: Path, n: int = 8) -> str:
    """Return the first `n` names in `folder`, for a message that says what was found."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "") if names else "nothing"
