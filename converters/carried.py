"""The header of a GGUF file that was made from another GGUF file: that one's keys, and a new table of tensors.

As llama-quantize writes it (src/llama-quant.cpp, ``llama_model_quantize_impl``; ggml/src/gguf.cpp, ``gguf_write_out``):
all keys in their order, those of a split model removed, and the file's new type at the end.
"""

from __future__ import annotations

import struct
from pathlib import Path

import gguf

from llamalite.converters import pipeline
from llamalite.converters.checkpoints.gguf_source import MAGIC, CarriedKeys
from llamalite.converters.planning import Plan

_UINT32 = 4
_VERSION = 3


def write_header(carried: CarriedKeys, planned: Plan, i_output: int, part: Path) -> int:
    """Write everything before the tensor data into `part`, and return where the data starts."""
    pairs = [
        *carried.pairs,
        (b"general.quantization_version", struct.pack("<II", _UINT32, gguf.GGML_QUANT_VERSION)),
        (b"general.file_type", struct.pack("<II", _UINT32, planned.file_types[i_output].ftype)),
    ]
    header = MAGIC + struct.pack("<IQQ", _VERSION, len(planned.tensors), len(pairs))
    header += b"".join(_text(key) + value for key, value in pairs)
    offset = 0
    for tensor in planned.tensors:
        dims = tensor.shape[::-1]
        header += _text(tensor.name.encode()) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        header += struct.pack("<IQ", tensor.types[i_output].type.ggml_type, offset)
        offset += pipeline.padded(tensor.n_bytes(i_output))
    start = pipeline.padded(len(header))
    part.write_bytes(header + bytes(start - len(header)))
    return start


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw
