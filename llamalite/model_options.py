"""What a caller can choose when a model is loaded.

>>> options = ModelOptions(n_ctx=4096)
>>> options.replace(kv_type="Q8_0")
ModelOptions(n_ctx=4096, n_parallel=None, ...kv_type='Q8_0', ...)
>>> ModelOptions(kv_type="Q4")
Traceback (most recent call last):
...
ValueError: kv_type must be one of F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL, found 'Q4'
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from llamalite.native.context_options import MAX_SEQUENCES, ContextOptions, FlashAttention
from llamalite.native.lora import Lora, lora_adapters
from llamalite.sampling import SamplingParams, check_whole

MAX_PARALLEL = MAX_SEQUENCES
DEFAULT_PARALLEL = 16


class ModelKeywords(TypedDict, total=False):
    """The fields of `ModelOptions` as keyword arguments, for type checkers."""

    n_ctx: int | None
    n_parallel: int | None
    max_queue: int | None
    n_threads: int | None
    n_gpu_layers: int | Literal["auto", "all"]
    device: str | None
    n_batch: int
    kv_type: str
    flash_attn: FlashAttention
    exact: bool
    lora: Lora | Sequence[Lora]
    seed: int | None
    draft: str | os.PathLike[str] | None
    chat_template: str | None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Settings of a loaded model; ``ValueError`` names one that is invalid.

    - `n_ctx`: how many tokens the KV cache holds, which all conversations share; one alone may have all of them. More
      than the model was trained for is allowed, with a warning. None is 8192, or less if the model was trained for less
      or the free memory holds less, and 1024 for each of `n_parallel`, if that is given and more.
    - `n_parallel`: how many generations are computed together; more than that wait. None is 16, or 1 with `exact` and
      for recurrent models.
    - `max_queue`: how many generations may wait while `n_parallel` run, before another is refused with
      ``QueueFullError``; None sets no limit.
    - `n_threads`: threads that compute. None is the number of physical cores that this process may use.
    - `n_gpu_layers`: how many layers the GPU computes. "auto" is all if the installed llama.cpp can use a GPU, else
      none; "all" or a number is an error without a GPU.
    - `device`: which GPU, by the name that ``llamalite doctor`` shows; several are separated by commas.
    - `n_batch`: tokens of a prompt that are decoded in one call.
    - `kv_type`: the type of the KV cache; `flash_attn`: "auto", True or False.
    - `exact`: an F32 cache and no flash attention, for comparing figures across machines.
    - `lora`: LoRA adapters in GGUF form: paths, or `LoraAdapter`s with a scale.
    - `seed`: the seed of generations that set none; None draws a new one for each.
    - `draft`: a small model with the same vocabulary that guesses tokens ahead, if that is faster
      (`llamalite.generation.speculation`).
    - `chat_template`: a chat template (Jinja) to use instead of the file's.
    """

    n_ctx: int | None = None
    n_parallel: int | None = None
    max_queue: int | None = None
    n_threads: int | None = None
    n_gpu_layers: int | Literal["auto", "all"] = "auto"
    device: str | None = None
    n_batch: int = 2048
    kv_type: str = "F16"
    flash_attn: FlashAttention = "auto"
    exact: bool = False
    lora: Lora | Sequence[Lora] = ()
    seed: int | None = None
    draft: str | os.PathLike[str] | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        context_options(self, 1 if self.n_ctx is None else self.n_ctx)
        SamplingParams(seed=self.seed)
        lora_adapters(self.lora)
        if self.n_parallel is not None:
            check_whole("n_parallel", self.n_parallel, 1, MAX_PARALLEL)
        if self.max_queue is not None:
            check_whole("max_queue", self.max_queue, 0, 2**31 - 1)

    def replace(self, **changes: Any) -> ModelOptions:
        """Return a copy with `changes`; ``TypeError`` names a field that does not exist, and lists those that do."""
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r} of a model; known are {', '.join(known)}")
        return dataclasses.replace(self, **changes)


def context_options(options: ModelOptions, n_ctx: int, n_parallel: int = 1) -> ContextOptions:
    """Return the options of the model's own context, of `n_ctx` tokens for `n_parallel` generations.

    With several, there are as many sequences again, which keep conversations while they do not generate.
    """
    n_seq_max = 1 if n_parallel == 1 else min(2 * n_parallel, MAX_SEQUENCES, n_ctx, options.n_batch)
    return ContextOptions(
        n_ctx=n_ctx,
        n_batch=options.n_batch,
        n_seq_max=n_seq_max,
        n_threads=options.n_threads,
        kv_type=options.kv_type,
        flash_attn=options.flash_attn,
        kv_unified=n_seq_max > 1,
        exact=options.exact,
    )
