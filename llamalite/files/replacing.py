"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path to write; when the block ends, that file is flushed to the disk and renamed to `path`.

    If the block raises, what it wrote is removed and `path` stays as it was. Each process has its own temporary file,
    ``PATH.PID.part``. A link is followed; a pipe or a device is written in place.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone, or not ours
            part.unlink(missing_ok=True)
