"""Importance matrices of llama-imatrix: how much each column of a matrix matters to the model's output.

    importance = Importance.load("imatrix.gguf")
    importance.rows["blk.0.attn_q.weight"]           # float32 [n_columns]

Both forms are read: GGUF (sums of squared activations and their counts) and the older ``.dat`` (sums times calls).
The mean is computed as in llama-quantize (tools/quantize/quantize.cpp ``load_imatrix``, common/imatrix-loader.cpp).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from llamalite import gguf_check
from llamalite.errors import GGUFError

Floats = npt.NDArray[np.float32]

_MAX_DAT_BYTES = 1 << 30


@dataclass(frozen=True)
class Importance:
    """The matrix's `rows` by tensor name (float32 [n_columns]), and what is recorded of it in files made with it."""

    rows: Mapping[str, Floats]
    file: str
    dataset: str | None = None
    n_chunks: int = 0

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Importance:
        """Read the file at `path`, of either form; `GGUFError` says what is wrong with it."""
        source = Path(path)
        if source.exists() and not source.is_file():  # a device or a pipe may never end
            raise GGUFError(f"{source} is a device or a folder, expected the file of an importance matrix")
        with source.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        rows, dataset, n_chunks = _read_gguf(source) if is_gguf else _read_dat(source)
        for name, values in rows.items():
            if not np.isfinite(values).all():
                raise GGUFError(f"{source}: the importance of {name} is not finite: make the matrix again")
        return cls(rows, os.fspath(path), dataset, n_chunks)


def _read_gguf(path: Path) -> tuple[dict[str, Floats], str | None, int]:
    header = gguf_check.read_header(path)
    keys = header.metadata
    missing = [key for key in ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size") if key not in keys]
    if missing:
        raise GGUFError(f"{path} lacks the key {missing[0]}: it is a GGUF file, but not an importance matrix")
    values = {}
    with path.open("rb") as file:
        for tensor in header.tensors:
            if tensor.type.name != "F32":
                raise GGUFError(f"{path}: {tensor.name} is {tensor.type.name}, expected F32 in an importance matrix")
            file.seek(tensor.offset)
            values[tensor.name] = np.frombuffer(file.read(tensor.nbytes), "<f4").astype(np.float32)
    rows = {}
    for name in sorted({key.rpartition(".")[0] for key in values}):
        sums, counts = values.get(f"{name}.in_sum2"), values.get(f"{name}.counts")
        if sums is None or counts is None or counts.size != 1:
            raise GGUFError(f"{path}: {name} lacks in_sum2 or counts, or belongs to a mixture of experts")
        rows[name] = sums / counts[0] if counts[0] > 0 else np.ones_like(sums)
    datasets = keys["imatrix.datasets"]
    return rows, str(datasets[0]) if len(datasets) else None, int(keys["imatrix.chunk_count"])


def _read_dat(path: Path) -> tuple[dict[str, Floats], str | None, int]:
    if path.stat().st_size > _MAX_DAT_BYTES:
        raise GGUFError(f"{path} has {path.stat().st_size:,} bytes: too large for an importance matrix")
    data, at = path.read_bytes(), 0

    def refuse(item: str) -> NoReturn:
        raise GGUFError(f"{path} is not an importance matrix, neither GGUF nor .dat: {item} at byte {at}")

    def take(n: int, item: str) -> bytes:
        nonlocal at
        if not 0 <= n <= len(data) - at:
            refuse(f"{item} of {n} bytes")
        at += n
        return data[at - n : at]

    def number(item: str) -> int:
        return int(struct.unpack("<i", take(4, item))[0])

    n_entries = number("the number of tensors")
    if not 0 < n_entries <= len(data) // 16:
        refuse(f"{n_entries} tensors")
    rows = {}
    for _ in range(n_entries):
        name = take(number("a name's length"), "a name").decode("utf-8", "replace")
        n_calls, n_values = number("the calls"), number("the number of values")
        if n_values < 1:
            refuse(f"{n_values} values")
        sums = np.frombuffer(take(4 * n_values, f"the values of {name}"), "<f4").astype(np.float32)
        rows[name] = sums / np.float32(n_calls) if n_calls > 0 else sums
    if at == len(data):
        return rows, None, 0
    n_chunks = number("the number of chunks")
    dataset = None
    if len(data) - at > 4 and (length := number("the length of the text's name")) > 0:
        dataset = take(length, "the text's name").split(b"\0")[0].decode("utf-8", "replace")
    return rows, dataset, n_chunks
