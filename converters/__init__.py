"""Checkpoint in, quantized GGUF out, in one pass.

    report = convert(Path("TinyLlama-1.1B"), Path("tiny.Q4_K_M.gguf"), qtype="Q4_K_M")
    report.bits_per_weight                               # 4.85

The file is, byte for byte, the one that llama.cpp's convert_hf_to_gguf.py and llama-quantize write in two steps.
"""

from __future__ import annotations

from llamalite.converters.conversion import ConversionReport, OutputReport, convert, preview
from llamalite.converters.importance import Importance
from llamalite.converters.plan import ConversionPlan, QuantizeParams

__all__ = ["ConversionPlan", "ConversionReport", "Importance", "OutputReport", "QuantizeParams", "convert", "preview"]
