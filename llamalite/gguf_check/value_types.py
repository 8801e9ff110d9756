"""The types of values in a GGUF file's keys: the numbers of ``enum gguf_type`` (gguf.h)."""

from __future__ import annotations

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)

SCALARS = {
    UINT8: ("uint8", "<B"), INT8: ("int8", "<b"), UINT16: ("uint16", "<H"), INT16: ("int16", "<h"),
    UINT32: ("uint32", "<I"), INT32: ("int32", "<i"), FLOAT32: ("float32", "<f"), BOOL: ("bool", "<B"),
    UINT64: ("uint64", "<Q"), INT64: ("int64", "<q"), FLOAT64: ("float64", "<d"),
}  # fmt: skip
"""Each scalar type's name, and its format for the module struct."""
