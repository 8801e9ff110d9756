"""Q8_0 and Q4_0, blocks of 32 weights with one scale, found without a search; F32 and F16.

One weight is d · l, or d · (l − 8). Bytes of a block: d (a 16-bit float), then 32 bytes, or 16 whose low halves are the
first 16 weights. The rules are those of ``quantize_row_q8_0_ref`` and ``quantize_row_q4_0_ref`` (ggml-quants.c). Memory
is the bottleneck here, not arithmetic, so weights are widened in registers.
"""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast import vectors as v
from llamalite.converters.kernels.fast.contractions import ACROSS
from llamalite.converters.kernels.fast.fused import mul_add
from llamalite.converters.kernels.fast.rounding import halves
from llamalite.converters.kernels.fast.tiles import load_weights, store_words
from llamalite.converters.kernels.fast.vectors import LANES

_HEADER = LANES * 2
ALMOST_HALF = 0.5 - 2.0**-25  # the largest float32 below a half


@v.inlined
def _pack_scales(d: Any, inverses: Any, header: Any) -> None:
    """Write each d as two bytes to `header`, and 1/d to `inverses` (0 if d is 0)."""
    store_words(header, 0, halves(d))
    v.store(inverses, 0, v.select(d != 0.0, v.splat(1.0, LANES) / d, 0.0))


def widen(_contraction: Any, source: Any, kind: Any, n_weights: Any, out: Any) -> None:
    """Write `n_weights`, a multiple of 32, to `out` as float32."""
    weights = v.floats_at(out.ctypes.data)
    for at in range(0, n_weights, 32):
        v.store(weights, at, load_weights(source, kind, at))


def narrow(_contraction: Any, source: Any, kind: Any, n_weights: Any, out: Any) -> None:
    """Write `n_weights`, a multiple of 32, to `out` as 16-bit floats (``ggml_fp32_to_fp16_row``, ggml.c)."""
    words = v.shorts_at(out.ctypes.data)
    for at in range(0, n_weights, 32):
        v.store(words, at, v.low_shorts(halves(load_weights(source, kind, at))))


def quantize_q8_0(_contraction: Any, source: Any, kind: Any, n_blocks: Any, out: Any) -> None:
    """Quantize `n_blocks` blocks of 32 weights to `out`."""
    values, header = v.scratch_floats(LANES), v.scratch_bytes(_HEADER)
    blocks = v.bytes_at(out.ctypes.data)
    for first in range(0, n_blocks, LANES):
        count = min(LANES, n_blocks - first)
        v.store(values, 0, v.splat(0.0, LANES))
        for block in range(count):
            weights = load_weights(source, kind, (first + block) * 32)
            values[block] = v.largest_lane(v.absolute(weights))
        _pack_scales(v.load(values, 0, LANES) / 127.0, values, header)
        for block in range(count):
            value = load_weights(source, kind, (first + block) * 32) * v.splat(values[block], 32)
            # Round to nearest, halves away from zero (roundf).
            half = v.floats_of_bits(
                (v.bits_of_floats(value) & -0x80000000) | v.bits_of_floats(v.splat(ALMOST_HALF, 32))
            )
            base = (first + block) * 34
            blocks[base] = header[block]
            blocks[base + 1] = header[LANES + block]
            v.store(blocks, base + 2, v.low_bytes(v.truncate(value + half)))


def quantize_q4_0(contraction: Any, source: Any, kind: Any, n_blocks: Any, out: Any) -> None:
    """Quantize `n_blocks` blocks of 32 weights to `out`."""
    values, header = v.scratch_floats(LANES), v.scratch_bytes(_HEADER)
    blocks = v.bytes_at(out.ctypes.data)
    for first in range(0, n_blocks, LANES):
        count = min(LANES, n_blocks - first)
        v.store(values, 0, v.splat(0.0, LANES))
        for block in range(count):
            weights = load_weights(source, kind, (first + block) * 32)
            largest = v.largest_lane(v.absolute(weights))
            # The sign is that of the first weight of this magnitude.
            places = v.bits(v.absolute(weights) == v.splat(largest, 32))
            negative = v.bits(weights < 0.0) & places & -places
            values[block] = -largest if negative else largest
        _pack_scales(v.load(values, 0, LANES) / -8.0, values, header)
        for block in range(count):
            value = load_weights(source, kind, (first + block) * 32)
            level = v.low_bytes(v.truncate(mul_add(contraction, ACROSS, value, v.splat(values[block], 32), 8.5)))
            level = v.select(level < 15, level, 15)  # bytes are compared as signed
            base = (first + block) * 18
            blocks[base] = header[block]
            blocks[base + 1] = header[LANES + block]
            v.store(blocks, base + 2, v.first_half(level) | (v.second_half(level) << 4))
