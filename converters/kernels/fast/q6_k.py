"""Q6_K: blocks of 16 sub-blocks of 16 weights, with an 8-bit scale for each sub-block.

One weight is d · scale · (l − 32). Bytes of a block: 128 with the low four bits of l, 64 with the high two, 16 scales,
and d (a 16-bit float). The rules are those of ``quantize_row_q6_K_ref`` and, with importance,
``quantize_row_q6_K_impl`` (ggml-quants.c).
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast import vectors as v
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
from llamalite.converters.kernels.fast.tiles import STEP, divide, store_words, turn, widen_batch
from llamalite.converters.kernels.fast.vectors import LANES

_SUBS = LANES * 16
_HEADER = LANES * 18


@v.inlined
def _pack_scales(contraction: Any, scales: Any, sizes: Any, header: Any) -> None:
    """Write the last 18 bytes of each block to `header` [18, LANES]; `scales` become d·scale."""
    largest = largest_of(scales, 16)
    empty = v.absolute(largest) < EPSILON
    inverse = v.splat(-128.0, LANES) / largest
    d_word = v.select(empty, 0, halves(v.splat(1.0, LANES) / inverse))
    d = widen_halves(d_word)
    store_words(header, 16 * LANES, d_word)
    for j in range(16):
        level = nearest_int_product(contraction, inverse, v.load(scales, j * LANES, LANES))
        level = v.select(empty, 0, v.select(level < 127, level, 127))
        v.store(header, j * LANES, v.low_bytes(level))
        signed = ((level & 0xFF) ^ 0x80) - 0x80
        v.store(scales, j * LANES, d * v.floats(signed))
        v.store(sizes, j * LANES, v.select(empty, 0.0, v.load(sizes, j * LANES, LANES)))


def quantize(
    contraction: Any, source: Any, kind: Any, n_blocks: Any, scratch: Any, importance: Any, candidates: Any, out: Any
) -> None:
    """Quantize `n_blocks` blocks of the source to `out`; `scratch` is SCRATCH_BYTES of scratch memory."""
    batch, importances, x, weights, products, scales = divide(scratch, 16)
    inverses = v.from_index(scales, _SUBS)
    sizes = v.from_index(inverses, _SUBS)
    header = v.as_bytes(v.from_index(sizes, _SUBS))
    levels = v.from_index(header, _HEADER)
    blocks = v.bytes_at(out.ctypes.data)
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
                    value = v.load(x, i * LANES, LANES)
                    v.store(weights, i * LANES, value * value)
            if contracts(contraction, CALLED) and weighted and j == 0:
                scale, inverse = search_symmetric(
                    without(contraction, SYMMETRIC), x, weights, products, 16, 32, candidates
                )
            else:
                scale, inverse = search_symmetric(contraction, x, weights, products, 16, 32, candidates)
            v.store(scales, j * LANES, scale)
            v.store(inverses, j * LANES, inverse)
            v.store(sizes, j * LANES, v.absolute(largest_of(x, 16)))
        _pack_scales(contraction, scales, sizes, header)
        for block in range(count):
            for j in range(16):
                s = j * LANES + block
                value = v.load(batch, block * STEP + j * 16, 16)
                if scales[s] != 0.0:
                    value = nearest(value / v.splat(scales[s], 16), MAGIC - 32, MAGIC + 31)
                else:
                    value = nearest_product(contraction, v.splat(inverses[s], 16), value, MAGIC - 32, MAGIC + 31)
                rounded = v.low_bytes(v.bits_of_floats(value)) + 32
                if scales[s] == 0.0 and sizes[s] < EPSILON:
                    rounded = rounded & 0
                v.store(levels, j * 16, rounded)
            base = (first + block) * 210
            for half in range(2):
                a, b = v.load(levels, half * 128, 32), v.load(levels, half * 128 + 32, 32)
                c, d = v.load(levels, half * 128 + 64, 32), v.load(levels, half * 128 + 96, 32)
                v.store(blocks, base + half * 64, (a & 15) | (c << 4))
                v.store(blocks, base + half * 64 + 32, (b & 15) | (d << 4))
                high = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6)
                v.store(blocks, base + 128 + half * 32, high)
            for i in range(18):
                blocks[base + 192 + i] = header[i * LANES + block]
