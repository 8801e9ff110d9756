"""Q8_0 and Q4_0, blocks of 32 weights with one scale, found without a search; F32 and F16.

One weight is d · l, or d · (l − 8). Bytes of a block: d (a 16-bit float), then 32 bytes, or 16 whose low halves are the
first 16 weights. The rules are those of ``quantize_row_q8_0_ref`` and ``quantize_row_q4_0_ref`` (ggml-quants.c). What
takes time here is memory, not arithmetic: the weights are widened in registers.
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast.contractions import ACROSS
from llamalite.converters.kernels.fast.fused import mul_add
from llamalite.converters.kernels.fast.rounding import halves
from llamalite.converters.kernels.fast.tiles import load_weights
from llamalite.converters.kernels.fast.vectors import (
    LANES,
    absolute,
    bits,
    bits_of_floats,
    bytes_at,
    first_half,
    floats_at,
    floats_of_bits,
    inlined,
    largest_lane,
    load,
    low_bytes,
    low_shorts,
    scratch_bytes,
    scratch_floats,
    second_half,
    select,
    shorts_at,
    splat,
    store,
    truncate,
)

_HEADER = LANES * 2
ALMOST_HALF = 0.5 - 2.0**-25  # the largest float32 below a half


@inlined
def _pack_scales(d: Any, inverses: Any, header: Any) -> None:
    """Write the two bytes of each d to `header`, and 1/d to `inverses` (0 where d is 0)."""
    word = halves(d)
    store(header, 0, low_bytes(word))
    store(header, LANES, low_bytes(word >> 8))
    store(inverses, 0, select(d != 0.0, splat(1.0, LANES) / d, 0.0))


def widen(_how: Any, source: Any, kind: Any, n_weights: Any, out: Any) -> None:
    """Write `n_weights`, a multiple of 32, to `out` as float32."""
    weights = floats_at(out.ctypes.data)
    for at in range(0, n_weights, 32):
        store(weights, at, load_weights(source, kind, at))


def narrow(_how: Any, source: Any, kind: Any, n_weights: Any, out: Any) -> None:
    """Write `n_weights`, a multiple of 32, to `out` as 16-bit floats (``ggml_fp32_to_fp16_row``, ggml.c)."""
    words = shorts_at(out.ctypes.data)
    for at in range(0, n_weights, 32):
        store(words, at, low_shorts(halves(load_weights(source, kind, at))))


def quantize_q8_0(_how: Any, source: Any, kind: Any, n_blocks: Any, out: Any) -> None:
    """Quantize `n_blocks` blocks of 32 weights to `out`."""
    values, header = scratch_floats(LANES), scratch_bytes(_HEADER)
    blocks = bytes_at(out.ctypes.data)
    for first in range(0, n_blocks, LANES):
        count = min(LANES, n_blocks - first)
        store(values, 0, splat(0.0, LANES))
        for block in range(count):
            weights = load_weights(source, kind, (first + block) * 32)
            values[block] = largest_lane(absolute(weights))
        _pack_scales(load(values, 0, LANES) / 127.0, values, header)
        for block in range(count):
            v = load_weights(source, kind, (first + block) * 32) * splat(values[block], 32)
            # To nearest, halves away from zero (roundf).
            half = floats_of_bits((bits_of_floats(v) & -0x80000000) | bits_of_floats(splat(ALMOST_HALF, 32)))
            base = (first + block) * 34
            blocks[base] = header[block]
            blocks[base + 1] = header[LANES + block]
            store(blocks, base + 2, low_bytes(truncate(v + half)))


def quantize_q4_0(how: Any, source: Any, kind: Any, n_blocks: Any, out: Any) -> None:
    """Quantize `n_blocks` blocks of 32 weights to `out`."""
    values, header = scratch_floats(LANES), scratch_bytes(_HEADER)
    blocks = bytes_at(out.ctypes.data)
    for first in range(0, n_blocks, LANES):
        count = min(LANES, n_blocks - first)
        store(values, 0, splat(0.0, LANES))
        for block in range(count):
            weights = load_weights(source, kind, (first + block) * 32)
            largest = largest_lane(absolute(weights))
            # The first weight of that size says with which sign.
            places = bits(absolute(weights) == splat(largest, 32))
            negative = bits(weights < 0.0) & places & -places
            values[block] = -largest if negative else largest
        _pack_scales(load(values, 0, LANES) / -8.0, values, header)
        for block in range(count):
            v = load_weights(source, kind, (first + block) * 32)
            level = low_bytes(truncate(mul_add(how, ACROSS, v, splat(values[block], 32), 8.5)))
            level = select(level < 15, level, 15)  # bytes are compared as signed ones
            base = (first + block) * 18
            blocks[base] = header[block]
            blocks[base + 1] = header[LANES + block]
            store(blocks, base + 2, first_half(level) | (second_half(level) << 4))
