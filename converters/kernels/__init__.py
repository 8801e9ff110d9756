"""From the bytes of a checkpoint to the bytes of a GGUF tensor, a chunk of rows at a time.

`widen` turns a checkpoint's weights into float32, `quantize` turns float32 into a tensor type's blocks, and
`quantize_source` does both at once. All of them release the GIL and make the same bytes as ggml's own kernels; with the
extra `fast` they are several times faster (see `llamalite.converters.kernels.fast`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llamalite.converters.checkpoints import DTYPE_BYTES
from llamalite.converters.kernels import fast
from llamalite.converters.kernels.fast import expect
from llamalite.native.quantize import checked_room, quantize_rows
from llamalite.quant_types import TENSOR_TYPES, TensorType

__all__ = ["expect", "narrow_bfloat16", "quantize", "quantize_source", "widen"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def widen(source: Bytes, dtype: str, out: Floats) -> Floats:
    """Write `source` (the raw bytes of `dtype`: F32, F16, BF16 or F64) as float32 into `out`, and return `out`.

    F32, BF16 and F16 are converted exactly; F64 is rounded to nearest, like torch's ``.to(float32)``.
    """
    flat = out.reshape(-1)
    kernel = None
    if dtype == "F16":
        kernel = fast.kernel_for(TENSOR_TYPES["F32"], flat.size, weighted=False)
    if kernel is not None:
        kernel(np.ascontiguousarray(source).reshape(-1), dtype, flat.size, None, flat.view(np.uint8))
    elif dtype == "BF16":
        np.left_shift(source.view("<u2"), 16, out=flat.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(flat, source.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]), casting="same_kind")
    return out


def quantize(
    tensor_type: TensorType, rows: Floats, out: Bytes | None = None, importance: Floats | None = None
) -> Bytes:
    """Quantize `rows` (float32 [n_rows, n_columns], C order) and return `out` (uint8 [n_rows, row bytes]).

    `importance` is float32 [n_columns], one row of an importance matrix. Bytes and errors are the same as from
    `llamalite.native.quantize.quantize_rows`.
    """
    kernel = fast.kernel_for(tensor_type, rows.size, weighted=importance is not None)
    if kernel is None or rows.dtype != np.float32 or not rows.flags.c_contiguous:
        return quantize_rows(tensor_type, rows, out, importance)
    out = checked_room(tensor_type, rows.shape, out, importance)
    n_blocks = rows.size // tensor_type.block_size
    kernel(rows.reshape(-1).view(np.uint8), "F32", n_blocks, importance, out.reshape(-1).view(np.uint8))
    return out


def quantize_source(
    tensor_type: TensorType,
    source: Bytes,
    dtype: str,
    n_columns: int,
    out: Bytes | None = None,
    importance: Floats | None = None,
    scratch: Floats | None = None,
) -> Bytes:
    """Quantize rows of a checkpoint from their bytes, `source`: the same as `widen` followed by `quantize`.

    If a fast kernel reads `dtype` itself, the float32 weights never reach memory; else they are in `scratch`, which
    needs one element per weight.
    """
    n_rows = source.nbytes // (n_columns * DTYPE_BYTES[dtype])
    kernel = None
    if dtype in fast.SOURCES:
        kernel = fast.kernel_for(tensor_type, n_rows * n_columns, weighted=importance is not None)
    if kernel is None:
        if scratch is None:
            scratch = np.empty(n_rows * n_columns, np.float32)
        rows = widen(source, dtype, scratch).reshape(n_rows, n_columns)
        return quantize(tensor_type, rows, out, importance)
    out = checked_room(tensor_type, (n_rows, n_columns), out, importance)
    n_blocks = n_rows * n_columns // tensor_type.block_size
    kernel(np.ascontiguousarray(source).reshape(-1), dtype, n_blocks, importance, out.reshape(-1).view(np.uint8))
    return out


def narrow_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """Return the bfloat16 bits of finite float32 `values`, rounded to nearest even (``ggml_compute_fp32_to_bf16``)."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
