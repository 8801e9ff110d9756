"""The files of a checkpoint's folder, and where the links among them may lead.

A folder that was downloaded may hold links as well as files. One that leads out of the folder would have the converter
read what its maker chose, so it is refused, but for the one place where links belong: in Hugging Face's cache a file
``models--org--name/snapshots/REVISION/config.json`` is a link into ``models--org--name/blobs``.
"""

from __future__ import annotations

from pathlib import Path

from llamalite.converters.checkpoints.interface import SourceFile
from llamalite.errors import CheckpointError

_READ = frozenset({".json", ".jinja", ".model", ".txt", ".md", ".safetensors", ".bin", ".pth"})
_LFS_POINTER = b"version https://git-lfs"


def member(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in `folder`; `CheckpointError` where the name or a link leads elsewhere."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise CheckpointError(f"{folder} names {name!r}: a file must stand in the checkpoint's own folder")
    _check_link(folder, folder / name)
    return folder / name


def check_links(folder: Path) -> None:
    """Raise `CheckpointError` if a file of a kind that is read from `folder` is a link that leads out of it.

    A template or a model card is copied into the result as it is: a link to somebody's keys would be published with it.
    """
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if path.suffix in _READ:
            _check_link(folder, path)


def _check_link(folder: Path, path: Path) -> None:
    home = folder.resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # until Python 3.12 a circle is a RuntimeError, and none from 3.13 on
        raise CheckpointError(f"{path} is a link that leads in a circle") from None
    snapshots = next((parent for parent in home.parents if parent.name == "snapshots"), None)
    if target.is_relative_to(home) or (snapshots and target.is_relative_to(snapshots.parent / "blobs")):
        return
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
