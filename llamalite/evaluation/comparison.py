"""A reference and its quantized candidates over the same chunks of a text, in lockstep: what each type costs.

    comparison = compare("tiny-F16.gguf", ["tiny-Q8_0.gguf", "tiny-Q4_0.gguf"], text, chunks=32)
    comparison.candidates[1].divergence.mean_kld

Each batch is decoded by every model, then the rows of logits, which stay where llama.cpp left them, are compared
(`divergence`): no logits are stored, and none are rounded. Models that do not fit into memory together are compared in
several passes; the reference is decoded again in each.
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

from llamalite import diagnosis, store
from llamalite.errors import EvaluationError
from llamalite.evaluation.decoding import Decoder, EvalProtocol, opened
from llamalite.evaluation.divergence import Divergence, TokenDivergence, diverge, summarize
from llamalite.evaluation.scoring import RowWorkers
from llamalite.evaluation.windows import NOT_SCORED, Text, TokenBatch, TokenIds, batches, sequences, tokens_of
from llamalite.gguf_check import Header, checked_header
from llamalite.hardware import GIB, MemoryNeeded, free_memory_bytes, memory_needed, repacked
from llamalite.native.context import NativeContext
from llamalite.native.decode_thread import DecodeThread
from llamalite.native.memory import resident_bytes
from llamalite.native.model import NativeModel

_logger = logging.getLogger(__name__)
N_GENERATED = 32  # single tokens whose median tells the speed of generation
_N_WARM = 4  # before them: the first ones read the file from the disk


@dataclass(frozen=True)
class Running:
    """What a model takes to run here, as seen during a comparison; `llamalite bench` measures more carefully."""

    load_s: float
    pp_tok_per_s: float  # tokens of the text, in the comparison's own batches
    tg_tok_per_s: float  # one token at a time: the median of `N_GENERATED`
    memory_bytes: int  # by which the process grew: weights, cache, buffers


@dataclass(frozen=True)
class Candidate:
    """One model of a comparison; the reference's own `divergence` is None."""

    name: str
    path: Path
    qtype: str | None
    n_bytes: int
    bits_per_weight: float
    running: Running
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
            "candidates": [one.to_json() for one in self.candidates],
            "complete": self.complete,
            "protocol": self.protocol,
        }


class _Subject:
    """One model under comparison: where it is, and what has been seen of it; it outlives being loaded."""

    def __init__(self, path: Path, n_tokens: int) -> None:
        self.path = path
        self.header: Header = checked_header(path)
        self.tokens = TokenDivergence(n_tokens)
        self.n_scored = 0
        self.load_s = self.tg_tok_per_s = self.decode_s = 0.0
        self.n_decoded = self.memory_bytes = 0
        self.decoder: Decoder | None = None

    def decode(self, batch: TokenBatch) -> np.ndarray[Any, np.dtype[np.float32]]:
        assert self.decoder is not None
        before, seconds = resident_bytes() if not self.n_decoded else 0, self.decoder.decode_s
        logits = self.decoder.decode(batch)
        if not self.n_decoded:
            self.memory_bytes += max(0, resident_bytes() - before)
        self.decode_s += self.decoder.decode_s - seconds
        self.n_decoded += len(batch.tokens)
        return logits

    def candidate(self, divergence: Divergence | None) -> Candidate:
        running = Running(
            self.load_s, self.n_decoded / self.decode_s if self.decode_s else 0.0, self.tg_tok_per_s, self.memory_bytes
        )
        return Candidate(
            name=self.path.stem,
            path=self.path,
            qtype=self.header.file_type,
            n_bytes=self.header.model_bytes,
            bits_per_weight=self.header.bits_per_weight,
            running=running,
            divergence=divergence,
        )


