"""Q2_K: blocks of 16 sub-blocks of 16 weights, a 4-bit scale and a 4-bit minimum to each sub-block.

One weight is d · scale · l − dmin · minimum. Bytes of a block: 16 with scales (low) and minima (high), 64 with four
weights each, d and dmin (16-bit floats). The rules are those of ``quantize_row_q2_K_ref`` and, with importance,
``quantize_row_q2_K_impl`` (ggml-quants.c).
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast.importance import importance_batch, sum_of_squares, weigh
from llamalite.converters.kernels.fast.ranges import search_range
from llamalite.converters.kernels.fast.rounding import MAGIC, halves, nearest, nearest_product, widen_halves
from llamalite.converters.kernels.fast.scales import fit_scales, round_scales
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
    splat,
    store,
    truncate,
)

_TILE = LANES * 16
_SUBS = LANES * 16
_FOUND = 4 * _SUBS
_HEADER = LANES * 20


@inlined
def _pack_scales(d: Any, m: Any, scales: Any, minima: Any, header: Any) -> None:
    """Write scales, d and dmin to `header` [20, LANES]; `scales` and `minima` become d·scale and dmin·minimum."""
    d_word, m_word = halves(d), halves(m)
    store(header, 16 * LANES, low_bytes(d_word))
    store(header, 17 * LANES, low_bytes(d_word >> 8))
    store(header, 18 * LANES, low_bytes(m_word))
    store(header, 19 * LANES, low_bytes(m_word >> 8))
    d, m = widen_halves(d_word), widen_halves(m_word)
    for j in range(16):
        both = truncate(load(scales, j * LANES, LANES)) | (truncate(load(minima, j * LANES, LANES)) << 4)
        store(header, j * LANES, low_bytes(both))
        store(scales, j * LANES, d * floats(both & 15))
        store(minima, j * LANES, m * floats((both >> 4) & 15))


def quantize(
    how: Any, source: Any, kind: Any, n_blocks: Any, room: Any, importance: Any, candidates: Any, out: Any
) -> None:
    """Quantize `n_blocks` blocks of the source to `out`; `room` is ROOM_BYTES for what lies between."""
    # The room is divided up: each part begins where the one before it ends.
    batch = floats_at(room.ctypes.data)
    importances = from_index(batch, BATCH)
    x = from_index(importances, BATCH)
    weights = from_index(x, _TILE)
    rounded = from_index(weights, _TILE)
    found = from_index(rounded, _TILE)
    sums = from_index(found, _FOUND)
    scales = from_index(sums, _SUBS)
    minima = from_index(scales, _SUBS)
    header = as_bytes(from_index(minima, _SUBS))
    levels = from_index(header, _HEADER)
    blocks = bytes_at(out.ctypes.data)
    weighted = len(importance) > 0
    for first in range(0, n_blocks, LANES):
        count = min(LANES, n_blocks - first)
        widen_batch(source, kind, first, count, batch)
        sigma2 = splat(0.0, LANES)
        if weighted:
            importance_batch(importance, first, importances)
            sigma2 = sum_of_squares(how, batch, 16, x) / 256.0
        for j in range(16):
            turn(batch, j * 16, 16, x)
            if weighted:
                turn(importances, j * 16, 16, rounded)
                store(sums, j * LANES, weigh(how, x, rounded, 16, sigma2, weights))
                search_range(how, x, weights, rounded, from_index(found, j * LANES), _SUBS, 16, 3, candidates, False)
            else:
                for i in range(16):
                    store(weights, i * LANES, absolute(load(x, i * LANES, LANES)))
                search_range(how, x, weights, rounded, from_index(found, j * LANES), _SUBS, 16, 3, candidates, True)
        if weighted:
            d = fit_scales(how, found, sums, 16, 15, scales)
            m = fit_scales(how, from_index(found, _SUBS), sums, 16, 15, minima)
        else:
            d = round_scales(how, found, 16, 15, scales)
            m = round_scales(how, from_index(found, _SUBS), 16, 15, minima)
        _pack_scales(d, m, scales, minima, header)
        for block in range(count):
            base = (first + block) * 84
            for j in range(16):
                s = j * LANES + block
                v = load(batch, block * STEP + j * 16, 16)
                if scales[s] != 0.0:
                    v = nearest((v + splat(minima[s], 16)) / splat(scales[s], 16), MAGIC, MAGIC + 3)
                else:
                    inverse, lowest = splat(found[2 * _SUBS + s], 16), splat(found[3 * _SUBS + s], 16)
                    v = nearest_product(how, inverse, v - lowest, MAGIC, MAGIC + 3)
                store(levels, j * 16, low_bytes(bits_of_floats(v)))
                blocks[base + j] = header[s]
            for half in range(2):
                a, b = load(levels, half * 128, 32), load(levels, half * 128 + 32, 32)
                c, e = load(levels, half * 128 + 64, 32), load(levels, half * 128 + 96, 32)
                store(blocks, base + 16 + half * 32, a | (b << 2) | (c << 4) | (e << 6))
            for i in range(4):
                blocks[base + 80 + i] = header[(16 + i) * LANES + block]
