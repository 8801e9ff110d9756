"""The files of a checkpoint's folder: links must stay inside it, and only regular files are read.

A downloaded folder may hold links. A link out of the folder would let the folder's author choose any file to be read,
and templates and model cards are copied into the result: a link to somebody's keys would publish them. Such links are
refused, except in Hugging Face's cache, where ``models--org--name/snapshots/REVISION/config.json`` is a link into
``models--org--name/blobs``. A pipe or a device is refused too: reading it might never end. Only files that are read are
checked: every reader calls `member` first.
"""

from __future__ import annotations

from pathlib import Path

from llamalite.converters.checkpoints.interface import SourceFile
from llamalite.converters.checkpoints.json_file import MAX_BYTES
from llamalite.errors import CheckpointError
from llamalite.files import git_lfs

_TEMPLATES = "additional_chat_templates"


def member(folder: Path, name: str, *, max_bytes: int | None = MAX_BYTES) -> Path:
    """Return the path of the file `name` in `folder`, whether it exists or not.

    Raises `CheckpointError` if the name or a link leads out of the folder or nowhere, and for a file that is not
    regular, is longer than `max_bytes`, or is a Git LFS pointer.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise CheckpointError(f"{folder} names {name!r}: a file must be in the checkpoint's own folder")
    path = folder / name
    _check_link(folder, path)
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link that leads nowhere: put the file itself there")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    if max_bytes is not None and path.exists() and path.stat().st_size > max_bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, expected at most {max_bytes:,}")
    if path.exists():
        refuse_pointer(path)
    return path


def refuse_pointer(path: Path) -> None:
    """Raise `CheckpointError` if the file at `path` is a Git LFS pointer, left by a clone without git-lfs."""
    with path.open("rb") as file:
        is_pointer = file.read(len(git_lfs.POINTER)) == git_lfs.POINTER
    if is_pointer:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}, or download it"
        )


def _check_link(folder: Path, path: Path) -> None:
    home = folder.resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # a loop raises RuntimeError up to Python 3.12, and nothing from 3.13 on
        raise CheckpointError(f"{path} is a link that leads back to itself") from None
    snapshots = next((parent for parent in home.parents if parent.name == "snapshots"), None)
    if target.is_relative_to(home) or (snapshots and target.is_relative_to(snapshots.parent / "blobs")):
        return
    raise CheckpointError(f"{path} is a link to {target}, outside its folder: put the file itself there")


def open_member(folder: Path, name: str) -> SourceFile:
    """Open the file of weights `name` in `folder`."""
    return SourceFile(member(folder, name, max_bytes=None))


def more_templates(folder: Path) -> list[Path]:
    """Return the files ``additional_chat_templates/*.jinja`` of `folder`, by name."""
    inside = folder / _TEMPLATES
    _check_link(folder, inside)
    return [member(inside, path.name) for path in sorted(inside.glob("*.jinja"))]


def listing(folder: Path, n: int = 8) -> str:
    """Return the first `n` names in `folder`, as text for a message."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "") if names else "nothing"
