"""ggml's own kernels over NumPy arrays: rows of float32 in, rows of bytes out.

    >>> from llamalite.quant_types import TENSOR_TYPES
    >>> rows = np.zeros((2, 256), np.float32)
    >>> quantize_rows(TENSOR_TYPES["Q4_K"], rows).shape
    (2, 144)

ctypes releases the GIL during a call, so that Python threads quantize side by side. Where ggml would abort the process
(a row that does not fill its blocks, a missing importance matrix), these functions raise an exception. `model_file` is
llama.cpp's own ``llama_model_quantize``; the tests compare our files with its.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.errors import QuantizationError
from llamalite.native import library
from llamalite.quant_types import FileType, TensorType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@functools.cache
def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = getattr(library.ggml_base(), name)
    function.restype, function.argtypes = result, list(arguments)
    return function  # type: ignore[no-any-return]


class _TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits`` (ggml.h), up to `to_float`."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]


def _quantize_chunk() -> Callable[..., Any]:
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    return _function("ggml_quantize_chunk", ctypes.c_size_t, ctypes.c_int, pointer, pointer, long, long, long, pointer)


@functools.cache
def needs_importance(tensor_type: TensorType) -> bool:
    """Tell whether quantizing to this type requires an importance matrix (``ggml_quantize_requires_imatrix``)."""
    return bool(_function("ggml_quantize_requires_imatrix", ctypes.c_bool, ctypes.c_int)(tensor_type.ggml_type))


def block_layout(ggml_type: int) -> tuple[int, int]:
    """Return (weights, bytes) of a block of the type with this number in the installed ggml."""
    size = _function("ggml_blck_size", ctypes.c_int64, ctypes.c_int)(ggml_type)
    return int(size), int(_function("ggml_type_size", ctypes.c_size_t, ctypes.c_int)(ggml_type))


def quantize_rows(
    tensor_type: TensorType, rows: Floats, out: Bytes | None = None, importance: Floats | None = None
) -> Bytes:
    """Quantize `rows` (float32 [n_rows, n_columns], C order) and return `out` (uint8 [n_rows, row bytes]).

    `importance` is float32 [n_columns], one row of an importance matrix. The bytes are those of
    ``ggml_quantize_chunk`` (ggml.c), and do not depend on how a tensor is split into chunks of rows.
    """
    if rows.dtype != np.float32 or not rows.flags.c_contiguous:
        raise ValueError(f"rows must be float32 and C-contiguous, found {rows.dtype}")
    out = checked_room(tensor_type, rows.shape, out, importance)
    matrix = importance.ctypes.data if importance is not None else None
    _quantize_chunk()(tensor_type.ggml_type, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, matrix)
    return out


def checked_room(
    tensor_type: TensorType, shape: tuple[int, ...], out: Bytes | None, importance: Floats | None
) -> Bytes:
    """Check the arguments of `quantize_rows`, and return `out`, newly allocated for `shape` (rows, columns) if None.

    Raises ``ValueError``, or `QuantizationError` for a missing importance matrix.
    """
    n_rows, n_columns = shape
    if out is None:
        out = np.empty((n_rows, tensor_type.row_bytes(n_columns)), np.uint8)
    if not out.flags.c_contiguous:
        raise ValueError("out must be C-contiguous")
    if out.nbytes != n_rows * tensor_type.row_bytes(n_columns):
        raise ValueError(f"out holds {out.nbytes} bytes, and {n_rows * tensor_type.row_bytes(n_columns)} are needed")
    if importance is not None and (importance.dtype != np.float32 or importance.shape != (n_columns,)):
        raise ValueError(f"importance must be float32 [{n_columns}], found {importance.dtype} {importance.shape}")
    if importance is None and needs_importance(tensor_type):
        raise QuantizationError(f"{tensor_type.name} cannot be made without an importance matrix: pass --imatrix FILE")
    return out


def dequantize_rows(tensor_type: TensorType, rows: Bytes, n_columns: int) -> Floats:
    """Return `rows` (uint8 [n_rows, row bytes]) of `tensor_type` as float32 [n_rows, n_columns].

    This is ggml's own ``to_float``, as in llama-quantize; gguf-py's reader returns the same, ten times slower.
    """
    if rows.nbytes != len(rows) * tensor_type.row_bytes(n_columns):
        raise ValueError(f"{len(rows)} rows of {n_columns} {tensor_type.name} weights, found {rows.nbytes} bytes")
    values = np.empty((len(rows), n_columns), np.float32)
    if tensor_type.name == "F32":  # a copy, for which ggml has no kernel
        values.reshape(-1).view(np.uint8)[:] = rows.reshape(-1)
        return values
    traits = _function("ggml_get_type_traits", ctypes.POINTER(_TypeTraits), ctypes.c_int)(tensor_type.ggml_type)
    if not traits.contents.to_float:
        raise ValueError(f"ggml cannot read {tensor_type.name} as float32")
    blocks = np.ascontiguousarray(rows)
    traits.contents.to_float(blocks.ctypes.data, values.ctypes.data, values.size)
    return values


def model_file(source: Path, target: Path, file_type: FileType, n_threads: int = 0, **options: Any) -> None:
    """Run ``llama_model_quantize`` from one GGUF file to another; `options` are fields of its parameters."""
    lib = library.llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type.ftype, n_threads
    for name, value in options.items():
        setattr(params, name, value)
    with library.collect_errors() as errors:
        code = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if code:
        raise QuantizationError(f"llama_model_quantize of {source}: {' / '.join(errors) or f'code {code}'}")
