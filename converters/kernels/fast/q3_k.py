"""Q3_K: blocks of 16 sub-blocks of 16 weights, with a 6-bit scale for each sub-block.

One weight is d · (scale − 32) · (l − 4). Bytes of a block: 32 with the third bits of l, 64 with the low two, 12 of
scales, and d (a 16-bit float). The rules are those of ``quantize_row_q3_K_ref`` and, with importance,
``quantize_row_q3_K_impl`` (ggml-quants.c).
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast import vectors as v
from llamalite.converters.kernels.fast.importance import importance_batch, sum_of_squares, weigh
from llamalite.converters.kernels.fast.rounding import (
    MAGIC,
    halves,
    nearest,
    nearest_int_product,
    nearest_product,
    widen_halves,
)
from llamalite.converters.kernels.fast.scales import EPSILON
from llamalite.converters.kernels.fast.symmetric import descend, largest_of, search_symmetric
from llamalite.converters.kernels.fast.tiles import STEP, divide, store_words, turn, widen_batch
from llamalite.converters.kernels.fast.vectors import LANES

_SUBS = LANES * 16
_HEADER = LANES * 14
_LEVELS = LANES * 256


@v.inlined
def _round_scales(contraction: Any, scales: Any, rounded: Any) -> Any:
    """Write each scale relative to the largest, as 0…63 for −32…31, to `rounded`, as floats; return the factor."""
    largest = largest_of(scales, 16)
    none = largest == 0.0
    inverse = v.splat(-32.0, LANES) / largest
    for j in range(16):
        level = ((nearest_int_product(contraction, inverse, v.load(scales, j * LANES, LANES)) & 0xFF) ^ 0x80) - 0x80
        level = v.select(level < 31, level, 31)
        level = v.select(level > -32, level, -32) + 32
        v.store(rounded, j * LANES, v.select(none, 0.0, v.floats(level)))
    return v.select(none, 0.0, v.splat(1.0, LANES) / inverse)


@v.inlined
def _search_scales(contraction: Any, scales: Any, sums: Any, products: Any, candidates: Any, rounded: Any) -> Any:
    """As `_round_scales`, but with a search for the best factor: scales are quantized like weights."""
    factor, inverse = search_symmetric(contraction, scales, sums, products, 16, 32, candidates)
    empty = v.absolute(largest_of(scales, 16)) < EPSILON
    for j in range(16):
        level = nearest_product(contraction, inverse, v.load(scales, j * LANES, LANES), MAGIC - 32, MAGIC + 31) - (
            MAGIC - 32
        )
        v.store(rounded, j * LANES, v.select(empty, 0.0, level))
    return factor


@v.inlined
def _pack_scales(d: Any, rounded: Any, header: Any, scales: Any) -> None:
    """Write the last 14 bytes of each block to `header` [14, LANES], and d·(scale − 32) to `scales`."""
    d_word = halves(d)
    store_words(header, 12 * LANES, d_word)
    d = widen_halves(d_word)
    for j in range(8):
        a, b = v.truncate(v.load(rounded, j * LANES, LANES)), v.truncate(v.load(rounded, (j + 8) * LANES, LANES))
        v.store(header, j * LANES, v.low_bytes((a & 15) | ((b & 15) << 4)))
    for k in range(4):
        a, b = v.truncate(v.load(rounded, k * LANES, LANES)), v.truncate(v.load(rounded, (k + 4) * LANES, LANES))
        c, e = v.truncate(v.load(rounded, (k + 8) * LANES, LANES)), v.truncate(v.load(rounded, (k + 12) * LANES, LANES))
        high = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6)
        v.store(header, (8 + k) * LANES, v.low_bytes(high))
    for j in range(16):
        v.store(scales, j * LANES, d * (v.load(rounded, j * LANES, LANES) - 32.0))


@v.inlined
def _keep_levels(values: Any, low: Any, sizes: Any, j: Any, levels: Any) -> None:
    """Write a sub-block's levels minus `low` as bytes to `levels`; 0 if all values are zero."""
    empty = sizes < EPSILON
    for i in range(16):
        level = v.load(values, i * LANES, LANES) - low
        v.store(levels, (j * 16 + i) * LANES, v.low_bytes(v.truncate(v.select(empty, 0.0, level))))


def quantize(
    contraction: Any,
    source: Any,
    kind: Any,
    n_blocks: Any,
    scratch: Any,
    importance: Any,
    candidates: Any,
    scale_candidates: Any,
    out: Any,
) -> None:
    """Quantize `n_blocks` blocks of the source to `out`; `scratch` is SCRATCH_BYTES of scratch memory."""
    batch, importances, x, weights, rounded, sums = divide(scratch, 16)
    scales = v.from_index(sums, _SUBS)
    scale_levels = v.from_index(scales, _SUBS)
    header = v.as_bytes(v.from_index(scale_levels, _SUBS))
    levels = v.from_index(header, _HEADER)
    searched = v.from_index(levels, 256)
    blocks = v.bytes_at(out.ctypes.data)
    weighted = len(importance) > 0
    for first in range(0, n_blocks, LANES):
        count = min(LANES, n_blocks - first)
        widen_batch(source, kind, first, count, batch)
        sigma2 = v.splat(0.0, LANES)
        if weighted:
            importance_batch(importance, first, importances)
            sigma2 = sum_of_squares(contraction, batch, 16, x) * 2.0 / 256.0
        for j in range(16):
            turn(batch, j * 16, 16, x)
            if weighted:
                turn(importances, j * 16, 16, rounded)
                v.store(sums, j * LANES, weigh(contraction, x, rounded, 16, sigma2, weights))
                scale, inverse = search_symmetric(contraction, x, weights, rounded, 16, 4, candidates)
                for i in range(16):
                    level = (
                        nearest_product(contraction, inverse, v.load(x, i * LANES, LANES), MAGIC - 4, MAGIC + 3) - MAGIC
                    )
                    v.store(rounded, i * LANES, level)
            else:
                scale = descend(contraction, x, rounded, 16, 4)
            v.store(scales, j * LANES, scale)
            _keep_levels(rounded, -4.0, v.absolute(largest_of(x, 16)), j, searched)
        if weighted:
            d = _search_scales(contraction, scales, sums, rounded, scale_candidates, scale_levels)
        else:
            d = _round_scales(contraction, scales, scale_levels)
        _pack_scales(d, scale_levels, header, scales)
        for block in range(count):
            base = (first + block) * 110
            for j in range(16):
                scale = scales[j * LANES + block]
                if scale != 0.0:
                    value = v.load(batch, block * STEP + j * 16, 16) / v.splat(scale, 16)
                    v.store(levels, j * 16, v.low_bytes(v.bits_of_floats(nearest(value, MAGIC - 4, MAGIC + 3))) + 4)
                else:
                    for i in range(16):
                        levels[j * 16 + i] = searched[(j * 16 + i) * LANES + block]
            high = v.load(levels, 0, 32) >> 2
            for k in range(1, 8):
                high = high | ((v.load(levels, k * 32, 32) >> 2) << k)
            v.store(blocks, base, high)
            for half in range(2):
                a, b = v.load(levels, half * 128, 32) & 3, v.load(levels, half * 128 + 32, 32) & 3
                c, e = v.load(levels, half * 128 + 64, 32) & 3, v.load(levels, half * 128 + 96, 32) & 3
                v.store(blocks, base + 32 + half * 32, a | (b << 2) | (c << 4) | (e << 6))
            for i in range(14):
                blocks[base + 96 + i] = header[i * LANES + block]
