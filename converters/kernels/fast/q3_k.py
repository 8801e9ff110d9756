"""Q3_K: blocks of 16 sub-blocks of 16 weights, a 6-bit scale to each sub-block.

One weight is d · (scale − 32) · (l − 4). Bytes of a block: 32 with the third bits of l, 64 with the low two, 12 of
scales, and d (a 16-bit float). The rules are those of ``quantize_row_q3_K_ref`` and, with importance,
``quantize_row_q3_K_impl`` (ggml-quants.c).
"""

from __future__ import annotations

from typing import Any

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
from llamalite.converters.kernels.fast.tiles import BATCH, STEP, turn, widen_batch
from llamalite.converters.kernels.fast.vectors import (
    LANES,
    absolute,
    as_bytes,
    bits_of_floats,
    bytes_at,
    floats,
    floats_at,
    from_index,
    inlined,
    load,
    low_bytes,
    select,
    splat,
    store,
    truncate,
)

_TILE = LANES * 16
_SUBS = LANES * 16
_HEADER = LANES * 14
_LEVELS = LANES * 256


@inlined
def _round_scales(how: Any, scales: Any, rounded: Any) -> Any:
    """Write each scale as a part of the largest, 0…63 for −32…31, to `rounded`, as floats; return the factor."""
    largest = largest_of(scales, 16)
    none = largest == 0.0
    inverse = splat(-32.0, LANES) / largest
    for j in range(16):
        level = ((nearest_int_product(how, inverse, load(scales, j * LANES, LANES)) & 0xFF) ^ 0x80) - 0x80
        level = select(level < 31, level, 31)
        level = select(level > -32, level, -32) + 32
        store(rounded, j * LANES, select(none, 0.0, floats(level)))
    return select(none, 0.0, splat(1.0, LANES) / inverse)


@inlined
def _search_scales(how: Any, scales: Any, sums: Any, products: Any, candidates: Any, rounded: Any) -> Any:
    """The same, by a search for the best factor: the scales of the weights are themselves quantized as weights are."""
    factor, inverse = search_symmetric(how, scales, sums, products, 16, 32, candidates)
    empty = absolute(largest_of(scales, 16)) < EPSILON
    for j in range(16):
        level = nearest_product(how, inverse, load(scales, j * LANES, LANES), MAGIC - 32, MAGIC + 31) - (MAGIC - 32)
        store(rounded, j * LANES, select(empty, 0.0, level))
    return factor


@inlined
def _pack_scales(d: Any, rounded: Any, header: Any, scales: Any) -> None:
    """Write the last 14 bytes of each block to `header` [14, LANES], and d·(scale − 32) to `scales`."""
    d_word = halves(d)
    store(header, 12 * LANES, low_bytes(d_word))
    store(header, 13 * LANES, low_bytes(d_word >> 8))
    d = widen_halves(d_word)
    for j in range(8):
        a, b = truncate(load(rounded, j * LANES, LANES)), truncate(load(rounded, (j + 8) * LANES, LANES))
        store(header, j * LANES, low_bytes((a & 15) | ((b & 15) << 4)))
    for k in range(4):
        a, b = truncate(load(rounded, k * LANES, LANES)), truncate(load(rounded, (k + 4) * LANES, LANES))
        c, e = truncate(load(rounded, (k + 8) * LANES, LANES)), truncate(load(rounded, (k + 12) * LANES, LANES))
        high = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6)
        store(header, (8 + k) * LANES, low_bytes(high))
    for j in range(16):
        store(scales, j * LANES, d * (load(rounded, j * LANES, LANES) - 32.0))


@inlined
def _keep_levels(values: Any, low: Any, sizes: Any, j: Any, levels: Any) -> None:
    """Write a sub-block's levels as bytes, counted from `low`, to `levels`; 0 where all values are zero."""
    empty = sizes < EPSILON
    for i in range(16):
        level = load(values, i * LANES, LANES) - low
        store(levels, (j * 16 + i) * LANES, low_bytes(truncate(select(empty, 0.0, level))))


def quantize(
    how: Any,
    source: Any,
    kind: Any,
    n_blocks: Any,
    room: Any,
    importance: Any,
    candidates: Any,
    scale_candidates: Any,
    out: Any,
) -> None:
    """Quantize `n_blocks` blocks of the source to `out`; `room` is ROOM_BYTES for what lies between."""
    # The room is divided up: each part begins where the one before it ends.
    batch = floats_at(room.ctypes.data)
    importances = from_index(batch, BATCH)
    x = from_index(importances, BATCH)
    weights = from_index(x, _TILE)
    rounded = from_index(weights, _TILE)
    sums = from_index(rounded, _TILE)
    scales = from_index(sums, _SUBS)
    scale_levels = from_index(scales, _SUBS)
    header = as_bytes(from_index(scale_levels, _SUBS))
    levels = from_index(header, _HEADER)
    searched = from_index(levels, 256)
    blocks = bytes_at(out.ctypes.data)
    weighted = len(importance) > 0
    for first in range(0, n_blocks, LANES):
        count = min(LANES, n_blocks - first)
        widen_batch(source, kind, first, count, batch)
        sigma2 = splat(0.0, LANES)
        if weighted:
            importance_batch(importance, first, importances)
            sigma2 = sum_of_squares(how, batch, 16, x) * 2.0 / 256.0
        for j in range(16):
            turn(batch, j * 16, 16, x)
            if weighted:
                turn(importances, j * 16, 16, rounded)
                store(sums, j * LANES, weigh(how, x, rounded, 16, sigma2, weights))
                scale, inverse = search_symmetric(how, x, weights, rounded, 16, 4, candidates)
                for i in range(16):
                    level = nearest_product(how, inverse, load(x, i * LANES, LANES), MAGIC - 4, MAGIC + 3) - MAGIC
                    store(rounded, i * LANES, level)
            else:
                scale = descend(how, x, rounded, 16, 4)
            store(scales, j * LANES, scale)
            _keep_levels(rounded, -4.0, absolute(largest_of(x, 16)), j, searched)
        if weighted:
            d = _search_scales(how, scales, sums, rounded, scale_candidates, scale_levels)
        else:
            d = _round_scales(how, scales, scale_levels)
        _pack_scales(d, scale_levels, header, scales)
        for block in range(count):
            base = (first + block) * 110
            for j in range(16):
                scale = scales[j * LANES + block]
                if scale != 0.0:
                    v = load(batch, block * STEP + j * 16, 16) / splat(scale, 16)
                    store(levels, j * 16, low_bytes(bits_of_floats(nearest(v, MAGIC - 4, MAGIC + 3))) + 4)
                else:
                    for i in range(16):
                        levels[j * 16 + i] = searched[(j * 16 + i) * LANES + block]
            high = load(levels, 0, 32) >> 2
            for k in range(1, 8):
                high = high | ((load(levels, k * 32, 32) >> 2) << k)
            store(blocks, base, high)
            for half in range(2):
                a, b = load(levels, half * 128, 32) & 3, load(levels, half * 128 + 32, 32) & 3
                c, e = load(levels, half * 128 + 64, 32) & 3, load(levels, half * 128 + 96, 32) & 3
                store(blocks, base + 32 + half * 32, a | (b << 2) | (c << 4) | (e << 6))
            for i in range(14):
                blocks[base + 96 + i] = header[i * LANES + block]
