"""From the bytes of a checkpoint to the bytes of a GGUF tensor, a chunk of rows at a time.

`widen` makes float32 of what a checkpoint holds; `quantize` makes a tensor type's blocks of float32. Both do their work
outside the GIL. `quantize` gives the bytes of ggml's own kernels, always.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llamalite.native.quantize import quantize_rows as quantize

__all__ = ["narrow_bfloat16", "quantize", "widen"]

Floats = npt.NDArray[np.float32]


def widen(source: npt.NDArray[np.uint8], dtype: str, out: Floats) -> Floats:
    """Write `source` (the raw bytes of `dtype`: F32, F16, BF16 or F64) as float32 into `out`, and return `out`.

    F32 to F32 and BF16 to F32 copy bits, F16 to F32 is exact; F64 is rounded to nearest, as torch's ``.to(float32)``.
    """
    flat = out.reshape(-1)
    if dtype == "BF16":
        np.left_shift(source.view("<u2"), 16, out=flat.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(flat, source.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]), casting="same_kind")
    return out


def narrow_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """Return the bfloat16 bits of finite float32 `values`, rounded to nearest even (``ggml_compute_fp32_to_bf16``)."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
