"""Convert LLaMA checkpoints to quantized GGUF in one pass, run them on a laptop's CPU, and measure what it cost.

    import llamalite

    report = llamalite.convert("./TinyLlama-1.1B", qtype="Q4_K_M")
    with llamalite.Model(report.path) as model:
        for piece in model.stream("Once upon a time", max_tokens=64):
            print(piece.text, end="", flush=True)

The public names are loaded on first use (PEP 562), so that importing llamalite loads neither numpy nor llama.cpp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llamalite._version import __version__

if TYPE_CHECKING:
    from llamalite.chat import ChatSession as ChatSession
    from llamalite.converters import ConversionReport as ConversionReport
    from llamalite.converters import convert as convert
    from llamalite.errors import LlamaliteError as LlamaliteError
    from llamalite.evaluation.comparison import Comparison as Comparison
    from llamalite.evaluation.comparison import compare as compare
    from llamalite.evaluation.perplexity import PerplexityResult as PerplexityResult
    from llamalite.evaluation.perplexity import perplexity as perplexity
    from llamalite.generation.completion import Completion as Completion
    from llamalite.generation.completion import Piece as Piece
    from llamalite.model import Model as Model
    from llamalite.native.model import LoraAdapter as LoraAdapter
    from llamalite.sampling import SamplingParams as SamplingParams

_HOMES = {
    "ChatSession": "llamalite.chat",
    "Completion": "llamalite.generation.completion",
    "Comparison": "llamalite.evaluation.comparison",
    "ConversionReport": "llamalite.converters",
    "LlamaliteError": "llamalite.errors",
    "LoraAdapter": "llamalite.native.model",
    "Model": "llamalite.model",
    "PerplexityResult": "llamalite.evaluation.perplexity",
    "Piece": "llamalite.generation.completion",
    "SamplingParams": "llamalite.sampling",
    "compare": "llamalite.evaluation.comparison",
    "convert": "llamalite.converters",
    "perplexity": "llamalite.evaluation.perplexity",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llamalite' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
