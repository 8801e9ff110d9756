"""Rounds the scales of a block's sub-blocks to a few bits each, one block in each SIMD lane.

Input: the float32 scales (or minima) that a search found, [n, LANES]. Output: a factor for the block, and for each
sub-block an integer in 0…nmax such that factor · integer is close to the scale.
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast import vectors as v
from llamalite.converters.kernels.fast.contractions import FITTED, STATEMENT
from llamalite.converters.kernels.fast.fused import mul_add
from llamalite.converters.kernels.fast.rounding import nearest_int, nearest_int_product
from llamalite.converters.kernels.fast.vectors import LANES

EPSILON = 1e-15  # GROUP_MAX_EPS: a group with no larger value counts as all zeros


@v.inlined
def round_scales(contraction: Any, values: Any, n: Any, nmax: Any, rounded: Any) -> Any:
    """Write each scale relative to the largest, as 0…nmax, to `rounded`, and return largest / nmax.

    The plain rule of ``quantize_row_q4_K_ref`` and its siblings (ggml-quants.c); integers are written as floats.
    """
    largest = v.splat(0.0, LANES)
    for j in range(n):
        value = v.load(values, j * LANES, LANES)
        largest = v.select(value > largest, value, largest)
    inverse = v.select(largest > 0.0, v.splat(nmax, LANES) / largest, 0.0)
    for j in range(n):
        level = nearest_int_product(contraction, inverse, v.load(values, j * LANES, LANES)) & 0xFF
        v.store(rounded, j * LANES, v.floats(level))
    return largest / v.splat(nmax, LANES)


@v.inlined
def fit_scales(contraction: Any, values: Any, weights: Any, n: Any, nmax: Any, rounded: Any) -> Any:
    """Write to `rounded` the integers that fit `values` best by weighted squares, and return their factor.

    ``make_qp_quants`` (ggml-quants.c). ggml keeps the integers in unsigned bytes, where a negative one wraps around.
    """
    largest = v.splat(0.0, LANES)
    for i in range(n):
        value = v.load(values, i * LANES, LANES)
        largest = v.select(largest > value, largest, value)
    inverse = v.splat(nmax, LANES) / largest
    scale = v.splat(1.0, LANES) / inverse
    best = v.splat(0.0, LANES)
    for i in range(n):
        value = v.load(values, i * LANES, LANES)
        difference = mul_add(
            contraction, STATEMENT, -scale, v.floats(nearest_int_product(contraction, inverse, value) & 0xFF), value
        )
        best = mul_add(contraction, FITTED, v.load(weights, i * LANES, LANES) * difference, difference, best)
    for step in range(-4, 5):
        if step != 0:
            candidate = mul_add(contraction, STATEMENT, v.splat(0.1, LANES), step, nmax) / largest
            scale = v.splat(1.0, LANES) / candidate
            error = v.splat(0.0, LANES)
            for i in range(n):
                value = v.load(values, i * LANES, LANES)
                level = nearest_int_product(contraction, candidate, value)
                difference = mul_add(
                    contraction, STATEMENT, -scale, v.floats(v.select(level < nmax, level, nmax)), value
                )
                error = mul_add(contraction, FITTED, v.load(weights, i * LANES, LANES) * difference, difference, error)
            better = error < best
            best = v.select(better, error, best)
            inverse = v.select(better, candidate, inverse)
    sum_lx = v.splat(0.0, LANES)
    sum_l2 = v.splat(0.0, LANES)
    for i in range(n):
        value = v.load(values, i * LANES, LANES)
        w = v.load(weights, i * LANES, LANES)
        integer = nearest_int_product(contraction, inverse, value)
        integer = v.select(integer < nmax, integer, nmax)
        level = v.floats(integer)
        v.store(rounded, i * LANES, v.floats(integer & 0xFF))
        sum_lx = mul_add(contraction, FITTED, w * value, level, sum_lx)
        sum_l2 = mul_add(contraction, FITTED, w * level, level, sum_l2)
    for _ in range(5):
        # Each integer in turn moves to its optimum given the others. A lane in which none moved has ended.
        moved = best < best
        for i in range(n):
            value = v.load(values, i * LANES, LANES)
            w = v.load(weights, i * LANES, LANES)
            level = v.load(rounded, i * LANES, LANES)
            lx = mul_add(contraction, STATEMENT, -(w * value), level, sum_lx)
            l2 = mul_add(contraction, STATEMENT, -(w * level), level, sum_l2)
            integer = nearest_int(value * l2 / lx)
            integer = v.select(integer < nmax, integer, nmax)
            new = v.floats(integer)
            new_lx = mul_add(contraction, STATEMENT, w * value, new, lx)
            new_l2 = mul_add(contraction, STATEMENT, w * new, new, l2)
            better = (lx > 0.0) & (l2 > 0.0) & (new != level)
            better = better & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            v.store(rounded, i * LANES, v.select(better, v.floats(integer & 0xFF), level))
            sum_lx = v.select(better, new_lx, sum_lx)
            sum_l2 = v.select(better, new_l2, sum_l2)
            moved = moved | better
        if not v.bits(moved):
            break
    empty = largest < EPSILON
    for i in range(n):
        v.store(rounded, i * LANES, v.select(empty, 0.0, v.load(rounded, i * LANES, LANES)))
    return v.select(empty, 0.0, v.select(sum_l2 > 0.0, sum_lx / sum_l2, 0.0))
