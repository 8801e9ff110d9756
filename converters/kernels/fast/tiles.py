"""Weights from a checkpoint's bytes into a batch of float32, and from there into SIMD lanes.

A *batch* has as many blocks (of 256 weights, consecutive in the source) as a vector has lanes: float32 [LANES, STEP],
of which the first 256 columns are used. A *tile* is `n` positions of every block of a batch, transposed: float32
[n, LANES], so that one vector holds the same position of each block.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llamalite.converters.kernels.fast import vectors as v
from llamalite.converters.kernels.fast.rounding import widen_halves
from llamalite.converters.kernels.fast.vectors import LANES

# The dtype of a source, which is an array of bytes.
F32, BF16, F16 = 0, 1, 2
# Floats from one block of a batch to the next: 16 more than needed, so that lanes do not share a few cache sets.
STEP = 256 + 16
BATCH = LANES * STEP


@v.inlined
def divide(scratch: Any, n: Any) -> Any:
    """Divide the bytes of `scratch` into two batches, three tiles of `n` positions, and the rest, all as float32."""
    batch = v.floats_at(scratch.ctypes.data)
    importances = v.from_index(batch, BATCH)
    x = v.from_index(importances, BATCH)
    weights = v.from_index(x, n * LANES)
    levels = v.from_index(weights, n * LANES)
    return batch, importances, x, weights, levels, v.from_index(levels, n * LANES)


@v.inlined
def load_weights(source: Any, kind: Any, at: Any) -> Any:
    """Return 32 weights from position `at` on, as f32."""
    if kind == F32:
        return v.load(v.floats_at(source.ctypes.data), at, 32)
    words = v.widen_u16(v.load(v.shorts_at(source.ctypes.data), at, 32))
    if kind == BF16:
        return v.floats_of_bits(words << 16)
    return widen_halves(words)


@v.inlined
def widen_batch(source: Any, kind: Any, first: Any, count: Any, batch: Any) -> None:
    """Write blocks ``first`` … ``first + count`` of the source to `batch` as float32, and zeros after them."""
    for block in range(count):
        for i in range(0, 256, 32):
            v.store(batch, block * STEP + i, load_weights(source, kind, (first + block) * 256 + i))
    for block in range(count, LANES):
        for i in range(0, 256, 32):
            v.store(batch, block * STEP + i, v.splat(0.0, 32))


def _turn_rule(batch: Any, _at: Any, tile: Any, _to: Any) -> Any:
    wide = ir.VectorType(ir.FloatType(), 16)

    def emit(builder: ir.IRBuilder, batch: ir.Value, at: ir.Value, tile: ir.Value, to: ir.Value) -> ir.Value:
        def place(base: ir.Value, start: ir.Value, offset: int) -> ir.Value:
            index = builder.add(start, ir.Constant(start.type, offset))
            return builder.bitcast(builder.gep(base, [index]), wide.as_pointer())

        rows = [builder.load(place(batch, at, lane * STEP)) for lane in range(16)]
        for row in rows:
            row.align = 4
        # Four rounds of exchanges; each swaps one bit of the lane's index with the same bit of the position.
        for bit in (1, 2, 4, 8):
            low = _constant([p + 16 - bit if p & bit else p for p in range(16)])
            high = _constant([p + 16 if p & bit else p + bit for p in range(16)])
            for i in range(16):
                if not i & bit:
                    a, b = rows[i], rows[i | bit]
                    rows[i], rows[i | bit] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
        for position in range(16):
            builder.store(rows[position], place(tile, to, position * LANES)).align = 4
        return cgutils.voidptr_t(None)

    return types.void(batch, types.intp, tile, types.intp), emit


# (batch, at, tile, to): copy 16 by 16 of batch[at + lane * STEP + position] to tile[to + position * LANES + lane]
_turn = v.operation(_turn_rule)


def _constant(numbers: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


@v.inlined
def turn(batch: Any, start: Any, n: Any, tile: Any) -> None:
    """Write positions ``start`` … ``start + n`` of every block of `batch` to `tile`; n is a multiple of 16."""
    for lane in range(0, LANES, 16):
        for position in range(0, n, 16):
            _turn(batch, lane * STEP + start + position, tile, position * LANES + lane)


@v.inlined
def store_words(header: Any, at: Any, words: Any) -> None:
    """Write 16-bit `words` (in i32) to the bytes `header`: LANES low bytes from `at` on, then LANES high bytes."""
    v.store(header, at, v.low_bytes(words))
    v.store(header, at + LANES, v.low_bytes(words >> 8))
