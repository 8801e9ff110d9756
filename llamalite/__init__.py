"""Convert LLaMA checkpoints to quantized GGUF in one pass, run them on a laptop's CPU, and measure what it cost.

    import llamalite

    report = llamalite.convert("./TinyLlama-1.1B", qtype="Q4_K_M")
    with llamalite.Model(report.path) as model:
        for piece in model.stream("Once upon a time", max_tokens=64):
            print(piece.text, end="", flush=True)

The names below are the public API, and so is `llamalite.errors`; other modules may change without notice. Names are
loaded on first use (PEP 562), so that importing llamalite loads neither numpy nor llama.cpp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llamalite._version import __version__

if TYPE_CHECKING:
    from llamalite.chat import ChatSession as ChatSession
    from llamalite.converters import ConversionReport as ConversionReport
    from llamalite.converters import OutputReport as OutputReport
    from llamalite.converters import convert as convert
    from llamalite.errors import LlamaliteError as LlamaliteError
    from llamalite.evaluation.comparison import Candidate as Candidate
    from llamalite.evaluation.comparison import Comparison as Comparison
    from llamalite.evaluation.comparison import compare as compare
    from llamalite.evaluation.perplexity import PerplexityResult as PerplexityResult
    from llamalite.evaluation.perplexity import perplexity as perplexity
    from llamalite.generation.completion import Completion as Completion
    from llamalite.generation.completion import Piece as Piece
    from llamalite.generation.completion import Totals as Totals
    from llamalite.generation.request import Stream as Stream
    from llamalite.model import Model as Model
    from llamalite.model_options import ModelOptions as ModelOptions
    from llamalite.native.lora import LoraAdapter as LoraAdapter
    from llamalite.sampling import SamplingParams as SamplingParams

_MODULE_OF = {
    "Candidate": "llamalite.evaluation.comparison",
    "ChatSession": "llamalite.chat",
    "Comparison": "llamalite.evaluation.comparison",
    "Completion": "llamalite.generation.completion",
    "ConversionReport": "llamalite.converters",
    "LlamaliteError": "llamalite.errors",
    "LoraAdapter": "llamalite.native.lora",
    "Model": "llamalite.model",
    "ModelOptions": "llamalite.model_options",
    "OutputReport": "llamalite.converters",
    "PerplexityResult": "llamalite.evaluation.perplexity",
    "Piece": "llamalite.generation.completion",
    "SamplingParams": "llamalite.sampling",
    "Stream": "llamalite.generation.request",
    "Totals": "llamalite.generation.completion",
    "compare": "llamalite.evaluation.comparison",
    "convert": "llamalite.converters",
    "perplexity": "llamalite.evaluation.perplexity",
}

__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'llamalite' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
