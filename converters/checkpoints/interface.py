"""What every checkpoint reader returns, and the positioned reads that all of them use.

Weights are read with ``pread`` into buffers that the caller reuses: a memory map would count as the process's memory
and turn a read error into a crash.
"""

from __future__ import annotations

import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.converters.mix import ModelShape
from llamalite.errors import CheckpointError
from llamalite.files import shards
from llamalite.quant_types import FILE_TYPES

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""The dtypes that can be converted, by their safetensors names, and the bytes of one weight."""

_SAMPLED_ROWS = 64


class SourceFile:
    """An open file that several threads can read at once, each at its own position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        status = os.fstat(self._file.fileno())
        self.n_bytes = status.st_size
        self._modified = status.st_mtime_ns

    def read_into(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """Fill `into` (uint8, contiguous) with the bytes at `offset`; `CheckpointError` if the file ends early."""
        if not into.size:  # an empty memoryview cannot be cast
            return
        view = into.data.cast("B")
        n_read = 0
        while n_read < len(view):
            n = self._read_at(offset + n_read, view[n_read:])
            if not n:
                self.check_unchanged()
                raise CheckpointError(
                    f"{self.path} ends before byte {offset + n_read}, expected {len(view) - n_read} more: download it "
                    "again"
                )
            n_read += n

    def _read_at(self, offset: int, view: memoryview) -> int:
        try:
            if hasattr(os, "preadv"):
                return os.preadv(self._file.fileno(), [view], offset)
            with self._lock:  # Windows has no positioned read
                self._file.seek(offset)
                return self._file.readinto(view) or 0
        except OSError as error:  # of a failing disk, say: the system's error does not name the file
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if the file has changed since it was opened."""
        status = os.fstat(self._file.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.n_bytes, self._modified):
            raise CheckpointError(f"{self.path} changed while it was read: convert again when it is complete")

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class SourceTensor(ABC):
    """A tensor that is read on demand: `dtype` as safetensors names it, `shape` in C order."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """The number of rows of the tensor as a matrix; a vector is one row."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return (self.shape[-1] if self.shape else 1) * DTYPE_BYTES[self.dtype]

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.row_bytes

    @abstractmethod
    def read_rows(self, first: int, count: int, into: npt.NDArray[np.uint8]) -> None:
        """Fill `into` (uint8 [count * row_bytes]) with the little-endian bytes of rows ``first : first + count``."""


@dataclass(frozen=True)
class FileTensor(SourceTensor):
    """A tensor whose bytes are contiguous in one file."""

    file: SourceFile
    offset: int

    def read_rows(self, first: int, count: int, into: npt.NDArray[np.uint8]) -> None:
        self.file.read_into(self.offset + first * self.row_bytes, into)


def same_rows(left: SourceTensor, right: SourceTensor) -> bool:
    """Tell whether rows sampled from both matrices hold the same bytes, which shows that one is a copy."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    a, b = np.empty(left.row_bytes, np.uint8), np.empty(left.row_bytes, np.uint8)
    for row in range(0, left.n_rows, max(1, left.n_rows // _SAMPLED_ROWS)):
        left.read_rows(row, 1, a)
        right.read_rows(row, 1, b)
        if not np.array_equal(a, b):
            return False
    return True


@dataclass(frozen=True)
class CarriedKeys:
    """The keys of a GGUF source: `pairs` of key and value (its type first), as bytes of the file."""

    pairs: tuple[tuple[bytes, bytes], ...]
    shape: ModelShape


@dataclass
class Checkpoint:
    """An open checkpoint: its config, its tensors in the order of their files, and the open files."""

    folder: Path
    """The checkpoint's folder; for a GGUF source, the file."""
    config: dict[str, Any]
    tensors: Mapping[str, SourceTensor]
    files: list[SourceFile] = field(default_factory=list)
    permuted: bool = True
    """Whether q and k rows are in Hugging Face's order (halves); otherwise they are in llama.cpp's (pairs)."""
    carried: CarriedKeys | None = None
    """The keys of a GGUF source, which replace config and vocabulary; its tensor names are final."""

    @property
    def name(self) -> str:
        return model_name(self.folder)

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer's files; Meta's first releases have ``tokenizer.model`` in the parent folder."""
        parent = self.folder.resolve().parent
        if not (self.folder / "config.json").exists() and not (self.folder / "tokenizer.model").exists():
            return parent if (parent / "tokenizer.model").is_file() else self.folder
        return self.folder

    def check_unchanged(self) -> None:
        for file in self.files:
            file.check_unchanged()

    def close(self) -> None:
        for file in self.files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def model_name(source: Path) -> str:
    """Return the name of the model at `source`, taken from its folder or file.

    >>> model_name(Path("models--org--SmolLM2-135M/snapshots/93efa2f0"))
    'SmolLM2-135M'
    >>> model_name(Path("SmolLM2-135M-F16-00001-of-00002.gguf"))
    'SmolLM2-135M'
    """
    if source.suffix.lower() == ".gguf":  # not resolved: in the hub's cache it is a link to a file named by its hash
        stem = shards.stem_of(source.stem)
        head, _, last = stem.replace(".", "-").rpartition("-")
        return stem[: len(head)] if head and last.upper() in FILE_TYPES else stem
    path = source.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    if path.name == "original" and path.parent.name:  # where Hugging Face's repositories keep Meta's own form
        return model_name(path.parent)
    return source.name if source.name not in ("", "..") else path.name  # a link keeps its own name
