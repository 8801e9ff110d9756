"""Kernels that make the same bytes as ggml's, with one sub-block in each SIMD lane; compiled by Numba.

ggml searches the scales of K-quants with scalar code, compiled for the oldest processor of its kind. Within a sub-block
the search cannot be vectorised without changing the order of its sums, and so the bytes. Across sub-blocks it can: each
lane has its own sub-block, and follows the order of the C code. No fast-math.

Numba comes with the extra `fast`. The environment variable ``LLAMALITE_KERNELS`` chooses the kernels:

- ``auto`` (the default): these kernels, if Numba is installed and there is enough to quantize to pay for loading it;
  while one thread loads or compiles a kernel, the others use ggml's.
- ``fast``: these kernels from the first row on; without Numba that is an error.
- ``ggml``: ggml's own.

A compiler may contract a product and a sum into one instruction, which rounds once; so each kernel exists in the
variants of several compilers (contractions.py). Before a kernel is used, it makes trial blocks, ordinary and unusual
ones, which must equal ggml's byte for byte. The first tensor type tries one variant after another; later types start
with the variant found. If none fits, ggml's own kernel is used.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.converters.kernels.fast.contractions import PLAIN, Contraction, by_likelihood
from llamalite.converters.kernels.fast.recipes import RECIPES, Settings
from llamalite.converters.kernels.fast.trial_rows import N_COLUMNS, held_as, trial_rows
from llamalite.errors import QuantizationError
from llamalite.native.quantize import quantize_rows
from llamalite.quant_types import TensorType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Kernel = Callable[[Bytes, str, int, "Floats | None", Bytes], None]
"""(source bytes, their dtype, number of blocks, importance [n_columns] or None, out bytes)"""

SOURCES = {"F32": 0, "BF16": 1, "F16": 2}  # as in tiles.py
LOADING_NS = 1e9  # about the time to load Numba and the first kernel from the cache; later kernels take little

_logger = logging.getLogger(__name__)
_MODES = ("auto", "fast", "ggml")


class KernelCache:
    """The kernels of this process, each made once, by the first thread that needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, Kernel | None] = {}
        self._n_weights = 0
        self._broken = False
        self._contractions = by_likelihood()

    def expect(self, n_weights: int) -> None:
        self._n_weights += n_weights

    def get(self, tensor_type: TensorType, n_weights: int) -> Kernel | None:
        name = tensor_type.name
        mode = chosen_mode()
        if mode == "ggml" or self._broken or not numba_is_installed(needed=mode == "fast"):
            return None
        if name in self._made:
            return self._made[name]
        self._n_weights += n_weights  # not atomic: a rough measure is enough
        if mode == "auto" and not self._made and self._n_weights * RECIPES[name].saved_ns < LOADING_NS:
            return None
        if not self._lock.acquire(blocking=mode == "fast"):
            return None
        try:
            if name not in self._made:
                self._made[name] = self.make(tensor_type, mode)
            return self._made[name]
        finally:
            self._lock.release()

    def make(self, tensor_type: TensorType, mode: str) -> Kernel | None:
        try:
            return chosen(tensor_type, self._contractions)
        except Exception as error:  # a Numba that does not fit this Python, NumPy or LLVM may raise anything
            if mode == "fast":
                raise
            self._broken = True
            _logger.warning("Numba is installed but does not work, so ggml's kernels are used: %s", error)
            return None


_cache = KernelCache()


def expect(n_weights: int) -> None:
    """Announce `n_weights` to be quantized, so that kernels are loaded at once if that will pay."""
    _cache.expect(n_weights)


def kernel_for(tensor_type: TensorType, n_weights: int, *, weighted: bool) -> Kernel | None:
    """Return the kernel for `n_weights` more weights of this type, or None if ggml's own is to be used."""
    recipe = RECIPES.get(tensor_type.name)
    if recipe is None or n_weights % recipe.multiple_of:
        return None
    if weighted and recipe.weighted is None and not recipe.ignores_importance:
        return None
    return _cache.get(tensor_type, n_weights)


def chosen_mode() -> str:
    """Return the value of ``LLAMALITE_KERNELS``: auto, fast or ggml; ``ValueError`` for any other."""
    mode = (os.environ.get("LLAMALITE_KERNELS") or "auto").lower()
    if mode not in _MODES:
        raise ValueError(f"LLAMALITE_KERNELS is {mode!r}; expected one of {', '.join(_MODES)}")
    return mode


