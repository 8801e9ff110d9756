"""Perplexity of a text under a model, by llama-perplexity's protocol and to its digits, or with a sliding window.

    result = perplexity("demo-Q4_K_M.gguf", Path("wiki.test.raw").read_bytes(), chunks=32)
    print(f"{result.ppl:.4f} ± {result.ppl_err:.5f}, {result.bits_per_byte:.4f} bits per byte")

ppl is exp of the mean negative log-likelihood over the scored tokens; ppl_err is the standard error of that mean, times
ppl. Results are comparable only under the same protocol, so each one carries it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llamalite.evaluation.measured_model import AnyModel, Decoder, opened
from llamalite.evaluation.protocol import EvalProtocol
from llamalite.evaluation.scoring import RowWorkers, RunningMean, negative_log_likelihoods
from llamalite.evaluation.text_units import TextUnits
from llamalite.evaluation.windows import NOT_SCORED, Text, batches, tokens_of
from llamalite.native.model import NativeModel


@dataclass(frozen=True)
class PerplexityResult:
    """A perplexity with its standard error, and how it was measured; during a run, the perplexity so far."""

    ppl: float
    ppl_err: float  # NaN for a single token
    nll: float  # mean, in nats per token
    nll_err: float
    n_scored: int  # tokens
    n_bytes: int | None  # of the scored tokens; None if the file has no vocabulary
    n_words: int | None
    n_tokens: int  # of the text; with `chunks`, of the part that they need
    n_decoded: int  # tokens that went through the model
    chunks_done: int
    n_chunks: int
    decode_s: float
    scoring_s: float
    protocol: dict[str, Any] = field(repr=False)
    _running: list[float] = field(repr=False)  # all results of a run share the list: each reads its beginning

    @property
    def running_ppl(self) -> list[float]:
        """The perplexity after each chunk."""
        return self._running[: self.chunks_done]

    @property
    def complete(self) -> bool:
        return self.chunks_done == self.n_chunks

    @property
    def bits_per_byte(self) -> float | None:
        """Bits that an arithmetic coder would spend per byte of the scored text: comparable across tokenizers."""
        return self.nll * self.n_scored / math.log(2) / self.n_bytes if self.n_bytes else None

    @property
    def bits_per_word(self) -> float | None:
        return self.nll * self.n_scored / math.log(2) / self.n_words if self.n_words else None

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object: plain numbers, None for what is not defined."""
        names = ("ppl", "ppl_err", "nll", "nll_err", "bits_per_byte", "bits_per_word", "n_scored", "n_bytes", "n_words")
        more = ("n_tokens", "n_decoded", "chunks_done", "n_chunks", "complete", "decode_s", "scoring_s", "protocol")
        plain = {name: getattr(self, name) for name in names + more} | {"running_ppl": self.running_ppl}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in plain.items()}


def perplexity(
    model: AnyModel,
    text: Text,
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    stride: int | None = None,
    exact: bool = False,
    n_batch: int = 2048,
    n_threads: int | None = None,
    progress: Callable[[PerplexityResult], None] | None = None,
) -> PerplexityResult:
    """Return the perplexity of `text` under `model`: a path, a name in the models folder, or a loaded model.

    `text` is a str, bytes, token ids, or an iterable of texts, which is read no further than needed.
    `llamalite.evaluation.protocol.EvalProtocol` describes the other arguments. `progress` is called with the result so
    far after each chunk. Raises ``EvaluationError`` if the text is too short or logits are not finite, and
    ``ModelLoadError`` if the model cannot be loaded.
    """
    protocol = EvalProtocol(
        n_ctx=n_ctx, n_batch=n_batch, chunks=chunks, stride=stride, exact=exact, n_threads=n_threads
    )  # fmt: skip
    result = None
    with opened(model) as native:
        for result in iter_perplexity(native, text, protocol):
            if progress is not None:
                progress(result)
    assert result is not None  # a text without windows raises an error
    return result


def iter_perplexity(model: NativeModel, text: Text, protocol: EvalProtocol) -> Generator[PerplexityResult, None, None]:
    """Yield the result so far after each window; the last one is complete. Closing the generator frees the context."""
    tokens = tokens_of(text, model, protocol.tokens_needed())
    windows = protocol.windows(tokens, model)
    units = TextUnits(model) if model.has_vocab else None
    mean, running = RunningMean(), list[float]()
    n_bytes = n_words = 0
    scoring_s = 0.0
    with protocol.context(model) as context, RowWorkers(context.n_threads) as workers:
        decoder = Decoder(context)
        described = protocol.described(model, context) | {"tokens_sha256": _digest(tokens), "n_tokens": len(tokens)}
        for batch in batches(windows, protocol.n_ctx, context.n_batch):
            nll = np.empty(len(batch.targets), dtype=np.float64)
            with context.in_use():
                logits = decoder.decode(batch)  # float32 [n_rows, n_vocab]
                start = time.perf_counter()

                def score(first: int, last: int) -> None:
                    nll[first:last] = negative_log_likelihoods(logits[first:last], batch.targets[first:last])  # noqa: B023

                workers.over(len(nll), score)
            scored = batch.targets != NOT_SCORED
            previous = batch.tokens[batch.wanted]
            scoring_s += time.perf_counter() - start
            at = 0
            for end in (*batch.window_ends, len(nll)):
                part = scored[at:end]
                mean.add(nll[at:end][part])
                if units is not None:
                    more_bytes, more_words = units.count(previous[at:end][part], batch.targets[at:end][part])
                    n_bytes, n_words = n_bytes + more_bytes, n_words + more_words
                if end > at and end in batch.window_ends:
                    running.append(math.exp(mean.mean) if mean.count else math.nan)
                    yield PerplexityResult(
                        ppl=running[-1],
                        ppl_err=running[-1] * mean.error,
                        nll=mean.mean,
                        nll_err=mean.error,
                        n_scored=mean.count,
                        n_bytes=n_bytes if units else None,
                        n_words=n_words if units else None,
                        n_tokens=len(tokens),
                        n_decoded=decoder.n_tokens,
                        chunks_done=len(running),
                        n_chunks=len(windows),
                        decode_s=decoder.decode_s,
                        scoring_s=scoring_s,
                        protocol=described,
                        _running=running,
                    )
                at = end


def _digest(tokens: np.ndarray[Any, np.dtype[np.int32]]) -> str:
    """Return the sha256 of the token ids as little-endian int32: runs with the same digest scored the same text."""
    return hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()
