"""A GGUF file as a checkpoint: its weights can become any type, its keys and vocabulary are copied unchanged.

    with open_file(Path("model-F16.gguf")) as checkpoint:
        checkpoint.tensors["blk.0.attn_q.weight"].dtype    # "F16"
        checkpoint.carried.pairs[0]                        # (b"general.architecture", b"\\x14\\x00...")

The file, or all files of a split model, must pass `gguf_check` first. Tensors already have GGUF's names and row order.
Quantized tensors are read as float32 (`QuantizedTensor`). The conversion's plan decides whether to allow that: weights
quantized twice are worse than weights quantized once.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamalite import gguf_check
from llamalite.converters.checkpoints.interface import (
    DTYPE_BYTES,
    CarriedKeys,
    Checkpoint,
    FileTensor,
    SourceFile,
    SourceTensor,
)
from llamalite.converters.mix import ModelShape
from llamalite.errors import UnsupportedArchitectureError
from llamalite.gguf_check.value_types import ARRAY, SCALARS, STRING
from llamalite.native.quantize import dequantize_rows
from llamalite.quant_types import TensorType

MAGIC = b"GGUF"
# Rewritten for every file, or true only of the source.
_NOT_CARRIED = frozenset(
    b"general.quantization_version general.file_type general.alignment split.no split.count split.tensors.count".split()
)


@dataclass(frozen=True)
class QuantizedTensor(SourceTensor):
    """A tensor quantized as `type`; `read_rows` reads it as float32 (hence its `dtype`), `read_blocks` as it is."""

    type: TensorType
    file: SourceFile
    offset: int

    def read_rows(self, first: int, count: int, into: npt.NDArray[np.uint8]) -> None:
        blocks = np.empty((count, self.block_row_bytes), np.uint8)
        self.read_blocks(first, count, blocks)
        into.view("<f4")[:] = dequantize_rows(self.type, blocks, self.shape[-1]).reshape(-1)

    def read_blocks(self, first: int, count: int, into: npt.NDArray[np.uint8]) -> None:
        """Fill `into` (uint8 [count, block_row_bytes]) with rows ``first : first + count`` as they are."""
        self.file.read_into(self.offset + first * self.block_row_bytes, into.reshape(-1))

    @property
    def block_row_bytes(self) -> int:
        return self.type.row_bytes(self.shape[-1])


def is_gguf(path: Path) -> bool:
    """Tell whether the file at `path` starts with GGUF's magic bytes."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_file(path: Path) -> Checkpoint:
    """Open the GGUF file at `path` (the first file of a split model).

    Raises ``GGUFError`` for a damaged file, `UnsupportedArchitectureError` for a model that is not a dense LLaMA.
    """
    header = gguf_check.checked_header(path)
    if header.architecture != "llama" or header.metadata.get("llama.expert_count"):
        description = (
            "a mixture of experts" if header.architecture == "llama" else f"of the architecture {header.architecture}"
        )
        raise UnsupportedArchitectureError(
            f"{path} is {description}; llamalite supports dense models of the architecture llama"
        )
    content = header.metadata.get("general.type", "model")
    if content != "model":
        raise UnsupportedArchitectureError(f"{path} holds a {content!r:.40}; llamalite supports whole models")
    tensors: dict[str, SourceTensor] = {}
    with contextlib.ExitStack() as on_error:
        files = []
        for part in (header, *header.rest):
            file = on_error.enter_context(contextlib.closing(SourceFile(part.path)))
            files.append(file)
            for tensor in part.tensors:
                name, kind, rows_first = tensor.name, tensor.type, tensor.shape[::-1]
                if kind.name in DTYPE_BYTES:
                    tensors[name] = FileTensor(name, kind.name, rows_first, file, tensor.offset)
                else:
                    tensors[name] = QuantizedTensor(name, "F32", rows_first, kind, file, tensor.offset)
        shape = ModelShape(header.n_layer, header.n_head, header.n_head_kv)
        carried = CarriedKeys(tuple(_pairs(header, files[0])), shape)
        on_error.pop_all()
    return Checkpoint(path, {}, tensors, files, permuted=False, carried=carried)


def _pairs(header: gguf_check.Header, file: SourceFile) -> list[tuple[bytes, bytes]]:
    """Return the keys and values of the checked header as bytes, in the file's order."""
    raw = np.empty(header.data_offset, np.uint8)
    file.read_into(0, raw)
    buffer = raw.tobytes()

    def number(position: int, size: int = 8) -> int:
        return int.from_bytes(buffer[position : position + size], "little")

    pairs = []
    position = 24  # magic, version, two counts
    for _ in range(len(header.metadata)):
        key = buffer[position + 8 : position + 8 + number(position)]
        start = position = position + 8 + len(key)
        kind = number(position, 4)
        position += 4
        if kind == STRING:
            position += 8 + number(position)
        elif kind == ARRAY:
            element, n = number(position, 4), number(position + 4)
            position += 12
            if element == STRING:
                position = int(header.metadata.strings(key.decode())[1][-1, 1]) if n else position
            else:
                position += n * struct.calcsize(SCALARS[element][1])
        else:
            position += struct.calcsize(SCALARS[kind][1])
        if key not in _NOT_CARRIED:
            pairs.append((key, buffer[start:position]))
    return pairs
