"""LoRA adapters as callers give them: paths, or paths with a scale."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, cast


class LoraAdapter(NamedTuple):
    """A LoRA adapter in GGUF form (``convert_lora_to_gguf.py``) and the scale it is added with."""

    path: str | os.PathLike[str]
    scale: float = 1.0


Lora = str | os.PathLike[str] | LoraAdapter


def lora_adapters(lora: Lora | Sequence[Lora]) -> list[LoraAdapter]:
    """Return one adapter or several, given as paths or `LoraAdapter`s, as a list; ``TypeError`` for anything else."""
    is_single = isinstance(lora, (str, LoraAdapter)) or not isinstance(lora, Sequence)
    given = cast("list[Lora]", [lora] if is_single else list(lora))  # type: ignore[arg-type]
    adapters = [adapter if isinstance(adapter, LoraAdapter) else LoraAdapter(adapter) for adapter in given]
    for adapter in adapters:
        if not isinstance(adapter.path, (str, os.PathLike)):
            raise TypeError(f"lora must name files or be LoraAdapters, found {adapter.path!r:.80}")
    return adapters
