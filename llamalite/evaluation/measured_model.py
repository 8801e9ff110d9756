"""A model that is being measured: opened from a path or a name, and decoded so that Ctrl-C can stop it.

    with opened("demo-Q4_K_M") as model, protocol.context(model) as context:
        decoder = Decoder(context)
        logits = decoder.decode(batch)          # float32 [n_rows, n_vocab]

A batch of 2048 tokens takes a laptop a minute, and Python handles Ctrl-C only between calls into C. So the decode runs
in the model's thread (`llamalite.native.decode_thread`) while the caller's thread waits; an exception in the caller's
thread aborts the decode.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeVar, Union

import numpy as np
import numpy.typing as npt

from llamalite import hardware, store
from llamalite.errors import EvaluationError
from llamalite.evaluation.windows import TokenBatch
from llamalite.gguf_check import checked_header
from llamalite.model import Model
from llamalite.native.context import NativeContext
from llamalite.native.decode_thread import DecodeThread
from llamalite.native.model import NativeModel

_SMALLEST_N_CTX = 256  # llama.cpp makes no smaller context

T = TypeVar("T")
AnyModel: TypeAlias = Union[str, "os.PathLike[str]", NativeModel, Model]


@contextlib.contextmanager
def opened(
    model: AnyModel, *, n_gpu_layers: int = 0, device: str | None = None, thread: DecodeThread | None = None
) -> Iterator[NativeModel]:
    """Load a path, or a name in the models folder, for the ``with`` block. A loaded model is used and stays loaded.

    Models opened with the same `thread` decode in it, in turns; by default each has its own. Raises
    ``OutOfMemoryError`` with the numbers if even the smallest context would not fit.
    """
    if isinstance(model, Model | NativeModel):
        yield model.native if isinstance(model, Model) else model
        return
    path = store.resolve(model)
    if n_gpu_layers == 0:
        hardware.plan_memory(checked_header(path), n_ctx=_SMALLEST_N_CTX, free_bytes=hardware.free_memory_bytes())
    native = NativeModel(path, n_gpu_layers=n_gpu_layers, device=device, thread=thread)
    try:
        yield native
    finally:
        native.close()


class Decoder:
    """Decodes batches in one context, in its model's thread, and counts the tokens and the seconds that they took."""

    def __init__(self, context: NativeContext) -> None:
        self.context = context
        self.decode_s = 0.0
        self.n_tokens = 0

    def compute(self, call: Callable[[], T]) -> T:
        """Return the result of `call`, run in the model's thread. An exception in the caller's thread aborts it.

        Raises ``GenerationCancelled`` if the model is closed, before or during the call.
        """
        context = self.context
        with context.in_use():
            context.clear_abort()  # left by an earlier call, or by a `close` that was refused
            return context.model.thread.run(call, context.abort)

    def decode(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Return the logits of the rows that `batch` wants, float32 [n_rows, n_vocab]: a view until the next decode.

        If another thread may close the model, the view is valid only while the context is `in_use`. Raises
        ``EvaluationError`` for logits that are not finite, and what `compute` raises.
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


def check_finite(logits: npt.NDArray[np.float32], source: str) -> None:
    """Raise ``EvaluationError`` if any of `logits`, computed by the file `source`, is NaN or infinite."""
    # Summing is one pass without a temporary. The sum of finite values may overflow: only then is each one checked.
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(logits.sum()):
            return
    if n := int(np.count_nonzero(~np.isfinite(logits))):
        raise EvaluationError(f"{n} of {logits.size} logits of {source} are not finite: the model file is damaged")
