"""Kernels that do what ggml's do, byte for byte, with one sub-block in each SIMD lane; compiled by Numba.

ggml searches the scales of K-quants with scalar code, compiled for the oldest processor of its kind. Along a sub-block
this search cannot be vectorised without changing the order of its sums, and so the bytes. Across sub-blocks it can:
each lane has one, and goes through it in the order of the C code. No fast-math.

Numba comes with the extra `fast`. The environment variable ``LLAMALITE_KERNELS`` says what is used:

- ``auto`` (the default): these kernels, if Numba is installed and there is enough to quantize to pay for loading it;
  while one thread loads or compiles a kernel, the others go on with ggml's.
- ``fast``: these kernels from the first row on; without Numba that is an error.
- ``ggml``: ggml's own.

A compiler may contract a product and a sum into one instruction, which rounds once; so each kernel comes in the ways of
several compilers (contractions.py). Before its first use a kernel makes some hundred blocks, ordinary and strange ones,
and is used only if they are ggml's. The first type tries one way after the other, the next begin with the way found.
Where none fits, ggml's own kernel is used.
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
from llamalite.converters.kernels.fast.trial import N_COLUMNS, held_as, trial_rows
from llamalite.errors import QuantizationError
from llamalite.native.quantize import quantize_rows
from llamalite.quant_types import TensorType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Kernel = Callable[[Bytes, str, int, "Floats | None", Bytes], None]
"""(source bytes, their dtype, number of blocks, importance [n_columns] or None, out bytes)"""

SOURCES = {"F32": 0, "BF16": 1, "F16": 2}  # as in tiles.py
LOADING_NS = 1e9  # about what it costs to load Numba and the first kernel, if that is compiled; the next cost little

_logger = logging.getLogger(__name__)
_MODES = ("auto", "fast", "ggml")


class Shelf:
    """The kernels of this process: made once, by whichever thread first needs one."""

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
        self._n_weights += n_weights  # threads may lose a count to each other: it is a rough measure
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
        except Exception as error:  # whatever a Numba that does not fit this Python, NumPy or LLVM raises
            if mode == "fast":
                raise
            self._broken = True
            _logger.warning("Numba is installed but does not work, so that ggml's kernels are used: %s", error)
            return None


_shelf = Shelf()


def expect(n_weights: int) -> None:
    """Say that so many weights are to come, so that kernels are loaded at once where that will pay."""
    _shelf.expect(n_weights)


def kernel_for(tensor_type: TensorType, n_weights: int, *, weighted: bool) -> Kernel | None:
    """Return the kernel for `n_weights` more weights of this type, or None where ggml's own is to be used."""
    recipe = RECIPES.get(tensor_type.name)
    if recipe is None or n_weights % recipe.multiple_of:
        return None
    if weighted and recipe.weighted is None and not recipe.ignores_importance:
        return None
    return _shelf.get(tensor_type, n_weights)


def chosen_mode() -> str:
    """Return what ``LLAMALITE_KERNELS`` asks for: auto, fast or ggml."""
    mode = (os.environ.get("LLAMALITE_KERNELS") or "auto").lower()
    if mode not in _MODES:
        raise ValueError(f"LLAMALITE_KERNELS is {mode!r}; known are {', '.join(_MODES)}")
    return mode


def numba_is_installed(*, needed: bool = False) -> bool:
    """Whether the extra `fast` is installed; does not load it. If it is `needed` and missing: `QuantizationError`."""
    installed = importlib.util.find_spec("numba") is not None
    if needed and not installed:
        raise QuantizationError("LLAMALITE_KERNELS=fast needs Numba: pip install numba")
    return installed


@functools.cache
def load(name: str, how: Contraction) -> Kernel:
    """Return the kernel of the tensor type called `name`, compiled now or by an earlier process; not yet tested."""
    from llamalite.converters.kernels.fast import compiler

    recipe = RECIPES[name]
    function = getattr(importlib.import_module(f"{__name__}.{recipe.module}"), recipe.function)
    plain, weighted = recipe.plain(how), recipe.weighted(how) if recipe.weighted else None
    compiled = compiler.compiled(function, how, plain, weighted=weighted is not None)
    return functools.partial(_call, compiled, how, plain, weighted)


_NO_IMPORTANCE = np.empty(0, np.float32)


def _call(
    compiled: Callable[..., Any],
    how: Contraction,
    plain: Settings,
    weighted: Settings | None,
    source: Bytes,
    dtype: str,
    n_blocks: int,
    importance: Floats | None,
    out: Bytes,
) -> None:
    start = how, source, SOURCES[dtype], n_blocks
    if weighted is None:
        compiled(*start, *plain, out)
    elif importance is None:
        compiled(*start, _room(), _NO_IMPORTANCE, *plain, out)
    else:
        compiled(*start, _room(), np.ascontiguousarray(importance), *weighted, out)


# The widest search needs about 110 KiB. Not the stack: on Windows that takes a call which compiled code may not find.
ROOM_BYTES = 1 << 18
_threads = threading.local()


def _room() -> Bytes:
    """This thread's ROOM_BYTES, aligned to a cache line."""
    room: Bytes | None = getattr(_threads, "room", None)
    if room is None:
        whole = np.empty(ROOM_BYTES + 63, np.uint8)
        start = -whole.ctypes.data % 64
        room = _threads.room = whole[start : start + ROOM_BYTES]
    return room


def chosen(tensor_type: TensorType, contractions: list[Contraction]) -> Kernel | None:
    """Return the first kernel that makes ggml's bytes on the trial rows, or None.

    Its contraction becomes the first of `contractions`: ggml's other types were compiled by the same compiler.
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
    _logger.info("no fast kernel for %s makes the bytes that this ggml makes, so that ggml's own is used", name)
    return None


def _can_fuse() -> bool:
    from llamalite.converters.kernels.fast import vectors

    return vectors.HAS_FMA


def accepted(tensor_type: TensorType, kernel: Kernel) -> Kernel | None:
    """Return `kernel` if its bytes are ggml's on the trial rows, else None."""
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
