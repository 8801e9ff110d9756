"""Q4_K and Q5_K: blocks of 8 sub-blocks of 32 weights, with a 6-bit scale and a 6-bit minimum for each sub-block.

One weight is d · scale · l − dmin · minimum. Bytes of a block: d and dmin (16-bit floats), 12 of scales and minima, for
Q5_K 32 with the fifth bits, and 128 with the low four bits. The rules are those of ``quantize_row_q4_K_ref``,
``quantize_row_q4_K_impl`` (with importance) and their twins for Q5_K (ggml-quants.c).
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast import vectors as v
from llamalite.converters.kernels.fast.contractions import SQUARES
from llamalite.converters.kernels.fast.fused import mul_add
from llamalite.converters.kernels.fast.importance import importance_batch, sum_of_squares, weigh
from llamalite.converters.kernels.fast.ranges import search_range
from llamalite.converters.kernels.fast.rounding import MAGIC, halves, nearest, nearest_product, widen_halves
from llamalite.converters.kernels.fast.scales import fit_scales, round_scales
from llamalite.converters.kernels.fast.tiles import STEP, divide, store_words, turn, widen_batch
from llamalite.converters.kernels.fast.vectors import LANES

_SUBS = LANES * 8
_FITS = 4 * _SUBS
_HEADER = LANES * 16


@v.inlined
def _plain_weights(contraction: Any, x: Any, weights: Any) -> None:
    squares = v.splat(0.0, LANES)
    for i in range(32):
        value = v.load(x, i * LANES, LANES)
        squares = mul_add(contraction, SQUARES, value, value, squares)
    average = v.square_root(squares / 32.0)
    for i in range(32):
        v.store(weights, i * LANES, average + v.absolute(v.load(x, i * LANES, LANES)))


@v.inlined
def _pack_header(d: Any, m: Any, scales: Any, minima: Any, limit: Any, header: Any) -> None:
    """Write the first 16 bytes of each block to `header` [16, LANES].

    `scales` and `minima` become d·scale and dmin·minimum. Integers are capped at `limit`.
    """
    d_word, m_word = halves(d), halves(m)
    store_words(header, 0, d_word)
    store_words(header, 2 * LANES, m_word)
    d, m = widen_halves(d_word), widen_halves(m_word)
    for j in range(4):
        low, high = j * LANES, (j + 4) * LANES
        s0, s4 = v.truncate(v.load(scales, low, LANES)), v.truncate(v.load(scales, high, LANES))
        m0, m4 = v.truncate(v.load(minima, low, LANES)), v.truncate(v.load(minima, high, LANES))
        s0, s4 = v.select(s0 < limit, s0, limit), v.select(s4 < limit, s4, limit)
        m0, m4 = v.select(m0 < limit, m0, limit), v.select(m4 < limit, m4, limit)
        a = s0 | ((s4 >> 4) << 6)
        b = m0 | ((m4 >> 4) << 6)
        c = (s4 & 15) | ((m4 & 15) << 4)
        v.store(header, 4 * LANES + low, v.low_bytes(a))
        v.store(header, 8 * LANES + low, v.low_bytes(b))
        v.store(header, 12 * LANES + low, v.low_bytes(c))
        # The values that a reader gets (get_scale_min_k4).
        v.store(scales, low, d * v.floats(a & 63))
        v.store(minima, low, m * v.floats(b & 63))
        v.store(scales, high, d * v.floats((c & 15) | (((a >> 6) & 3) << 4)))
        v.store(minima, high, m * v.floats(((c >> 4) & 15) | (((b >> 6) & 3) << 4)))


@v.inlined
def _round(contraction: Any, batch: Any, at: Any, d: Any, m: Any, inverse: Any, lowest: Any, nmax: Any) -> Any:
    """Return 32 weights as integers in 0…nmax, by the stored scale; if that is 0, by the search's own scale."""
    value = v.load(batch, at, 32)
    if d != 0.0:
        value = nearest((value + v.splat(m, 32)) / v.splat(d, 32), MAGIC, MAGIC + nmax)
    else:
        value = nearest_product(contraction, v.splat(inverse, 32), value - v.splat(lowest, 32), MAGIC, MAGIC + nmax)
    return v.low_bytes(v.bits_of_floats(value))


def quantize(
    contraction: Any,
    source: Any,
    kind: Any,
    n_blocks: Any,
    scratch: Any,
    importance: Any,
    nmax: Any,
    candidates: Any,
    out: Any,
) -> None:
    """Quantize `n_blocks` blocks of the source to `out`, as Q4_K if nmax is 15, as Q5_K if it is 31.

    `scratch` is SCRATCH_BYTES of scratch memory.
    """
    batch, importances, x, weights, levels, fits = divide(scratch, 32)
    sums = v.from_index(fits, _FITS)
    scales = v.from_index(sums, _SUBS)
    minima = v.from_index(scales, _SUBS)
    header = v.as_bytes(v.from_index(minima, _SUBS))
    blocks = v.bytes_at(out.ctypes.data)
    weighted = len(importance) > 0
    five = nmax > 15
    low_bits = 48 if five else 16
    for first in range(0, n_blocks, LANES):
        count = min(LANES, n_blocks - first)
        widen_batch(source, kind, first, count, batch)
        sigma2 = v.splat(0.0, LANES)
        if weighted:
            importance_batch(importance, first, importances)
            sigma2 = sum_of_squares(contraction, batch, 32, x) * 2.0 / 256.0
        for j in range(8):
            turn(batch, j * 32, 32, x)
            if weighted:
                turn(importances, j * 32, 32, levels)
                v.store(sums, j * LANES, weigh(contraction, x, levels, 32, sigma2, weights))
            else:
                _plain_weights(contraction, x, weights)
            search_range(
                contraction, x, weights, levels, v.from_index(fits, j * LANES), _SUBS, 32, nmax, candidates, False
            )
        if weighted:
            d = fit_scales(contraction, fits, sums, 8, 63, scales)
            m = fit_scales(contraction, v.from_index(fits, _SUBS), sums, 8, 63, minima)
        else:
            d = round_scales(contraction, fits, 8, 63, scales)
            m = round_scales(contraction, v.from_index(fits, _SUBS), 8, 63, minima)
        _pack_header(d, m, scales, minima, 255 if weighted and not five else 63, header)
        for block in range(count):
            base = (first + block) * (low_bits + 128)
            for i in range(16):
                blocks[base + i] = header[i * LANES + block]
            for j in range(0, 8, 2):
                s = j * LANES + block
                at = block * STEP + j * 32
                inverse, lowest = 2 * _SUBS + s, 3 * _SUBS + s
                even = _round(contraction, batch, at, scales[s], minima[s], fits[inverse], fits[lowest], nmax)
                s, inverse, lowest = s + LANES, inverse + LANES, lowest + LANES
                odd = _round(contraction, batch, at + 32, scales[s], minima[s], fits[inverse], fits[lowest], nmax)
                if five:
                    high = ((even >> 4) << j) | ((odd >> 4) << (j + 1))
                    v.store(blocks, base + 16, high if j == 0 else v.load(blocks, base + 16, 32) | high)
                v.store(blocks, base + low_bits + j * 16, (even & 15) | (odd << 4))
