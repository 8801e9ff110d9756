"""Q6_K: blocks of 16 sub-blocks of 16 weights, an 8-bit scale to each sub-block.

One weight is d · scale · (l − 32). Bytes of a block: 128 with the low four bits of l, 64 with the high two, 16 scales,
and d (a 16-bit float). The rules are those of ``quantize_row_q6_K_ref`` and, with importance,
``quantize_row_q6_K_impl`` (ggml-quants.c).
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast.contractions import CALLED, SYMMETRIC
from llamalite.converters.kernels.fast.fused import contracts, without
from llamalite.converters.kernels.fast.importance import importance_batch
from llamalite.converters.kernels.fast.rounding import (
    MAGIC,
    halves,
    nearest,
    nearest_int_product,
    nearest_product,
    widen_halves,
)
from llamalite.converters.kernels.fast.scales import EPSILON
from llamalite.converters.kernels.fast.symmetric import largest_of, search_symmetric
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
)

_TILE = LANES * 16
_SUBS = LANES * 16
_HEADER = LANES * 18


@inlined
def _pack_scales(how: Any, scales: Any, sizes: Any, header: Any) -> None:
    """Write the last 18 bytes of each block to `header` [18, LANES]; `scales` become d·scale."""
    largest = largest_of(scales, 16)
    empty = absolute(largest) < EPSILON
    inverse = splat(-128.0, LANES) / largest
    d_word = select(empty, 0, halves(splat(1.0, LANES) / inverse))
    d = widen_halves(d_word)
    store(header, 16 * LANES, low_bytes(d_word))
    store(header, 17 * LANES, low_bytes(d_word >> 8))
    for j in range(16):
        level = nearest_int_product(how, inverse, load(scales, j * LANES, LANES))
        level = select(empty, 0, select(level < 127, level, 127))
        store(header, j * LANES, low_bytes(level))
        signed = ((level & 0xFF) ^ 0x80) - 0x80
        store(scales, j * LANES, d * floats(signed))
        store(sizes, j * LANES, select(empty, 0.0, load(sizes, j * LANES, LANES)))


def quantize(
    how: Any, source: Any, kind: Any, n_blocks: Any, room: Any, importance: Any, candidates: Any, out: Any
) -> None:
    """Quantize `n_blocks` blocks of the source to `out`; `room` is ROOM_BYTES for what lies between."""
    # The room is divided up: each part begins where the one before it ends.
    batch = floats_at(room.ctypes.data)
    importances = from_index(batch, BATCH)
    x = from_index(importances, BATCH)
    weights = from_index(x, _TILE)
    products = from_index(weights, _TILE)
    scales = from_index(products, _TILE)
    inverses = from_index(scales, _SUBS)
    sizes = from_index(inverses, _SUBS)
    header = as_bytes(from_index(sizes, _SUBS))
    levels = from_index(header, _HEADER)
    blocks = bytes_at(out.ctypes.data)
    weighted = len(importance) > 0
    for first in range(0, n_blocks, LANES):
        count = min(LANES, n_blocks - first)
        widen_batch(source, kind, first, count, batch)
        if weighted:
            importance_batch(importance, first, importances)
        for j in range(16):
            turn(batch, j * 16, 16, x)
            if weighted:
                turn(importances, j * 16, 16, weights)
            else:
                for i in range(16):
                    v = load(x, i * LANES, LANES)
                    store(weights, i * LANES, v * v)
            if contracts(how, CALLED) and weighted and j == 0:
                scale, inverse = search_symmetric(without(how, SYMMETRIC), x, weights, products, 16, 32, candidates)
            else:
                scale, inverse = search_symmetric(how, x, weights, products, 16, 32, candidates)
            store(scales, j * LANES, scale)
            store(inverses, j * LANES, inverse)
            store(sizes, j * LANES, absolute(largest_of(x, 16)))
        _pack_scales(how, scales, sizes, header)
        for block in range(count):
            for j in range(16):
                s = j * LANES + block
                v = load(batch, block * STEP + j * 16, 16)
                if scales[s] != 0.0:
                    v = nearest(v / splat(scales[s], 16), MAGIC - 32, MAGIC + 31)
                else:
                    v = nearest_product(how, splat(inverses[s], 16), v, MAGIC - 32, MAGIC + 31)
                rounded = low_bytes(bits_of_floats(v)) + 32
                if scales[s] == 0.0 and sizes[s] < EPSILON:
                    rounded = rounded & 0
                store(levels, j * 16, rounded)
            base = (first + block) * 210
            for half in range(2):
                a, b = load(levels, half * 128, 32), load(levels, half * 128 + 32, 32)
                c, d = load(levels, half * 128 + 64, 32), load(levels, half * 128 + 96, 32)
                store(blocks, base + half * 64, (a & 15) | (c << 4))
                store(blocks, base + half * 64 + 32, (b & 15) | (d << 4))
                high = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6)
                store(blocks, base + 128 + half * 32, high)
            for i in range(18):
                blocks[base + 192 + i] = header[i * LANES + block]
