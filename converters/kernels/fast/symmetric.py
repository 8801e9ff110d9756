"""The search for a scale without a minimum, shared by Q3_K and Q6_K, for many sub-blocks at once.

For a sub-block of weights x it finds a scale s such that s·l, with l in −nmax…nmax − 1, is close to x by weighted
squares. Each lane has one sub-block, and does what the C code does, in the same order.
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast import vectors as v
from llamalite.converters.kernels.fast.contractions import FIRST_SYMMETRIC, STATEMENT, SYMMETRIC
from llamalite.converters.kernels.fast.fused import mul_add
from llamalite.converters.kernels.fast.rounding import MAGIC, nearest, nearest_product
from llamalite.converters.kernels.fast.scales import EPSILON
from llamalite.converters.kernels.fast.vectors import LANES


@v.inlined
def largest_of(x: Any, n: Any) -> Any:
    """Return each lane's value of largest magnitude, the first one if there are several."""
    magnitude = v.splat(0.0, LANES)
    largest = v.splat(0.0, LANES)
    for i in range(n):
        value = v.load(x, i * LANES, LANES)
        larger = v.absolute(value) > magnitude
        magnitude = v.select(larger, v.absolute(value), magnitude)
        largest = v.select(larger, value, largest)
    return largest


@v.inlined
def search_symmetric(contraction: Any, x: Any, weights: Any, products: Any, n: Any, nmax: Any, candidates: Any) -> Any:
    """Return the scale of LANES sub-blocks of `n` values, and the inverse scale that rounded the values best.

    This is ``make_qx_quants`` with weights (ggml-quants.c). `x`, `weights` and `products` (scratch memory) are float32
    [n, LANES]. `candidates` are the numerators to try. A lane of zeros has the scale 0.
    """
    low, high = MAGIC - nmax, MAGIC + nmax - 1
    largest = largest_of(x, n)
    inverse = v.splat(-nmax, LANES) / largest
    sum_lx = v.splat(0.0, LANES)
    sum_l2 = v.splat(0.0, LANES)
    for i in range(n):
        value = v.load(x, i * LANES, LANES)
        w = v.load(weights, i * LANES, LANES)
        product = w * value
        v.store(products, i * LANES, product)
        level = nearest_product(contraction, inverse, value, low, high) - MAGIC
        sum_lx = mul_add(contraction, FIRST_SYMMETRIC, product, level, sum_lx)
        sum_l2 = mul_add(contraction, FIRST_SYMMETRIC, w * level, level, sum_l2)
    scale = v.select(sum_l2 != 0.0, sum_lx / sum_l2, 0.0)
    best = scale * sum_lx
    best_inverse = inverse
    for candidate in candidates:
        inverse = v.splat(candidate, LANES) / largest
        sum_lx = v.splat(0.0, LANES)
        sum_l2 = v.splat(0.0, LANES)
        for i in range(n):
            level = nearest_product(contraction, inverse, v.load(x, i * LANES, LANES), low, high) - MAGIC
            sum_lx = mul_add(contraction, SYMMETRIC, v.load(products, i * LANES, LANES), level, sum_lx)
            sum_l2 = mul_add(contraction, SYMMETRIC, v.load(weights, i * LANES, LANES) * level, level, sum_l2)
        better = (sum_l2 > 0.0) & (sum_lx * sum_lx > best * sum_l2)
        if v.bits(better):
            scale = v.select(better, sum_lx / sum_l2, scale)
            best = v.select(better, scale * sum_lx, best)
            best_inverse = v.select(better, inverse, best_inverse)
    return v.select(v.absolute(largest) < EPSILON, 0.0, scale), best_inverse


@v.inlined
def descend(contraction: Any, x: Any, levels: Any, n: Any, nmax: Any) -> Any:
    """Return the scale of LANES sub-blocks of `n` values, found by moving one level at a time.

    This is ``make_q3_quants`` (ggml-quants.c). The levels, −nmax…nmax − 1, are written to `levels`, which is float32
    [n, LANES] like `x`.
    """
    low, high = MAGIC - nmax, MAGIC + nmax - 1
    largest = largest_of(x, n)
    inverse = v.splat(-nmax, LANES) / largest
    sum_lx = v.splat(0.0, LANES)
    sum_l2 = v.splat(0.0, LANES)
    for i in range(n):
        value = v.load(x, i * LANES, LANES)
        w = value * value
        level = nearest_product(contraction, inverse, value, low, high) - MAGIC
        v.store(levels, i * LANES, level)
        sum_lx = mul_add(contraction, STATEMENT, w * value, level, sum_lx)
        sum_l2 = mul_add(contraction, STATEMENT, w * level, level, sum_l2)
    for _ in range(5):
        # A lane in which no level moved does not change any more, as if it had stopped.
        moved = inverse < inverse
        for i in range(n):
            value = v.load(x, i * LANES, LANES)
            w = value * value
            level = v.load(levels, i * LANES, LANES)
            lx = mul_add(contraction, STATEMENT, -(w * value), level, sum_lx)
            l2 = mul_add(contraction, STATEMENT, -(w * level), level, sum_l2)
            new = nearest(value * l2 / lx, low, high) - MAGIC
            new_lx = mul_add(contraction, STATEMENT, w * value, new, lx)
            new_l2 = mul_add(contraction, STATEMENT, w * new, new, l2)
            better = (lx > 0.0) & (new != level) & (new_l2 > 0.0)
            better = better & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            v.store(levels, i * LANES, v.select(better, new, level))
            sum_lx = v.select(better, new_lx, sum_lx)
            sum_l2 = v.select(better, new_l2, sum_l2)
            moved = moved | better
        if not v.bits(moved):
            break
    return v.select(v.absolute(largest) < EPSILON, 0.0, v.select(sum_l2 > 0.0, sum_lx / sum_l2, 0.0))