def numba_is_installed(*, needed: bool = False) -> bool:
    """Tell whether Numba is installed, without loading it; `QuantizationError` if it is `needed` and missing."""
    installed = importlib.util.find_spec("numba") is not None
    if needed and not installed:
        raise QuantizationError("LLAMALITE_KERNELS=fast needs Numba: pip install numba")
    return installed


@functools.cache
def load(name: str, contraction: Contraction) -> Kernel:
    """Return the kernel of the tensor type `name`, compiled now or by an earlier process, and not yet tested."""
    from llamalite.converters.kernels.fast import compiler

    recipe = RECIPES[name]
    function = getattr(importlib.import_module(f"{__name__}.{recipe.module}"), recipe.function)
    plain, weighted = recipe.plain(contraction), recipe.weighted(contraction) if recipe.weighted else None
    compiled = compiler.compiled(function, contraction, plain, weighted=weighted is not None)
    return functools.partial(_call, compiled, contraction, plain, weighted)


_NO_IMPORTANCE = np.empty(0, np.float32)


def _call(
    compiled: Callable[..., Any],
    contraction: Contraction,
    plain: Settings,
    weighted: Settings | None,
    source: Bytes,
    dtype: str,
    n_blocks: int,
    importance: Floats | None,
    out: Bytes,
) -> None:
    start = contraction, source, SOURCES[dtype], n_blocks
    if weighted is None:
        compiled(*start, *plain, out)
    elif importance is None:
        compiled(*start, _scratch(), _NO_IMPORTANCE, *plain, out)
    else:
        compiled(*start, _scratch(), np.ascontiguousarray(importance), *weighted, out)


# The widest search needs about 110 KiB: too much for the stack, which on Windows grows by a call to a function that
# compiled code may not find.
SCRATCH_BYTES = 1 << 18
_threads = threading.local()


def _scratch() -> Bytes:
    """Return this thread's SCRATCH_BYTES of scratch memory, aligned to a cache line."""
    scratch: Bytes | None = getattr(_threads, "scratch", None)
    if scratch is None:
        block = np.empty(SCRATCH_BYTES + 63, np.uint8)
        start = -block.ctypes.data % 64
        scratch = _threads.scratch = block[start : start + SCRATCH_BYTES]
    return scratch


def chosen(tensor_type: TensorType, contractions: list[Contraction]) -> Kernel | None:
    """Return the first kernel that makes ggml's bytes from the trial rows, or None.

    Its contraction moves to the front of `contractions`: ggml's other types were compiled by the same compiler.
    """
    name = tensor_type.name
    for contraction in list(contractions) if RECIPES[name].contracted else [PLAIN]:
        if contraction.places and not _can_fuse():
            continue
        kernel = accepted(tensor_type, load(name, contraction))
        if kernel is not None:
            if RECIPES[name].contracted:
                contractions.remove(contraction)
                contractions.insert(0, contraction)
            return kernel
    _logger.info("no fast kernel for %s makes the same bytes as this ggml, so ggml's own is used", name)
    return None


def _can_fuse() -> bool:
    from llamalite.converters.kernels.fast import vectors

    return vectors.HAS_FMA


def accepted(tensor_type: TensorType, kernel: Kernel) -> Kernel | None:
    """Return `kernel` if it makes ggml's bytes from the trial rows, else None."""
    importance = np.linspace(0.0, 2.0, N_COLUMNS, dtype=np.float32)
    trials: list[tuple[str, Floats | None]] = [(dtype, None) for dtype in SOURCES]
    if RECIPES[tensor_type.name].weighted is not None:
        trials.append(("F32", importance))
    for dtype, weights in trials:
        rows, source = held_as(dtype, trial_rows(dtype))
        out = np.empty(len(rows) * tensor_type.row_bytes(rows.shape[1]), np.uint8)
        kernel(source, dtype, rows.size // tensor_type.block_size, weights, out)
        n_wrong = np.count_nonzero(out != quantize_rows(tensor_type, rows, importance=weights).reshape(-1))
        if n_wrong:
            _logger.debug("%s from %s: %d of %d trial bytes are not ggml's", tensor_type.name, dtype, n_wrong, out.size)
            return None
    return kernel
