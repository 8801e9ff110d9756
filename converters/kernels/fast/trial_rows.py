"""The rows that a kernel must quantize to ggml's bytes before it is used.

A product that is rounded where ggml's compiler did not round it changes few bytes: for some sums in one of a hundred
rows, for others in one of thousands. So besides ordinary and unusual rows there are telling ones, whose bytes show such
a difference. They were chosen from 6000 ordinary rows and 6000 on a grid: two rows for each ``mul_add`` of a kernel
whose contraction any row shows, for each tensor type, without and with importance.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

N_COLUMNS = 768
# The seeds of the telling rows.
# fmt: off
_TELLING = (
    49, 67, 69, 72, 130, 210, 246, 315, 352, 424, 495, 560, 698, 831, 880, 1009, 1340, 1481, 1500, 1546, 1664, 1764,
    1803, 1856, 1992, 2116, 2131, 2603, 2641, 2796, 2905, 3022, 3131, 3344, 3404, 3450, 3578, 3742, 3870, 4371, 4711,
    4842, 4872, 4973, 4981, 5244, 5348, 5457, 5480, 5579, 5607, 5805, 5977,
)
_TELLING_ON_A_GRID = (
    440, 578, 582, 960, 1064, 1792, 1978, 2084, 2317, 2767, 3129, 3248, 3928, 3936, 3980, 4171, 4520, 4652, 5586,
    5610, 5769, 5955,
)
# fmt: on


def held_as(dtype: str, rows: Floats) -> tuple[Floats, Bytes]:
    """Return `rows` rounded to what `dtype` holds, and the bytes that hold them."""
    if dtype == "F16":
        halves = rows.astype(np.float16)
        return halves.astype(np.float32), halves.reshape(-1).view(np.uint8)
    if dtype == "BF16":
        words = (rows.view(np.uint32) >> 16).astype(np.uint16)
        return (words.astype(np.uint32) << 16).view(np.float32), words.reshape(-1).view(np.uint8)
    return rows, rows.reshape(-1).view(np.uint8)


@functools.cache
def trial_rows(dtype: str) -> Floats:
    """Return float32 [n_rows, N_COLUMNS], the same in every process; F32 alone can hold the telling rows."""
    rng = np.random.default_rng(20)
    rows: Floats = rng.standard_normal((97, N_COLUMNS)).astype(np.float32) * np.float32(0.02)
    rows[64:72] *= rng.choice(np.array([1, 1, 1, 30], np.float32), (8, N_COLUMNS))  # outliers
    rows[72:76] += np.float32(1)  # one sign
    rows[76:80] = np.float32(-0.3)
    rows[80:82] = 0
    rows[82:86, ::7] = 0
    rows[86:88] *= np.float32(1e-36)  # partly denormal
    rows[88:90] *= np.float32(1e-13)
    rows[90:92] *= np.float32(1e5)
    rows[92] = np.round(rows[92] * 100)
    if dtype != "F32":
        return rows
    ordinary = [_normal(seed) * np.float32(0.02) for seed in _TELLING]
    on_a_grid = [np.round(_normal(seed) * np.float32(1 + seed % 8)) / np.float32(8) for seed in _TELLING_ON_A_GRID]
    return np.concatenate([rows, np.stack(ordinary + on_a_grid)])


def _normal(seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(N_COLUMNS).astype(np.float32)
