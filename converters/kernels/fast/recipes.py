"""Which kernel makes which tensor type, and with what constants: those of ggml-quants.c. No Numba in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Settings = tuple[Any, ...]


@dataclass(frozen=True)
class Recipe:
    """The function that makes a tensor type, and its settings without and with importance.

    `weighted` is None for a kernel that takes no importance. ggml ignores it where `ignores_importance` is set; else
    such rows are not for this kernel, nor are numbers of weights that are no multiple of `multiple_of`. `saved_ns` is
    about what one weight takes less than with ggml's kernel, on one core: it decides whether loading Numba pays.
    """

    module: str
    function: str
    saved_ns: float
    plain: Settings
    weighted: Settings | None = None
    ignores_importance: bool = False
    multiple_of: int = 1


def _range(nmax: int, start: float, step: float, n_steps: int) -> Floats:
    """The numerators that ``make_qkx2_quants`` tries: rmin + rdelta·i + nmax, each operation in float32."""
    start, step = np.float32(start), np.float32(step)
    return np.array([(start + step * np.float32(i)) + np.float32(nmax) for i in range(n_steps + 1)], np.float32)


def _around(nmax: int) -> Floats:
    """The numerators that ``make_qx_quants`` tries: −(nmax + 0.1·i) for i in −9…9, but for 0."""
    return np.array([-(np.float32(nmax) + np.float32(0.1) * np.float32(i)) for i in range(-9, 10) if i], np.float32)


RECIPES = {
    "Q2_K": Recipe("q2_k", "quantize", 100, (_range(3, -0.5, 0.1, 15),), (_range(3, -0.9, 0.05, 36),)),
    "Q3_K": Recipe("q3_k", "quantize", 25, (_around(4), _around(32)), (_around(4), _around(32))),
    "Q4_K": Recipe("q45_k", "quantize", 150, (15, _range(15, -1.0, 0.1, 20)), (15, _range(15, -0.9, 0.05, 36))),
    "Q5_K": Recipe("q45_k", "quantize", 100, (31, _range(31, -0.5, 0.1, 15)), (31, _range(31, -0.9, 0.05, 36))),
    "Q6_K": Recipe("q6_k", "quantize", 45, (_around(32),), (_around(32),)),
    "Q8_0": Recipe("plain", "quantize_q8_0", 6, (), ignores_importance=True),
    "Q4_0": Recipe("plain", "quantize_q4_0", 2, ()),
    "F32": Recipe("plain", "widen", 2, (), ignores_importance=True, multiple_of=32),
    "F16": Recipe("plain", "narrow", 3, (), ignores_importance=True, multiple_of=32),
}
