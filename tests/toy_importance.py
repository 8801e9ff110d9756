"""Importance matrices for toy checkpoints, in both forms, and as llama.cpp's C API takes them."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from planned import plan_of

from llamalite.native import library
from llamalite.quant_types import TENSOR_TYPES

Floats = npt.NDArray[np.float32]


def write_importance(path: Path, checkpoint: Path, *, seed: int) -> Path:
    """Write a seeded matrix for every matrix of `checkpoint` but the embedding: GGUF, or ``.dat`` by the suffix."""
    rng = np.random.default_rng(seed)
    names = {t.name: t.shape[-1] for t in plan_of(checkpoint, "F32").tensors if len(t.shape) > 1}
    names.pop("token_embd.weight")
    rows = {name: rng.gamma(2.0, 1.0, n).astype(np.float32) for name, n in names.items()}
    n_calls, text = 7, "calibration.txt"
    if path.suffix == ".dat":
        data = struct.pack("<i", len(rows))
        for name, row in rows.items():
            data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", n_calls, row.size)
            data += (row * np.float32(n_calls)).astype("<f4").tobytes()
        path.write_bytes(data + struct.pack("<ii", n_calls, len(text)) + text.encode())
        return path
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", [text])
    writer.add_uint32("imatrix.chunk_count", n_calls)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, row in rows.items():
        writer.add_tensor(f"{name}.in_sum2", row * np.float32(n_calls * 512))
        writer.add_tensor(f"{name}.counts", np.array([n_calls * 512], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def native_importance(rows: Mapping[str, Floats]) -> Any:
    """Return `rows` as ``llama_model_imatrix_data``, ended by a null name."""
    lib = library.llama()
    entries = [
        lib.llama_model_imatrix_data(name.encode(), row.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), row.size)
        for name, row in rows.items()
    ]
    return (lib.llama_model_imatrix_data * (len(entries) + 1))(*entries)


def native_overrides(overrides: Sequence[tuple[str, str]]) -> Any:
    """Return (pattern, type name) pairs as ``llama_model_tensor_override``, ended by a null pattern."""
    lib = library.llama()
    entries = [lib.llama_model_tensor_override(p.encode(), TENSOR_TYPES[name].ggml_type) for p, name in overrides]
    return (lib.llama_model_tensor_override * (len(entries) + 1))(*entries)
