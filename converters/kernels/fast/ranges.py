"""The search for a scale and a minimum, shared by Q2_K, Q4_K and Q5_K, for many sub-blocks at once.

For a sub-block of weights x it finds a scale s and a minimum m ≥ 0 such that s·l − m, with l in 0…nmax, is close to x
by weighted squares. ggml tries twenty or forty candidates of an inverse scale, rounds the weights with it, and fits s
and m to the rounded weights by least squares (``make_qkx2_quants`` and ``make_qkx3_quants``, ggml-quants.c). Sub-blocks
are independent of each other: each lane has one, and does what the C code does, in the same order.
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast import vectors as v
from llamalite.converters.kernels.fast.contractions import FIRST_RANGE, LEVELS, RANGES, SECOND, STATEMENT
from llamalite.converters.kernels.fast.fused import contracts, mul_add
from llamalite.converters.kernels.fast.rounding import MAGIC, nearest_product
from llamalite.converters.kernels.fast.vectors import LANES


@v.inlined
def _extremes_and_sums(contraction: Any, x: Any, weights: Any, n: Any) -> Any:
    """Return the smallest and largest x, and the sums of w and w · x."""
    lowest = v.load(x, 0, LANES)
    highest = lowest
    sum_w = v.load(weights, 0, LANES)
    sum_x = sum_w * lowest
    for i in range(1, n):
        value = v.load(x, i * LANES, LANES)
        w = v.load(weights, i * LANES, LANES)
        lowest = v.select(value < lowest, value, lowest)
        highest = v.select(value > highest, value, highest)
        sum_w = sum_w + w
        sum_x = mul_add(contraction, STATEMENT, w, value, sum_x)
    return lowest, highest, sum_w, sum_x


@v.inlined
def _least_squares(contraction: Any, sum_w: Any, sum_x: Any, sum_l: Any, sum_l2: Any, sum_xl: Any) -> Any:
    """Return the determinant, and the scale and lower end (at most 0) that fit x to the levels best."""
    determinant = mul_add(contraction, STATEMENT, sum_w, sum_l2, -(sum_l * sum_l))
    if contracts(contraction, SECOND):
        new_scale = mul_add(contraction, SECOND, -sum_x, sum_l, sum_w * sum_xl) / determinant
    else:
        new_scale = mul_add(contraction, STATEMENT, sum_w, sum_xl, -(sum_x * sum_l)) / determinant
    new_lowest = mul_add(contraction, STATEMENT, sum_l2, sum_x, -(sum_l * sum_xl)) / determinant
    above = new_lowest > 0.0
    if v.bits(above):
        new_lowest = v.select(above, 0.0, new_lowest)
        new_scale = v.select(above, sum_xl / sum_l2, new_scale)
    return determinant, new_scale, new_lowest


@v.inlined
def search_range(
    contraction: Any,
    x: Any,
    weights: Any,
    levels: Any,
    fits: Any,
    step: Any,
    n: Any,
    nmax: Any,
    candidates: Any,
    by_magnitude: Any,
) -> None:
    """Find scale and minimum of LANES sub-blocks of `n` weights; `x`, `weights` and `levels` are float32 [n, LANES].

    `candidates` are the numerators of the inverse scales to try. The output `fits` is float32 [4, LANES] with rows
    `step` apart: scale, minimum, and the inverse scale and lower end that rounded the weights best. `levels` is scratch
    memory. `by_magnitude` compares absolute instead of squared differences.
    """
    zero = MAGIC
    top = MAGIC + nmax
    lowest, highest, sum_w, sum_x = _extremes_and_sums(contraction, x, weights, n)
    lowest = v.select(lowest > 0.0, 0.0, lowest)
    flat = highest == lowest
    flat_minimum = lowest

    inverse = v.splat(nmax, LANES) / (highest - lowest)
    scale = v.splat(1.0, LANES) / inverse
    best_inverse = inverse
    best_lowest = lowest
    best = v.splat(0.0, LANES)
    for i in range(n):
        value = v.load(x, i * LANES, LANES)
        level = nearest_product(contraction, inverse, value - lowest, zero, top) - MAGIC
        difference = mul_add(contraction, STATEMENT, scale, level, lowest) - value
        difference = v.absolute(difference) if by_magnitude else difference * difference
        best = mul_add(contraction, FIRST_RANGE, v.load(weights, i * LANES, LANES), difference, best)

    for candidate in candidates:
        inverse = v.splat(candidate, LANES) / (highest - lowest)
        sum_l = v.splat(0.0, LANES)
        sum_l2 = v.splat(0.0, LANES)
        sum_xl = v.splat(0.0, LANES)
        for i in range(n):
            value = v.load(x, i * LANES, LANES)
            level = nearest_product(contraction, inverse, value - lowest, zero, top) - MAGIC
            v.store(levels, i * LANES, level)
            w = v.load(weights, i * LANES, LANES)
            weighted = w * level
            sum_l = mul_add(contraction, LEVELS, w, level, sum_l)
            sum_l2 = mul_add(contraction, RANGES, weighted, level, sum_l2)
            sum_xl = mul_add(contraction, RANGES, weighted, value, sum_xl)
        determinant, new_scale, new_lowest = _least_squares(contraction, sum_w, sum_x, sum_l, sum_l2, sum_xl)
        error = v.splat(0.0, LANES)
        for i in range(n):
            difference = mul_add(contraction, STATEMENT, new_scale, v.load(levels, i * LANES, LANES), new_lowest)
            difference = difference - v.load(x, i * LANES, LANES)
            difference = v.absolute(difference) if by_magnitude else difference * difference
            error = mul_add(contraction, STATEMENT, v.load(weights, i * LANES, LANES), difference, error)
        better = (determinant > 0.0) & (error < best)
        best = v.select(better, error, best)
        best_inverse = v.select(better, inverse, best_inverse)
        best_lowest = v.select(better, lowest, best_lowest)
        scale = v.select(better, new_scale, scale)
        lowest = v.select(better, new_lowest, lowest)

    v.store(fits, 0, v.select(flat, 0.0, scale))
    v.store(fits, step, v.select(flat, flat_minimum, lowest) * -1.0)
    v.store(fits, 2 * step, v.select(flat, 0.0, best_inverse))
    v.store(fits, 3 * step, best_lowest)
