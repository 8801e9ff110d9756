"""The safetensors format: a JSON header of names, dtypes, shapes and extents, then the bytes.

    08 00 00 00 00 00 00 00 | {"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}} | 8 bytes

Only the header is read here, and checked against the file before anything relies on it: extents must tile the data to
its last byte without gap or overlap, and have the length that dtype and shape imply (huggingface/safetensors, README
"Format"). The library's own reader maps files into memory, which a converter of bounded memory cannot use.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from llamalite.converters.checkpoints.interface import DTYPE_BYTES, FileTensor, SourceFile
from llamalite.converters.checkpoints.json_file import parse_object
from llamalite.errors import CheckpointError, UnsupportedArchitectureError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_OTHER_DTYPES = frozenset("BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F4 F6_E2M3 F6_E3M2 I16 U16 I32 U32 I64 U64 C64".split())


def read_tensors(file: SourceFile) -> dict[str, FileTensor]:
    """Return the tensors of an open file in the order of their bytes; `CheckpointError` says what is wrong with it."""
    header, start = _read_header(file)
    tensors = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _extent(file.path, item[0], item[1])):
        dtype, shape = _dtype_and_shape(file.path, name, entry)
        begin, stop = _extent(file.path, name, entry)
        if begin != end:
            raise CheckpointError(f"{file.path}: {name} starts at byte {begin}, expected {end}: a gap or an overlap")
        if dtype in DTYPE_BYTES and stop - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
            raise CheckpointError(
                f"{file.path}: {name} has {stop - begin} bytes, but {dtype} {list(shape)} needs "
                f"{math.prod(shape) * DTYPE_BYTES[dtype]}"
            )
        end = stop
        tensors[name] = FileTensor(name, dtype, shape, file, start + begin)
    if start + end != file.n_bytes:
        raise CheckpointError(
            f"{file.path} has {file.n_bytes:,} bytes, expected {start + end:,} by its header: download it again"
        )
    return tensors


def _read_header(file: SourceFile) -> tuple[dict[str, Any], int]:
    if file.n_bytes < 8:
        raise CheckpointError(f"{file.path} has {file.n_bytes} bytes: too short for a safetensors file")
    length = np.empty(8, np.uint8)
    file.read_into(0, length)
    n_header = int(length.view("<u8")[0])
    if n_header > min(MAX_HEADER_BYTES, file.n_bytes - 8):
        raise CheckpointError(
            f"{file.path} says that its header has {n_header:,} bytes, but the file has {file.n_bytes:,}: "
            "truncated, or not a safetensors file"
        )
    raw = np.empty(n_header, np.uint8)
    file.read_into(8, raw)
    header = parse_object(raw.tobytes(), f"the header of {file.path}")
    header.pop("__metadata__", None)
    return header, 8 + n_header


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


def _extent(path: Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_count, offsets))):
        raise CheckpointError(f"{path}: {name} has data_offsets {offsets!r}, expected two byte positions")
    begin, stop = offsets
    if stop < begin:
        raise CheckpointError(f"{path}: {name} ends at byte {stop}, before it starts at {begin}")
    return begin, stop


def _dtype_and_shape(path: Path, name: str, entry: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not (isinstance(shape, list) and len(shape) <= 8 and all(map(_is_count, shape))):
        raise CheckpointError(f"{path}: {name} has shape {shape!r}, expected a list of sizes")
    if not isinstance(dtype, str) or (dtype not in DTYPE_BYTES and dtype not in _OTHER_DTYPES):
        raise UnsupportedArchitectureError(f"{path}: {name} has dtype {dtype!r}, expected one of {[*DTYPE_BYTES]}")
    return dtype, tuple(shape)
