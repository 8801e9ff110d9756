"""Plans of conversions, from headers and config alone, without a tokenizer and without writing anything."""

from __future__ import annotations

from pathlib import Path

from llamalite.converters import ConversionPlan, QuantizeParams
from llamalite.converters.checkpoints import open_checkpoint
from llamalite.converters.plan import make_plan
from llamalite.quant_types import file_type


def plan_of(source: Path, *qtypes: str) -> ConversionPlan:
    """Return the plan for files of `qtypes`, by default Q4_K_M."""
    with open_checkpoint(source) as checkpoint:
        return make_plan(checkpoint, [file_type(name) for name in qtypes or ("Q4_K_M",)], QuantizeParams())
