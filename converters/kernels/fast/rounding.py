"""Rounding as in ggml, in SIMD lanes: from floats to small integers, and to 16-bit floats and back."""

from __future__ import annotations

from typing import Any

from llamalite.converters.kernels.fast import vectors as v
from llamalite.converters.kernels.fast.contractions import ACROSS
from llamalite.converters.kernels.fast.fused import mul_add

MAGIC = 12582912.0  # 1.5 * 2**23: a float of that size has no fraction bits, and its low byte counts in ones


@v.inlined
def nearest(values: Any, low: Any, high: Any) -> Any:
    """f32 `values` rounded to nearest even and clamped, plus MAGIC; `low` and `high` are MAGIC plus a bound.

    This is ``MAX(low, MIN(high, nearest_int(x)))`` of ggml-quants.c for every x: NaN, infinities and values too large
    for nearest_int wrap around as they do there. The low byte of the result's bits is that of the integer.
    """
    return _clamped(values + MAGIC, low, high)


@v.inlined
def nearest_product(contraction: Any, a: Any, b: Any, low: Any, high: Any) -> Any:
    """As `nearest`, for a · b."""
    return _clamped(mul_add(contraction, ACROSS, a, b, MAGIC), low, high)


@v.inlined
def _clamped(summed: Any, low: Any, high: Any) -> Any:
    summed = v.floats_of_bits((v.bits_of_floats(summed) & 0x007FFFFF) | 0x4B000000)
    summed = v.select(summed > low, summed, low)
    return v.select(summed < high, summed, high)


@v.inlined
def nearest_int(values: Any) -> Any:
    """f32 `values` rounded to nearest even, as i32 (``nearest_int``, ggml-quants.c)."""
    return (v.bits_of_floats(values + MAGIC) & 0x007FFFFF) - 0x00400000


@v.inlined
def nearest_int_product(contraction: Any, a: Any, b: Any) -> Any:
    """As `nearest_int`, for a · b."""
    return (v.bits_of_floats(mul_add(contraction, ACROSS, a, b, MAGIC)) & 0x007FFFFF) - 0x00400000


@v.inlined
def halves(values: Any) -> Any:
    """f32 `values` rounded to nearest even to 16-bit floats: their bits, in i32 (``ggml_compute_fp32_to_fp16``)."""
    word = v.bits_of_floats(values)
    exponent = word & 0x7F800000
    exponent = v.select(exponent < 0x38800000, 0x38800000, exponent)
    base = v.floats_of_bits(exponent + 0x07800000) + (v.absolute(values) * 2.0**112) * 2.0**-110
    rounded = v.bits_of_floats(base)
    magnitude = ((rounded >> 13) & 0x7C00) + (rounded & 0x0FFF)
    return ((word >> 16) & 0x8000) | v.select((word & 0x7FFFFFFF) > 0x7F800000, 0x7E00, magnitude)


@v.inlined
def widen_halves(words: Any) -> Any:
    """16-bit floats, their bits in i32, as f32: exact (``ggml_compute_fp16_to_fp32``)."""
    magnitude = words & 0x7FFF
    normal = v.floats_of_bits((magnitude << 13) + 0x70000000) * 2.0**-112
    tiny = v.floats_of_bits(magnitude | 0x3F000000) - 0.5
    signed = v.bits_of_floats(v.select(magnitude < 0x0400, tiny, normal)) | ((words & 0x8000) << 16)
    return v.floats_of_bits(signed)
