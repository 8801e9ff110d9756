"""Q2_K: blocks of 16 sub-blocks of 16 weights, with a 4-bit scale and a 4-bit minimum for each sub-block.

One weight is d · scale · l − dmin · minimum. Bytes of a block: 16 of scales (low bits) and minima (high bits), 64 with
four weights each, d and dmin (16-bit floats). The rules are those of ``quantize_row_q2_K_ref`` and, with importance,
``quantize_row_q2_K_impl`` (ggml-quants.c).
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast import vectors as v
from llamalite.converters.kernels.fast.importance import importance_batch, sum_of_squares, weigh
from llamalite.converters.kernels.fast.ranges import search_range
from llamalite.converters.kernels.fast.rounding import MAGIC, halves, nearest, nearest_product, widen_halves
from llamalite.converters.kernels.fast.scales import fit_scales, round_scales
from llamalite.converters.kernels.fast.tiles import STEP, divide, store_words, turn, widen_batch
from llamalite.converters.kernels.fast.vectors import LANES

_SUBS = LANES * 16
_FITS = 4 * _SUBS
_HEADER = LANES * 20


@v.inlined
def _pack_scales(d: Any, m: Any, scales: Any, minima: Any, header: Any) -> None:
    """Write scales, d and dmin to `header` [20, LANES]; `scales` and `minima` become d·scale and dmin·minimum."""
    d_word, m_word = halves(d), halves(m)
    store_words(header, 16 * LANES, d_word)
    store_words(header, 18 * LANES, m_word)
    d, m = widen_halves(d_word), widen_halves(m_word)
    for j in range(16):
        both = v.truncate(v.load(scales, j * LANES, LANES)) | (v.truncate(v.load(minima, j * LANES, LANES)) << 4)
        v.store(header, j * LANES, v.low_bytes(both))
        v.store(scales, j * LANES, d * v.floats(both & 15))
        v.store(minima, j * LANES, m * v.floats((both >> 4) & 15))


def quantize(
    contraction: Any, source: Any, kind: Any, n_blocks: Any, scratch: Any, importance: Any, candidates: Any, out: Any
) -> None:
    """Quantize `n_blocks` blocks of the source to `out`; `scratch` is SCRATCH_BYTES of scratch memory."""
    batch, importances, x, weights, rounded, fits = divide(scratch, 16)
    sums = v.from_index(fits, _FITS)
    scales = v.from_index(sums, _SUBS)
    minima = v.from_index(scales, _SUBS)
    header = v.as_bytes(v.from_index(minima, _SUBS))
    levels = v.from_index(header, _HEADER)
    blocks = v.bytes_at(out.ctypes.data)
    weighted = len(importance) > 0
    for first in range(0, n_blocks, LANES):
        count = min(LANES, n_blocks - first)
        widen_batch(source, kind, first, count, batch)
        sigma2 = v.splat(0.0, LANES)
        if weighted:
            importance_batch(importance, first, importances)
            sigma2 = sum_of_squares(contraction, batch, 16, x) / 256.0
        for j in range(16):
            turn(batch, j * 16, 16, x)
            if weighted:
                turn(importances, j * 16, 16, rounded)
                v.store(sums, j * LANES, weigh(contraction, x, rounded, 16, sigma2, weights))
                search_range(
                    contraction, x, weights, rounded, v.from_index(fits, j * LANES), _SUBS, 16, 3, candidates, False
                )
            else:
                for i in range(16):
                    v.store(weights, i * LANES, v.absolute(v.load(x, i * LANES, LANES)))
                search_range(
                    contraction, x, weights, rounded, v.from_index(fits, j * LANES), _SUBS, 16, 3, candidates, True
                )
        if weighted:
            d = fit_scales(contraction, fits, sums, 16, 15, scales)
            m = fit_scales(contraction, v.from_index(fits, _SUBS), sums, 16, 15, minima)
        else:
            d = round_scales(contraction, fits, 16, 15, scales)
            m = round_scales(contraction, v.from_index(fits, _SUBS), 16, 15, minima)
        _pack_scales(d, m, scales, minima, header)
        for block in range(count):
            base = (first + block) * 84
            for j in range(16):
                s = j * LANES + block
                value = v.load(batch, block * STEP + j * 16, 16)
                if scales[s] != 0.0:
                    value = nearest((value + v.splat(minima[s], 16)) / v.splat(scales[s], 16), MAGIC, MAGIC + 3)
                else:
                    inverse, lowest = v.splat(fits[2 * _SUBS + s], 16), v.splat(fits[3 * _SUBS + s], 16)
                    value = nearest_product(contraction, inverse, value - lowest, MAGIC, MAGIC + 3)
                v.store(levels, j * 16, v.low_bytes(v.bits_of_floats(value)))
                blocks[base + j] = header[s]
            for half in range(2):
                a, b = v.load(levels, half * 128, 32), v.load(levels, half * 128 + 32, 32)
                c, e = v.load(levels, half * 128 + 64, 32), v.load(levels, half * 128 + 96, 32)
                v.store(blocks, base + 16 + half * 32, a | (b << 2) | (c << 4) | (e << 6))
            for i in range(4):
                blocks[base + 80 + i] = header[(16 + i) * LANES + block]
