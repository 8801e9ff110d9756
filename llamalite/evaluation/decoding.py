"""A model that is being measured: opened from whatever names it, decoding batches, and stoppable while it does.

A batch of 2048 tokens takes a laptop a minute, and Python handles Ctrl-C only between two calls into C. So the decode
runs in the model's thread (`llamalite.native.decode_thread`) while the caller's waits, and an exception there aborts
the decode.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, TypeVar, Union

import numpy as np
import numpy.typing as npt

from llamalite import hardware, store
from llamalite.errors import EvaluationError
from llamalite.evaluation.windows import TokenBatch, TokenIds, Window, chunk_windows, sequences, stride_windows
from llamalite.gguf_check import checked_header
from llamalite.model import Model
from llamalite.native import library
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.decode_thread import DecodeThread
from llamalite.native.model import NativeModel
from llamalite.native.observer import MatrixObserver

_logger = logging.getLogger(__name__)

_LEAST_N_CTX = 256  # llama.cpp makes no smaller one

T = TypeVar("T")
AnyModel: TypeAlias = Union[str, "os.PathLike[str]", NativeModel, Model]


@dataclass(frozen=True)
class EvalProtocol:
    """How a text is cut up and computed; a perplexity means nothing without it. The defaults are llama-perplexity's.

    `chunks` is the most windows that are evaluated, None all. `stride` is the step of a sliding window of n_ctx tokens;
    None is llama-perplexity's protocol, chunks that do not overlap, half of each scored. `exact` is an F32 cache and
    flash attention off: figures that agree across machines. `n_threads` None is the physical cores.
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
        """Return how many tokens of a text are looked at, None for all."""
        if self.chunks is None:
            return None
        if self.stride is not None:
            return self.n_ctx + (self.chunks - 1) * self.stride
        return max(2, self.chunks) * self.n_ctx

    def windows(self, tokens: TokenIds, model: NativeModel) -> list[Window]:
        """Cut `tokens` into the windows that are evaluated."""
        if self.stride is not None:
            return stride_windows(tokens, self.n_ctx, self.stride)[: self.chunks]
        return chunk_windows(tokens, self.n_ctx, model.bos if model.add_bos else None)[: self.chunks]

    def context(self, model: NativeModel, observer: MatrixObserver | None = None) -> NativeContext:
        """Make the context that llama-perplexity makes: a separate cache of n_ctx tokens for each window of a batch."""
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
        """Return everything that somebody needs to make the same number again, ready for JSON."""
        return asdict(self) | {
            "kind": "chunks, second half scored" if self.stride is None else "sliding window",
            "n_seq": context.n_seq_max,
            "n_threads": context.n_threads,
            "kv_type": context.options.kv_type,
            "flash_attn": context.options.flash_attn,
            "bos": model.add_bos,
            "versions": library.version(),
        }


@contextlib.contextmanager
def opened(
    model: AnyModel, *, n_gpu_layers: int = 0, device: str | None = None, thread: DecodeThread | None = None
) -> Iterator[NativeModel]:
    """Open a path, or a name in the models folder, for the ``with`` block; a loaded model is used and left open.

    `thread` is where a model that is opened here decodes, in turns with others: None gives it one of its own. Raises
    ``OutOfMemoryError`` with the numbers where even the smallest context would not fit.
    """
    if isinstance(model, Model | NativeModel):
        yield model.native if isinstance(model, Model) else model
        return
    path = store.resolve(model)
    if n_gpu_layers == 0:
        hardware.fit(
            checked_header(path),
            n_ctx=_LEAST_N_CTX,
            free_bytes=hardware.free_memory_bytes(),
            repacked=hardware.repacked(),
        )
    native = NativeModel(path, n_gpu_layers=n_gpu_layers, device=device, thread=thread)
    try:
        yield native
    finally:
        native.close()


class Decoder:
    """Decodes over one context, in the thread of its model; `decode_s` is the time that batches took so far."""

    def __init__(self, context: NativeContext) -> None:
        self.context = context
        self.decode_s = 0.0
        self.n_tokens = 0

    def compute(self, call: Callable[[], T]) -> T:
        """Return what `call` returns in the model's thread. An exception in this thread, Ctrl-C say, aborts it.

        ``GenerationCancelled`` when somebody closes the model meanwhile, or has closed it.
        """
        context = self.context
        with context.in_use():
            context.clear_abort()  # of a call before, or of a model that was to be closed and is not
            return context.model.thread.run(call, context.abort)

    def decode(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Return the logits of the rows that `batch` wants, float32 [n_rows, n_vocab], a view until the next decode.

        ``EvaluationError`` when one of them is no number, and what `compute` raises. Of a model that others may close,
        the rows stay for as long as the context is `in_use`.
        """
        with self.context.in_use():
            start = time.perf_counter()
            logits = self.compute(lambda: self._decode(batch))
            self.decode_s += time.perf_counter() - start
            self.n_tokens += len(batch.tokens)
            check_finite(logits, self.context.model.path.name)
        return logits

    def _decode(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        if batch.fresh:
            self.context.clear()
        self.context.decode(batch.tokens, batch.positions, batch.seq_ids, batch.wanted)
        if not len(batch.targets):
            return np.empty((0, self.context.model.n_vocab), dtype=np.float32)
        return self.context.logits()


def check_finite(logits: npt.NDArray[np.float32], where: str) -> None:
    """Raise ``EvaluationError`` when one of `logits` is NaN or infinite."""
    # The sum shows it in one pass; finite values that large in number and size that it overflows are looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(logits.sum()):
            return
    if n := int(np.count_nonzero(~np.isfinite(logits))):
        raise EvaluationError(f"{n} of {logits.size} logits of {where} are no numbers: the model file is damaged")
