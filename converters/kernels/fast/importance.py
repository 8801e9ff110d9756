"""From a row of an importance matrix to the weights of a search's squared errors."""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast import vectors as v
from llamalite.converters.kernels.fast.contractions import BLOCK_SQUARES, STATEMENT
from llamalite.converters.kernels.fast.fused import mul_add
from llamalite.converters.kernels.fast.tiles import STEP, turn
from llamalite.converters.kernels.fast.vectors import LANES


@v.inlined
def importance_batch(importance: Any, first: Any, batch: Any) -> None:
    """Write the importance of the blocks from `first` on to `batch`; the row of importances repeats."""
    source = v.floats_at(importance.ctypes.data)
    blocks_per_row = len(importance) // 256
    for block in range(LANES):
        at = (first + block) % blocks_per_row * 256
        for i in range(0, 256, 32):
            v.store(batch, block * STEP + i, v.load(source, at + i, 32))


@v.inlined
def weigh(contraction: Any, x: Any, importances: Any, n: Any, sigma2: Any, weights: Any) -> Any:
    """Write importance · √(sigma2 + x²) to `weights` (all are [n, LANES]), and return the sum over n."""
    total = v.splat(0.0, LANES)
    for i in range(n):
        value = v.load(x, i * LANES, LANES)
        w = v.load(importances, i * LANES, LANES) * v.square_root(mul_add(contraction, STATEMENT, value, value, sigma2))
        v.store(weights, i * LANES, w)
        total = total + w
    return total


@v.inlined
def sum_of_squares(contraction: Any, batch: Any, n: Any, x: Any) -> Any:
    """Return the sum of squares of each block of a batch, added in order; `x` is scratch memory for a tile of `n`."""
    squares = v.splat(0.0, LANES)
    for start in range(0, 256, n):
        turn(batch, start, n, x)
        for i in range(n):
            value = v.load(x, i * LANES, LANES)
            squares = mul_add(contraction, BLOCK_SQUARES, value, value, squares)
    return squares
