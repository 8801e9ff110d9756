"""Which kernel makes which tensor type, and with which constants of ggml-quants.c. No Numba in here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.converters.kernels.fast.contractions import STATEMENT, Contraction

Floats = npt.NDArray[np.float32]
Settings = tuple[Any, ...]


@dataclass(frozen=True)
class Recipe:
    """The function that makes a tensor type, and its settings for a contraction, without (`plain`) and with importance.

    `weighted` is None for a kernel that takes no importance: then it cannot make rows with importance, unless
    `ignores_importance` says that ggml ignores it too. The number of weights must be a multiple of `multiple_of`.
    `saved_ns` is roughly how many nanoseconds per weight it saves against ggml's kernel, on one core: it decides
    whether loading Numba pays. `contracted` says whether the bytes depend on the contraction.
    """

    module: str
    function: str
    saved_ns: float
    plain: Callable[[Contraction], Settings]
    weighted: Callable[[Contraction], Settings] | None = None
    ignores_importance: bool = False
    multiple_of: int = 1
    contracted: bool = True


def _range(contraction: Contraction, nmax: int, start: float, step: float, n_steps: int) -> Floats:
    """Return the numerators that ``make_qkx2_quants`` tries: rmin + rdelta·i + nmax, each operation in float32."""
    numerators: Floats = _sums(contraction, start, step, range(n_steps + 1)) + np.float32(nmax)
    return numerators


def _around(contraction: Contraction, nmax: int) -> Floats:
    """Return the numerators that ``make_qx_quants`` tries: −(nmax + 0.1·i) for i in −9…9 except 0."""
    numerators: Floats = -_sums(contraction, nmax, 0.1, [i for i in range(-9, 10) if i])
    return numerators


def _sums(contraction: Contraction, start: float, step: float, factors: Sequence[int]) -> Floats:
    """Return start + step · i for each i of `factors`; the product is rounded to float32 unless it is contracted."""
    products = np.float64(np.float32(step)) * np.array(factors)  # exact, and so is the sum
    if not contraction.places & STATEMENT:
        products = products.astype(np.float32).astype(np.float64)
    sums: Floats = (np.float64(np.float32(start)) + products).astype(np.float32)
    return sums


def _symmetric(*nmaxes: int) -> Callable[[Contraction], Settings]:
    return lambda contraction: tuple(_around(contraction, nmax) for nmax in nmaxes)


def _ranges(*first: Any, of: tuple[int, float, float, int]) -> Callable[[Contraction], Settings]:
    return lambda contraction: (*first, _range(contraction, *of))


def _nothing(_contraction: Contraction) -> Settings:
    return ()


RECIPES = {
    "Q2_K": Recipe("q2_k", "quantize", 100, _ranges(of=(3, -0.5, 0.1, 15)), _ranges(of=(3, -0.9, 0.05, 36))),
    "Q3_K": Recipe("q3_k", "quantize", 25, _symmetric(4, 32), _symmetric(4, 32)),
    "Q4_K": Recipe("q45_k", "quantize", 150, _ranges(15, of=(15, -1.0, 0.1, 20)), _ranges(15, of=(15, -0.9, 0.05, 36))),
    "Q5_K": Recipe("q45_k", "quantize", 100, _ranges(31, of=(31, -0.5, 0.1, 15)), _ranges(31, of=(31, -0.9, 0.05, 36))),
    "Q6_K": Recipe("q6_k", "quantize", 45, _symmetric(32), _symmetric(32)),
    "Q8_0": Recipe("plain", "quantize_q8_0", 6, _nothing, ignores_importance=True, contracted=False),
    "Q4_0": Recipe("plain", "quantize_q4_0", 2, _nothing),
    "F32": Recipe("plain", "widen", 2, _nothing, ignores_importance=True, multiple_of=32, contracted=False),
    "F16": Recipe("plain", "narrow", 3, _nothing, ignores_importance=True, multiple_of=32, contracted=False),
}
