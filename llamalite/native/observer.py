"""Observes matrix products while llama.cpp computes them: the weights' name, and the activations they multiply.

    def see(name, key, rows):           # "blk.0.attn_q.weight", float32 [n_tokens, n_embd], a view for this call only
        ...
    observer = MatrixObserver(wanted=lambda name, n_rows: name.startswith("blk."), see=see)
    context = NativeContext(model, ContextOptions(n_ctx=512), observer=observer)

llama.cpp asks a callback (``cb_eval``) whether it wants each node of its graph, and calls it again with the wanted ones
once they are computed. The callback reads the fields of ``struct ggml_tensor`` (ggml.h of the pinned version) in place.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.native.library import ggml_base, llama

_F32 = 0  # enum ggml_type
_MAX_OPS = 512


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor``, up to its name."""

    type: int
    buffer: int | None
    ne: Any
    nb: Any
    op: int
    src: Any
    data: int | None
    name: bytes
    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


@functools.cache
def _ggml() -> Any:
    lib = ggml_base()
    lib.ggml_op_name.restype, lib.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    lib.ggml_nbytes.restype, lib.ggml_nbytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    lib.ggml_backend_buffer_is_host.restype = ctypes.c_bool
    lib.ggml_backend_buffer_is_host.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_tensor_get.restype = None
    lib.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    return lib


@functools.cache
def _op(name: bytes) -> int:
    """Return the number of a graph operation in this library: numbers change between versions."""
    return next(number for number in range(_MAX_OPS) if _ggml().ggml_op_name(number) == name)


class MatrixObserver:
    """Calls ``see(name, key, rows)`` for each product of a weight with float32 activations that ``wanted`` selects.

    ``wanted(name, n_rows)`` is called first, and should be fast. `rows` is float32 [n_rows, n_columns], valid only
    during the call; `key` is the same for consecutive weights that multiply the same activations. An exception in
    either function stops the computation, and `raised` is set to it. An observer is for one context.
    """

    def __init__(
        self, wanted: Callable[[str, int], bool], see: Callable[[str, int, npt.NDArray[np.float32]], None]
    ) -> None:
        self._wanted, self._see = wanted, see
        self._products = _op(b"MUL_MAT"), _op(b"MUL_MAT_ID")
        self.raised: BaseException | None = None
        self.callback: Any = llama().ggml_backend_sched_eval_callback(self._called)

    def _called(self, address: int, ask: bool, _user_data: Any) -> bool:
        try:
            node = _Tensor.from_address(address)
            if node.op not in self._products:
                return not ask
            weight, activations = _Tensor.from_address(node.src[0]), _Tensor.from_address(node.src[1])
            name = _weight_name(weight.name)
            if ask:
                return activations.type == _F32 and self._wanted(name, activations.ne[1])
            self._see(name, node.src[1], _rows(node.src[1], activations))
        except BaseException as error:  # noqa: BLE001 - it cannot pass through C: raised after the decode
            self.raised = error
            return False
        return True


def _weight_name(name: bytes) -> str:
    """Return a weight's name without what a backend adds to it, as in ``CUDA0#blk.0.attn_k.weight#0``."""
    parts = name.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]


def _rows(address: int, tensor: _Tensor) -> npt.NDArray[np.float32]:
    """Return a tensor's values, float32 [n_rows, n_columns]: a view of host memory, or a copy from a GPU."""
    lib, n_bytes = _ggml(), _ggml().ggml_nbytes(address)
    if lib.ggml_backend_buffer_is_host(tensor.buffer):
        raw: Any = (ctypes.c_char * n_bytes).from_address(tensor.data or 0)
    else:
        raw = ctypes.create_string_buffer(n_bytes)
        lib.ggml_backend_tensor_get(address, raw, 0, n_bytes)
    shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
    values: npt.NDArray[np.float32] = np.ndarray(shape, np.float32, raw, strides=strides)
    return values.reshape(-1, shape[-1])
