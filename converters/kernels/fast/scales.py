"""The scales of a block's sub-blocks, rounded to a few bits each: one block in each SIMD lane.

Input: the float32 scales (or minima) that a search found, [n, LANES]; output: a factor of the block and, for each
sub-block, an integer in 0…nmax, so that factor · integer is near to the scale.
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast.contractions import FITTED, STATEMENT
from llamalite.converters.kernels.fast.fused import mul_add
from llamalite.converters.kernels.fast.rounding import nearest_int, nearest_int_product
from llamalite.converters.kernels.fast.vectors import LANES, bits, floats, inlined, load, select, splat, store

EPSILON = 1e-15  # GROUP_MAX_EPS: a group whose largest value lies below is all zero


@inlined
def round_scales(how: Any, values: Any, n: Any, nmax: Any, rounded: Any) -> Any:
    """Write to `rounded` each scale as a part of the largest one, in 0…nmax, and return largest / nmax.

    The plain rule of ``quantize_row_q4_K_ref`` and its siblings (ggml-quants.c); integers are written as floats.
    """
    largest = splat(0.0, LANES)
    for j in range(n):
        value = load(values, j * LANES, LANES)
        largest = select(value > largest, value, largest)
    inverse = select(largest > 0.0, splat(nmax, LANES) / largest, 0.0)
    for j in range(n):
        level = nearest_int_product(how, inverse, load(values, j * LANES, LANES)) & 0xFF
        store(rounded, j * LANES, floats(level))
    return largest / splat(nmax, LANES)


@inlined
def fit_scales(how: Any, values: Any, weights: Any, n: Any, nmax: Any, rounded: Any) -> Any:
    """Write to `rounded` the integers that fit `values` best by weighted squares, and return their factor.

    ``make_qp_quants`` (ggml-quants.c). ggml keeps the integers in unsigned bytes, where a negative one wraps around.
    """
    largest = splat(0.0, LANES)
    for i in range(n):
        v = load(values, i * LANES, LANES)
        largest = select(largest > v, largest, v)
    inverse = splat(nmax, LANES) / largest
    scale = splat(1.0, LANES) / inverse
    best = splat(0.0, LANES)
    for i in range(n):
        v = load(values, i * LANES, LANES)
        difference = mul_add(how, STATEMENT, -scale, floats(nearest_int_product(how, inverse, v) & 0xFF), v)
        best = mul_add(how, FITTED, load(weights, i * LANES, LANES) * difference, difference, best)
    for step in range(-4, 5):
        if step != 0:
            candidate = mul_add(how, STATEMENT, splat(0.1, LANES), step, nmax) / largest
            scale = splat(1.0, LANES) / candidate
            error = splat(0.0, LANES)
            for i in range(n):
                v = load(values, i * LANES, LANES)
                level = nearest_int_product(how, candidate, v)
                difference = mul_add(how, STATEMENT, -scale, floats(select(level < nmax, level, nmax)), v)
                error = mul_add(how, FITTED, load(weights, i * LANES, LANES) * difference, difference, error)
            better = error < best
            best = select(better, error, best)
            inverse = select(better, candidate, inverse)
    sum_lx = splat(0.0, LANES)
    sum_l2 = splat(0.0, LANES)
    for i in range(n):
        v = load(values, i * LANES, LANES)
        w = load(weights, i * LANES, LANES)
        integer = nearest_int_product(how, inverse, v)
        integer = select(integer < nmax, integer, nmax)
        level = floats(integer)
        store(rounded, i * LANES, floats(integer & 0xFF))
        sum_lx = mul_add(how, FITTED, w * v, level, sum_lx)
        sum_l2 = mul_add(how, FITTED, w * level, level, sum_l2)
    for _ in range(5):
        # One integer after the other moves to where the others would have it. A lane in which none moved has ended.
        moved = best < best
        for i in range(n):
            v = load(values, i * LANES, LANES)
            w = load(weights, i * LANES, LANES)
            level = load(rounded, i * LANES, LANES)
            lx = mul_add(how, STATEMENT, -(w * v), level, sum_lx)
            l2 = mul_add(how, STATEMENT, -(w * level), level, sum_l2)
            integer = nearest_int(v * l2 / lx)
            integer = select(integer < nmax, integer, nmax)
            new = floats(integer)
            new_lx = mul_add(how, STATEMENT, w * v, new, lx)
            new_l2 = mul_add(how, STATEMENT, w * new, new, l2)
            better = (lx > 0.0) & (l2 > 0.0) & (new != level)
            better = better & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            store(rounded, i * LANES, select(better, floats(integer & 0xFF), level))
            sum_lx = select(better, new_lx, sum_lx)
            sum_l2 = select(better, new_l2, sum_l2)
            moved = moved | better
        if not bits(moved):
            break
    empty = largest < EPSILON
    for i in range(n):
        store(rounded, i * LANES, select(empty, 0.0, load(rounded, i * LANES, LANES)))
    return select(empty, 0.0, select(sum_l2 > 0.0, sum_lx / sum_l2, 0.0))
