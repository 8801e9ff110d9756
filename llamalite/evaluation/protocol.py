"""How a text is cut up and computed: the settings without which a perplexity means nothing.

protocol = EvalProtocol(n_ctx=512, chunks=32, exact=True)
protocol.windows(tokens, model), protocol.context(model)
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from llamalite import hardware
from llamalite.evaluation.windows import TokenIds, Window, chunk_windows, sequences, stride_windows
from llamalite.native import library
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel
from llamalite.native.observer import MatrixObserver

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalProtocol:
    """How a text is cut up and computed. The defaults are llama-perplexity's.

    `chunks` limits the number of windows. `stride` is the step of a sliding window of n_ctx tokens; None means
    llama-perplexity's protocol: chunks that do not overlap, the second half of each scored. `exact` means an F32 cache
    and no flash attention, for figures that agree across machines. `n_threads` defaults to the physical cores.
    """

    n_ctx: int = 512
    n_batch: int = 2048
    n_ubatch: int = 512
    chunks: int | None = None
    stride: int | None = None
    exact: bool = False
    n_threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_batch", "n_ubatch", "chunks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, found {value}")

    def tokens_needed(self) -> int | None:
        """Return the maximum number of tokens of a text to evaluate; None for all."""
        if self.chunks is None:
            return None
        if self.stride is not None:
            return self.n_ctx + (self.chunks - 1) * self.stride
        return max(2, self.chunks) * self.n_ctx

    def windows(self, tokens: TokenIds, model: NativeModel) -> list[Window]:
        """Cut `tokens` into the windows to evaluate."""
        if self.stride is not None:
            return stride_windows(tokens, self.n_ctx, self.stride)[: self.chunks]
        return chunk_windows(tokens, self.n_ctx, model.bos if model.add_bos else None)[: self.chunks]

    def context(self, model: NativeModel, observer: MatrixObserver | None = None) -> NativeContext:
        """Make the same context as llama-perplexity: a separate cache of n_ctx tokens for each window of a batch."""
        if self.n_ctx > model.n_ctx_train:
            _logger.warning("%s was trained on %d tokens, fewer than n_ctx", model.path.name, model.n_ctx_train)
        n_seq = sequences(self.n_ctx, self.n_batch)
        options = ContextOptions(
            n_ctx=n_seq * self.n_ctx,
            n_batch=self.n_batch,
            n_ubatch=self.n_ubatch,
            n_seq_max=n_seq,
            n_threads=self.n_threads or hardware.physical_cores(),
            exact=self.exact,
        )
        return NativeContext(model, options, observer=observer)

    def described(self, model: NativeModel, context: NativeContext) -> dict[str, Any]:
        """Return all settings that reproduce the figure, as a JSON object."""
        return asdict(self) | {
            "kind": "chunks, second half scored" if self.stride is None else "sliding window",
            "n_seq": context.n_seq_max,
            "n_threads": context.n_threads,
            "kv_type": context.options.kv_type,
            "flash_attn": context.options.flash_attn,
            "bos": model.add_bos,
            "versions": library.version(),
        }
