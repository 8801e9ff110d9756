"""Measures what each type costs: decodes a reference and its candidates in lockstep over the same chunks of a text.

    comparison = compare("tiny-F16.gguf", ["tiny-Q8_0.gguf", "tiny-Q4_0.gguf"], text, chunks=32)
    comparison.candidates[1].divergence.mean_kld

Every model decodes each batch, and then the rows of logits are compared in place (`divergence`): no logits are stored
or rounded. Models that do not fit into memory together are compared in several passes; the reference is decoded again
in each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from llamalite import store
from llamalite.errors import EvaluationError
from llamalite.evaluation.divergence import Divergence, TokenDivergence, diverge, summarize
from llamalite.evaluation.measured_model import Decoder, opened
from llamalite.evaluation.protocol import EvalProtocol
from llamalite.evaluation.scoring import RowWorkers
from llamalite.evaluation.windows import NOT_SCORED, Text, TokenBatch, TokenIds, batches, sequences, tokens_of
from llamalite.gguf_check import Header, checked_header
from llamalite.hardware import GIB, free_memory_bytes, memory_needed
from llamalite.hardware.process_memory import resident_bytes
from llamalite.native.context import NativeContext
from llamalite.native.decode_thread import DecodeThread
from llamalite.native.model import NativeModel
from llamalite.performance.machine import machine_facts

_logger = logging.getLogger(__name__)
N_GENERATED = 32  # single tokens; the speed of generation is their median
_N_WARM = 4  # tokens before them: the first ones read the file from the disk


@dataclass(frozen=True)
class RunningCost:
    """What a model takes to run here, as seen during a comparison; `llamalite bench` measures more carefully."""

    load_s: float
    pp_tok_per_s: float  # tokens of the text, in the comparison's own batches
    tg_tok_per_s: float  # one token at a time: the median of `N_GENERATED`
    memory_bytes: int  # growth of the process: weights, cache, buffers


@dataclass(frozen=True)
class Candidate:
    """One model of a comparison. The reference is one too, with `divergence` None."""

    name: str
    path: Path
    qtype: str | None
    n_bytes: int
    bits_per_weight: float
    running: RunningCost
    divergence: Divergence | None

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as one flat object, the statistics under llama.cpp's names."""
        about = {
            "name": self.name,
            "path": str(self.path),
            "qtype": self.qtype,
            "n_bytes": self.n_bytes,
            "bits_per_weight": self.bits_per_weight,
        }
        return about | asdict(self.running) | (self.divergence.to_json() if self.divergence else {})


@dataclass(frozen=True)
class Comparison:
    """The reference, its candidates in the order they were given, and the protocol of the measurement."""

    reference: Candidate
    candidates: tuple[Candidate, ...]
    complete: bool
    protocol: dict[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference.to_json(),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "complete": self.complete,
            "protocol": self.protocol,
        }


