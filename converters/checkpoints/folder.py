"""The files of a checkpoint's folder: where the links among them may lead, and that each is a file with an end.

A folder that was downloaded may hold links as well as files. One that leads out of the folder would have the converter
read what its maker chose (a template or a model card is copied into the result as it is: a link to somebody's keys
would be published with it), so it is refused, but for the one place where links belong: in Hugging Face's cache a file
``models--org--name/snapshots/REVISION/config.json`` is a link into ``models--org--name/blobs``. A pipe or a device
would be waited for without end, and is refused too. Only what is read is looked at: every reader asks `member` first.
"""

from __future__ import annotations

from pathlib import Path

from llamalite.converters.checkpoints.interface import SourceFile
from llamalite.converters.checkpoints.json_file import MAX_BYTES
from llamalite.errors import CheckpointError

_LFS_POINTER = b"version https://git-lfs"
_TEMPLATES = "additional_chat_templates"


def member(folder: Path, name: str, *, max_bytes: int | None = MAX_BYTES) -> Path:
    """Return the path of the file `name` in `folder`, whether there is one or not.

    Raises `CheckpointError` where the name or a link leads elsewhere, or nowhere, and for what is no regular file or
    longer than `max_bytes`.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise CheckpointError(f"{folder} names {name!r}: a file must stand in the checkpoint's own folder")
    path = folder / name
    _check_link(folder, path)
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link that leads nowhere: put the file itself there")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no regular file")
    if max_bytes is not None and path.exists() and path.stat().st_size > max_bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, expected at most {max_bytes:,}")
    return path


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
    path = member(folder, name, max_bytes=None)
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer and not the weights: run `git lfs pull` in {folder}")
    return SourceFile(path)


def more_templates(folder: Path) -> list[Path]:
    """Return the files ``additional_chat_templates/*.jinja`` of `folder`, by name."""
    inside = folder / _TEMPLATES
    _check_link(folder, inside)
    return [member(inside, path.name) for path in sorted(inside.glob("*.jinja"))]


def listing(folder: Path, n: int = 8) -> str:
    """Return the first `n` names in `folder`, for a message that says what was found."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "") if names else "nothing"
