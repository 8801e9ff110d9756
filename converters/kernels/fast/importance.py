"""An importance matrix's row, turned into the weights of the squares that a search adds up."""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast.contractions import BLOCK_SQUARES, STATEMENT
from llamalite.converters.kernels.fast.fused import mul_add
from llamalite.converters.kernels.fast.tiles import STEP, turn
from llamalite.converters.kernels.fast.vectors import LANES, floats_at, inlined, load, splat, square_root, store


@inlined
def importance_batch(importance: Any, first: Any, batch: Any) -> None:
    """Write to `batch` the importance of each weight of the blocks from ``first`` on: a row's, over and over."""
    source = floats_at(importance.ctypes.data)
    blocks_per_row = len(importance) // 256
    for block in range(LANES):
        at = (first + block) % blocks_per_row * 256
        for i in range(0, 256, 32):
            store(batch, block * STEP + i, load(source, at + i, 32))


@inlined
def weigh(how: Any, x: Any, importances: Any, n: Any, sigma2: Any, weights: Any) -> Any:
    """Write importance · √(sigma2 + x²) to `weights`, all [n, LANES], and return its sum over n."""
    total = splat(0.0, LANES)
    for i in range(n):
        v = load(x, i * LANES, LANES)
        w = load(importances, i * LANES, LANES) * square_root(mul_add(how, STATEMENT, v, v, sigma2))
        store(weights, i * LANES, w)
        total = total + w
    return total


@inlined
def sum_of_squares(how: Any, batch: Any, n: Any, x: Any) -> Any:
    """The sum of the squares of each block of a batch, added up in order; `x` is room for a tile of `n`."""
    squares = splat(0.0, LANES)
    for start in range(0, 256, n):
        turn(batch, start, n, x)
        for i in range(n):
            v = load(x, i * LANES, LANES)
            squares = mul_add(how, BLOCK_SQUARES, v, v, squares)
    return squares
