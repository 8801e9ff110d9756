"""How a llama.cpp context is set up: its size, its threads and its KV cache; checked before llama.cpp sees it.

>>> ContextOptions(n_ctx=512, kv_type="q8_0").kv_type
'Q8_0'
>>> ContextOptions(n_ctx=0)
Traceback (most recent call last):
...
ValueError: n_ctx must be a whole number in 1..2147483392, found 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llamalite.quant_types import TENSOR_TYPES
from llamalite.sampling import check_whole

FlashAttention = bool | Literal["auto"]

KV_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
POOLING = {"mean": 1, "cls": 2, "last": 3}  # enum llama_pooling_type (llama.h)
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ (llama-cparams.h)
_MAX_THREADS = 512  # GGML_MAX_N_THREADS (ggml.h): llama.cpp aborts on more


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """The settings of a `NativeContext`; ``ValueError`` names one that is invalid.

    - `n_ctx`: tokens that the KV cache holds, over all sequences. llama.cpp rounds it up to a multiple of 256.
    - `n_batch`: the most tokens of one `decode`, no more than `n_ctx`; `n_ubatch`: how many are computed together.
    - `n_seq_max`: the number of sequences. With `kv_unified` they share `n_ctx` and may share a prefix; without it,
      each has ``n_ctx / n_seq_max``.
    - `n_threads`: None is llama.cpp's default.
    - `kv_type`: the type of the cache, one of `KV_TYPES`; `flash_attn`: "auto", True or False.
    - `exact`: an F32 cache and no flash attention, whatever the two above say, for figures that agree across machines.
    - `pooling`: None for logits; else one of `POOLING`, and the context computes a vector for each sequence.
    """

    n_ctx: int
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_threads: int | None = None
    kv_type: str = "F16"
    flash_attn: FlashAttention = "auto"
    kv_unified: bool = False
    exact: bool = False
    pooling: str | None = None

    def __post_init__(self) -> None:
        if self.exact:
            object.__setattr__(self, "kv_type", "F32")
            object.__setattr__(self, "flash_attn", False)
        if not isinstance(self.kv_type, str) or self.kv_type.upper() not in KV_TYPES:
            raise ValueError(f"kv_type must be one of {', '.join(KV_TYPES)}, found {self.kv_type!r}")
        object.__setattr__(self, "kv_type", self.kv_type.upper())
        if self.flash_attn not in ("auto", True, False):
            raise ValueError(f"flash_attn must be 'auto', True or False, found {self.flash_attn!r}")
        if self.flash_attn is False and TENSOR_TYPES[self.kv_type].is_quantized:
            raise ValueError(
                f"a {self.kv_type} cache needs flash attention, which is off: use F16, or flash_attn='auto'"
            )
        if self.pooling is not None and self.pooling not in POOLING:
            raise ValueError(f"pooling must be one of {', '.join(POOLING)}, found {self.pooling!r}")
        check_whole("n_ctx", self.n_ctx, 1, 2**31 - 256)
        check_whole("n_batch", self.n_batch, 1, 2**31 - 1)
        check_whole("n_ubatch", self.n_ubatch, 1, 2**31 - 1)
        check_whole("n_seq_max", self.n_seq_max, 1, min(self.n_batch, self.n_ctx, MAX_SEQUENCES))
        if self.n_threads is not None:
            check_whole("n_threads", self.n_threads, 1, _MAX_THREADS)
