"""What every reader of checkpoints gives, and positioned reads that all of them use.

Weights are read with ``pread`` into buffers that the caller reuses: a memory map would count as memory of the process
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
"""Bytes of one weight, by the names that safetensors gives its dtypes: those that can be converted."""

_SAMPLED_ROWS = 64


class SourceFile:
    """An open file that is read at positions, from several threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        status = os.fstat(self._file.fileno())
        self.n_bytes = status.st_size
        self._modified = status.st_mtime_ns

    def read_into(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """Fill `into` (uint8, contiguous) with the bytes at `offset`; `CheckpointError` where the file ends early."""
        if not into.size:  # a memoryview of nothing cannot be cast
            return
        view = into.data.cast("B")
        done = 0
        while done < len(view):
            n = self._read_at(offset + done, view[done:])
            if not n:
                self.check_unchanged()
                raise CheckpointError(
                    f"{self.path} ends before byte {offset + done}, expected {len(view) - done} more: download it again"
                )
            done += n

    def _read_at(self, offset: int, view: memoryview) -> int:
        try:
            if hasattr(os, "preadv"):
                return os.preadv(self._file.fileno(), [view], offset)
            with self._lock:  # Windows has no positioned read
                self._file.seek(offset)
                return self._file.readinto(view) or 0
        except OSError as error:  # of a failing disk, say: the system does not tell the file
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if the file has been written since it was opened."""
        status = os.fstat(self._file.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.n_bytes, self._modified):
            raise CheckpointError(f"{self.path} changed while it was read: convert again when it is complete")

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class SourceTensor(ABC):
    """A tensor that has not been read yet: `dtype` as safetensors names it, `shape` in C order."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """Rows of the tensor seen as a matrix; a vector is one row."""
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
    """A tensor whose bytes lie in one piece in one file."""

    file: SourceFile
    offset: int

    def read_rows(self, first: int, count: int, into: npt.NDArray[np.uint8]) -> None:
        self.file.read_into(self.offset + first * self.row_bytes, into)


def same_rows(one: SourceTensor, other: SourceTensor) -> bool:
    """Whether rows spread over both matrices hold the same bytes: then one was copied from the other."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    a, b = np.empty(one.row_bytes, np.uint8), np.empty(one.row_bytes, np.uint8)
    for row in range(0, one.n_rows, max(1, one.n_rows // _SAMPLED_ROWS)):
        one.read_rows(row, 1, a)
        other.read_rows(row, 1, b)
        if not np.array_equal(a, b):
            return False
    return True


@dataclass(frozen=True)
class CarriedKeys:
    """What a GGUF file says beside its tensors: `pairs` of key and value (its type first), as bytes of the file."""

    pairs: tuple[tuple[bytes, bytes], ...]
    shape: ModelShape


@dataclass
class Checkpoint:
    """An open checkpoint: where it is, its config, its tensors in the order of their files, what keeps them open."""

    folder: Path
    """The folder; of a GGUF source, the file."""
    config: dict[str, Any]
    tensors: Mapping[str, SourceTensor]
    files: list[SourceFile] = field(default_factory=list)
    permuted: bool = True
    """Whether q and k rows are in Hugging Face's order (halves) and not already in llama.cpp's (pairs)."""
    carried: CarriedKeys | None = None
    """Of a GGUF source: its keys, which stand in place of config and vocabulary, as its names are final already."""

    @property
    def name(self) -> str:
        return model_name(self.folder)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files are: Meta's first releases have one ``tokenizer.model`` beside the folders."""
        beside = self.folder.resolve().parent
        if not (self.folder / "config.json").exists() and not (self.folder / "tokenizer.model").exists():
            return beside if (beside / "tokenizer.model").is_file() else self.folder
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
    """Return what the model at `source` is called, after its folder or file.

    >>> model_name(Path("models--org--SmolLM2-135M/snapshots/93efa2f0"))
    'SmolLM2-135M'
    >>> model_name(Path("SmolLM2-135M-F16-00001-of-00002.gguf"))
    'SmolLM2-135M'
    """
    if source.suffix.lower() == ".gguf":  # not resolved: in the hub's cache it is a link to a file called by its hash
        stem = shards.stem_of(source.stem)
        head, _, last = stem.replace(".", "-").rpartition("-")
        return stem[: len(head)] if head and last.upper() in FILE_TYPES else stem
    path = source.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    if path.name == "original" and path.parent.name:  # where Hugging Face's repositories keep Meta's own form
        return model_name(path.parent)
    return source.name if source.name not in ("", "..") else path.name  # a link is called as it was typed