class _ComparedModel:
    """A model's file and its measurements so far. The object lives through all passes; the model is loaded in some."""

    def __init__(self, path: Path, n_tokens: int) -> None:
        self.path = path
        self.header: Header = checked_header(path)
        self.tokens = TokenDivergence(n_tokens)
        self.n_scored = 0
        self.load_s = self.tg_tok_per_s = self.decode_s = 0.0
        self.n_decoded = self.memory_bytes = 0
        self.decoder: Decoder | None = None  # while it is loaded

    def decode(self, batch: TokenBatch) -> np.ndarray[Any, np.dtype[np.float32]]:
        assert self.decoder is not None
        bytes_before, seconds_before = resident_bytes() if not self.n_decoded else 0, self.decoder.decode_s
        logits = self.decoder.decode(batch)
        if not self.n_decoded:
            self.memory_bytes += max(0, resident_bytes() - bytes_before)
        self.decode_s += self.decoder.decode_s - seconds_before
        self.n_decoded += len(batch.tokens)
        return logits

    def append(self, divergence: TokenDivergence, scored: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        """Append the rows of `divergence` that are `scored`."""
        span = slice(self.n_scored, self.n_scored + int(np.count_nonzero(scored)))
        for name, values in vars(divergence).items():
            getattr(self.tokens, name)[span] = values[scored]
        self.n_scored = span.stop

    def as_reference(self) -> Candidate:
        return self._candidate(None)

    def as_candidate(self) -> Candidate:
        return self._candidate(summarize(self.tokens.head(self.n_scored)))

    def _candidate(self, divergence: Divergence | None) -> Candidate:
        pp_tok_per_s = self.n_decoded / self.decode_s if self.decode_s else 0.0
        return Candidate(
            name=self.path.stem,
            path=self.path,
            qtype=self.header.file_type,
            n_bytes=self.header.model_bytes,
            bits_per_weight=self.header.bits_per_weight,
            running=RunningCost(self.load_s, pp_tok_per_s, self.tg_tok_per_s, self.memory_bytes),
            divergence=divergence,
        )


@dataclass(frozen=True)
class ComparisonProgress:
    """How far a comparison is, and its figures so far, computed on demand. Each pass counts all chunks once."""

    chunks_done: int
    n_chunks: int
    _reference: _ComparedModel = field(repr=False)
    _candidates: Sequence[_ComparedModel] = field(repr=False)
    _protocol: dict[str, Any] = field(repr=False)

    def mean_kld(self) -> dict[str, float]:
        """Return the mean KL divergence so far of each candidate that has been decoded."""
        return {
            candidate.path.stem: float(candidate.tokens.kld[: candidate.n_scored].mean())
            for candidate in self._candidates
            if candidate.n_scored
        }

    def comparison(self) -> Comparison:
        """Return the comparison so far, without the candidates that only a later pass will decode."""
        return Comparison(
            self._reference.as_reference(),
            tuple(candidate.as_candidate() for candidate in self._candidates if candidate.n_scored),
            self.chunks_done == self.n_chunks,
            self._protocol,
        )


def compare(
    reference: str | os.PathLike[str],
    candidates: Sequence[str | os.PathLike[str]],
    text: Text,
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    exact: bool = False,
    n_batch: int = 2048,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
) -> Comparison:
    """Return what each of `candidates` lost against `reference` on `text`, all of them over the same chunks.

    The models are paths, or names in the models folder. ``EvaluationError`` if their vocabularies differ.
    `llamalite.evaluation.protocol.EvalProtocol` describes the other arguments.
    """
    protocol = EvalProtocol(n_ctx=n_ctx, n_batch=n_batch, chunks=chunks, exact=exact, n_threads=n_threads)
    *_, last = iter_compare(reference, candidates, text, protocol, n_gpu_layers=n_gpu_layers)
    return last.comparison()


def iter_compare(
    reference: str | os.PathLike[str],
    candidates: Sequence[str | os.PathLike[str]],
    text: Text,
    protocol: EvalProtocol,
    *,
    n_gpu_layers: int = 0,
    device: str | None = None,
    free_bytes: int | None = None,
) -> Generator[ComparisonProgress, None, None]:
    """Yield the progress after each batch. The models of a pass share `free_bytes` (default: the free memory)."""
    if not candidates:
        raise ValueError("there is nothing to compare the reference with: give at least one candidate")
    base_path = store.resolve(reference)
    with opened(base_path) as native:
        tokens = tokens_of(text, native, protocol.tokens_needed())
        windows = protocol.windows(tokens, native)
    n_scored = sum(int(np.count_nonzero(window.targets != NOT_SCORED)) for window in windows)
    base = _ComparedModel(base_path, 0)
    others = [_ComparedModel(store.resolve(path), n_scored) for path in candidates]
    passes = _passes(base, others, protocol, free_memory_bytes() if free_bytes is None else free_bytes)
    described: dict[str, Any] = {}
    done = 0
    with contextlib.closing(DecodeThread()) as thread:  # the models decode in turns, in one thread
        for group in passes:
            with contextlib.ExitStack() as stack:
                for model in (base, *group):
                    context = stack.enter_context(_loaded(model, protocol, (n_gpu_layers, device), thread))
                    _check_vocabulary(base, model, context.model, text, tokens)
                    described = described or _described(protocol, context, len(tokens))
                workers = stack.enter_context(RowWorkers(context.n_threads))
                for batch in batches(windows, protocol.n_ctx, context.n_batch):
                    _decode_and_score(base, group, batch, workers)
                    done += len(batch.window_ends)
                    yield ComparisonProgress(done, len(windows) * len(passes), base, others, described)


def _described(protocol: EvalProtocol, context: NativeContext, n_tokens: int) -> dict[str, Any]:
    """Return the protocol with the date and the machine, without which speeds mean nothing."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = {"n_tokens": n_tokens, "date": now, "machine": machine_facts()}
    return protocol.described(context.model, context) | about


def _decode_and_score(
    base: _ComparedModel, group: Sequence[_ComparedModel], batch: TokenBatch, workers: RowWorkers
) -> None:
    """Decode `batch` with the reference and every model of `group`, and append the scored rows to each of these."""
    reference = base.decode(batch)
    logits = [model.decode(batch) for model in group]
    scored = batch.targets != NOT_SCORED
    n = len(batch.targets)
    divergences = [TokenDivergence(n) for _ in group]
    targets = np.where(scored, batch.targets, 0)

    def score(start: int, end: int) -> None:
        rows = [of_model[start:end] for of_model in logits]
        diverge(reference[start:end], rows, targets[start:end], divergences, start)

    workers.over(n, score)
    for model, divergence in zip(group, divergences, strict=True):
        model.append(divergence, scored)


@contextlib.contextmanager
def _loaded(
    model: _ComparedModel, protocol: EvalProtocol, offload: tuple[int, str | None], thread: DecodeThread
) -> Iterator[NativeContext]:
    bytes_before, start = resident_bytes(), time.perf_counter()
    n_gpu_layers, device = offload
    with (
        opened(model.path, n_gpu_layers=n_gpu_layers, device=device, thread=thread) as native,
        protocol.context(native) as context,
    ):
        model.load_s = time.perf_counter() - start
        model.decoder = Decoder(context)
        if not model.n_decoded:
            model.tg_tok_per_s = _generation_speed(model.decoder)
            model.memory_bytes = max(0, resident_bytes() - bytes_before)
        try:
            yield context
        finally:
            model.decoder = None


def _generation_speed(decoder: Decoder) -> float:
    """Return tokens per second when decoding one at a time from an empty cache: the median, which ignores outliers."""
    context, seconds = decoder.context, []
    n = min(_N_WARM + N_GENERATED, context.n_ctx_seq)
    for position in range(n):
        token = context.model.bos if position == 0 and context.model.bos >= 0 else position
        before = decoder.decode_s
        decoder.decode(_batch_of_one(token, position))
        seconds.append(decoder.decode_s - before)
    context.clear()
    return 1 / statistics.median(seconds[min(_N_WARM, n // 2) :])


def _batch_of_one(token: int, position: int) -> TokenBatch:
    def array(value: int) -> TokenIds:
        return np.array([value], dtype=np.int32)

    wanted = np.ones(1, np.bool_)
    return TokenBatch(position == 0, array(token), array(position), array(0), wanted, array(NOT_SCORED), ())


def _check_vocabulary(
    base: _ComparedModel, model: _ComparedModel, native: NativeModel, text: Text, tokens: TokenIds
) -> None:
    """Raise ``EvaluationError`` unless `native` tokenizes the text as the reference did."""
    expected = base.header.n_vocab
    if native.n_vocab != expected:
        raise EvaluationError(
            f"{model.path.name} has a vocabulary of {native.n_vocab} tokens and {base.path.name} one of {expected}: "
            "only models with the same vocabulary can be compared"
        )
    if isinstance(text, str | bytes) and not np.array_equal(tokens_of(text, native, len(tokens)), tokens):
        raise EvaluationError(
            f"{model.path.name} tokenizes the text differently from {base.path.name}: only models with the same "
            "vocabulary can be compared"
        )


def _passes(
    base: _ComparedModel, others: Sequence[_ComparedModel], protocol: EvalProtocol, free_bytes: int
) -> list[list[_ComparedModel]]:
    """Cut the candidates into groups that fit into `free_bytes` together with the reference, at least one in each."""
    n_seq = sequences(protocol.n_ctx, protocol.n_batch)
    n_ctx = n_seq * protocol.n_ctx
    kv_type = "F32" if protocol.exact else "F16"

    def needed_bytes(model: _ComparedModel) -> int:
        needed = memory_needed(model.header, n_ctx=n_ctx, kv_type=kv_type, flash_attn=not protocol.exact)
        logits_bytes = 4 * min(protocol.n_batch, n_ctx) * model.header.n_vocab
        return needed.total_bytes + logits_bytes

    groups: list[list[_ComparedModel]] = []
    left_bytes = 0
    for model in others:
        if not groups or needed_bytes(model) > left_bytes:
            groups.append([])
            left_bytes = free_bytes - needed_bytes(base)
        if needed_bytes(model) > left_bytes:
            _logger.warning(
                "%s and %s need %.1f GiB together, and %.1f are free: this will be slow",
                base.path.name, model.path.name, (needed_bytes(base) + needed_bytes(model)) / GIB, free_bytes / GIB,
            )  # fmt: skip
        groups[-1].append(model)
        left_bytes -= needed_bytes(model)
    return groups