@dataclass(frozen=True)
class Standing:
    """What stands after a batch: steps done of all (chunks, times the passes over them), and the numbers on demand."""

    chunks_done: int
    n_chunks: int
    _reference: _Subject = field(repr=False)
    _candidates: Sequence[_Subject] = field(repr=False)
    _protocol: dict[str, Any] = field(repr=False)

    def mean_kld(self) -> dict[str, float]:
        """Return the mean KL divergence so far of each candidate that has been decoded."""
        return {one.path.stem: float(one.tokens.kld[: one.n_scored].mean()) for one in self._candidates if one.n_scored}

    def comparison(self) -> Comparison:
        """Return the statistics so far; candidates that a later pass decodes are not among them yet."""
        return Comparison(
            self._reference.candidate(None),
            tuple(one.candidate(summarize(one.tokens.head(one.n_scored))) for one in self._candidates if one.n_scored),
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

    The models are paths or names in the models folder, and share a vocabulary: ``EvaluationError`` otherwise.
    `EvalProtocol` describes the other arguments.
    """
    protocol = EvalProtocol(n_ctx=n_ctx, n_batch=n_batch, chunks=chunks, exact=exact, n_threads=n_threads)
    *_, standing = iter_compare(reference, candidates, text, protocol, n_gpu_layers=n_gpu_layers)
    return standing.comparison()


def iter_compare(
    reference: str | os.PathLike[str],
    candidates: Sequence[str | os.PathLike[str]],
    text: Text,
    protocol: EvalProtocol,
    *,
    n_gpu_layers: int = 0,
    device: str | None = None,
    free_bytes: int | None = None,
) -> Generator[Standing, None, None]:
    """Yield what stands after each batch. `free_bytes` is what the models may take together (default: what is free)."""
    if not candidates:
        raise ValueError("there is nothing to compare the reference with: give at least one candidate")
    base_path = store.resolve(reference)
    with opened(base_path) as model:
        tokens = tokens_of(text, model, protocol.tokens_needed())
        windows = protocol.windows(tokens, model)
    n_scored = sum(int(np.count_nonzero(window.targets != NOT_SCORED)) for window in windows)
    base = _Subject(base_path, 0)
    others = [_Subject(store.resolve(path), n_scored) for path in candidates]
    passes = _passes(base, others, protocol, free_memory_bytes() if free_bytes is None else free_bytes)
    described: dict[str, Any] = {}
    done = 0
    with contextlib.closing(DecodeThread()) as thread:  # one for all models: they decode in turns
        for group in passes:
            with contextlib.ExitStack() as stack:
                for one in (base, *group):
                    context = stack.enter_context(_loaded(one, protocol, (n_gpu_layers, device), thread))
                    _check_vocabulary(base, one, context.model, text, tokens)
                    described = described or _described(protocol, context, len(tokens))
                workers = stack.enter_context(RowWorkers(context.n_threads))
                for batch in batches(windows, protocol.n_ctx, context.n_batch):
                    _decode_and_score(base, group, batch, workers)
                    done += len(batch.window_ends)
                    yield Standing(done, len(windows) * len(passes), base, others, described)


def _described(protocol: EvalProtocol, context: NativeContext, n_tokens: int) -> dict[str, Any]:
    """Return the protocol, and when and on which machine it was followed: speeds mean nothing without."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = {"n_tokens": n_tokens, "date": now, "machine": diagnosis.this_machine()}
    return protocol.described(context.model, context) | about


def _decode_and_score(base: _Subject, group: Sequence[_Subject], batch: TokenBatch, workers: RowWorkers) -> None:
    """Decode `batch` with every model of `group`, and append the scored rows to what is kept of each."""
    reference = base.decode(batch)
    rows = [one.decode(batch) for one in group]
    scored = batch.targets != NOT_SCORED
    n = len(batch.targets)
    found = [TokenDivergence(n) for _ in group]
    targets = np.where(scored, batch.targets, 0)

    def score(start: int, end: int) -> None:
        parts = [part[start:end] for part in rows]
        diverge(reference[start:end], parts, targets[start:end], found, start)

    workers.over(n, score)
    for one, new in zip(group, found, strict=True):
        there = slice(one.n_scored, one.n_scored + int(np.count_nonzero(scored)))
        for name, values in vars(new).items():
            getattr(one.tokens, name)[there] = values[scored]
        one.n_scored = there.stop


@contextlib.contextmanager
def _loaded(
    one: _Subject, protocol: EvalProtocol, offload: tuple[int, str | None], thread: DecodeThread
) -> Iterator[NativeContext]:
    before, start = resident_bytes(), time.perf_counter()
    n_gpu_layers, device = offload
    with (
        opened(one.path, n_gpu_layers=n_gpu_layers, device=device, thread=thread) as model,
        protocol.context(model) as context,
    ):
        one.load_s = time.perf_counter() - start
        one.decoder = Decoder(context)
        if not one.n_decoded:
            one.tg_tok_per_s = _generation_speed(one.decoder)
            one.memory_bytes = max(0, resident_bytes() - before)
        try:
            yield context
        finally:
            one.decoder = None


def _generation_speed(decoder: Decoder) -> float:
    """Return tokens a second, one at a time from an empty cache: by the median, which leaves out what was disturbed."""
    context, seconds = decoder.context, []
    n = min(_N_WARM + N_GENERATED, context.n_ctx_seq)
    for position in range(n):
        token = context.model.bos if position == 0 and context.model.bos >= 0 else position
        before = decoder.decode_s
        decoder.decode(_one_token(token, position))
        seconds.append(decoder.decode_s - before)
    context.clear()
    return 1 / statistics.median(seconds[min(_N_WARM, n // 2) :])


def _one_token(token: int, position: int) -> TokenBatch:
    def one(value: int) -> TokenIds:
        return np.array([value], dtype=np.int32)

    return TokenBatch(position == 0, one(token), one(position), one(0), np.ones(1, np.bool_), one(NOT_SCORED), ())


def _check_vocabulary(base: _Subject, one: _Subject, model: NativeModel, text: Text, tokens: TokenIds) -> None:
    """Raise ``EvaluationError`` unless `model` reads the text as the reference did."""
    expected = base.header.n_vocab
    if model.n_vocab != expected:
        raise EvaluationError(
            f"{one.path.name} has a vocabulary of {model.n_vocab} tokens and {base.path.name} one of {expected}: "
            "only models with the same vocabulary can be compared"
        )
    if isinstance(text, str | bytes) and not np.array_equal(tokens_of(text, model, len(tokens)), tokens):
        raise EvaluationError(
            f"{one.path.name} cuts the text into other tokens than {base.path.name}: only models with the same "
            "vocabulary can be compared"
        )


def _passes(
    base: _Subject, others: Sequence[_Subject], protocol: EvalProtocol, free_bytes: int
) -> list[list[_Subject]]:
    """Cut the candidates into groups that fit into `free_bytes` together with the reference, at least one in each."""

    def need(one: _Subject) -> int:
        n_seq = sequences(protocol.n_ctx, protocol.n_batch)
        n_rows = min(protocol.n_batch, n_seq * protocol.n_ctx)
        logits = 4 * n_rows * one.header.n_vocab
        return needed(one.header, n_seq * protocol.n_ctx, exact=protocol.exact).total_bytes + logits

    groups: list[list[_Subject]] = []
    room = 0
    for one in others:
        if not groups or need(one) > room:
            groups.append([])
            room = free_bytes - need(base)
        if need(one) > room:
            _logger.warning(
                "%s and %s need %.1f GiB together, and %.1f are free: this will be slow",
                base.path.name, one.path.name, (need(base) + need(one)) / GIB, free_bytes / GIB,
            )  # fmt: skip
        groups[-1].append(one)
        room -= need(one)
    return groups


def needed(header: Header, n_ctx: int, *, exact: bool = False) -> MemoryNeeded:
    """Return what a model takes on this machine's CPU at `n_ctx`, the copy that llama.cpp repacks included."""
    return memory_needed(
        header, n_ctx=n_ctx, kv_type="F32" if exact else "F16", flash_attn=not exact, repacked=repacked()
    )
