"""Runs many generations at once over one context: a sequence for each, and their common prefix read once.

    batch = Batch(engine, context, n_slots=16)
    completions = batch.run([Job(0, ids, params), ...])    # in the jobs' order

Each step decodes one token of every answer in progress and fills the remaining room with tokens of prompts. When an
answer ends, the next job takes its slot. The cache is unified: all sequences share its cells. The prompts' common
prefix is stored once, in sequence 0; the slots are the sequences from 1 on.

llama.cpp's kernels are not batch-invariant: the last digits of a token's logits depend on what else is in the batch. At
a near tie, a greedy answer may therefore differ from that of a single run; every token chosen is still the likeliest
one, within rounding.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llamalite.errors import ContextOverflowError, GenerationCancelled
from llamalite.generation.completion import Answer, Completion, FinishReason, Piece, Totals
from llamalite.generation.engine import Cancellable, Engine
from llamalite.generation.prefix_cache import Context
from llamalite.sampling import SamplingParams

MAX_PARALLEL = 255  # llama.cpp's LLAMA_MAX_SEQ (llama-cparams.h), less the sequence that holds the prefix
OnCompletion = Callable[[int, Completion], None]


@dataclass(frozen=True)
class Job:
    """One prompt of a batch with its parameters; `number` is its place in the results."""

    number: int
    prompt: list[int]
    params: SamplingParams

    def tokens_needed(self, n_ctx: int) -> int:
        """Return the most tokens this job may need: its prompt and `max_tokens`, or `n_ctx` without a limit."""
        return n_ctx if self.params.max_tokens is None else len(self.prompt) + max(self.params.max_tokens, 1)


def cells_needed(jobs: Sequence[Job], n_slots: int, n_ctx: int) -> int:
    """Return how many cells of the cache the `n_slots` largest of `jobs` need together."""
    return sum(sorted((job.tokens_needed(n_ctx) for job in jobs), reverse=True)[:n_slots])


def one_by_one(engine: Engine, jobs: Sequence[Job], on_completion: OnCompletion | None = None) -> list[Completion]:
    """Run `jobs` one after another over the engine's own context; once a job is cancelled, so are those after it."""
    completions: list[Completion] = []
    for job in jobs:
        with engine.stream(job.prompt, job.params) as stream:
            if completions and completions[-1].finish_reason == "cancelled":
                stream.cancel()
            completions.append(Completion.of(stream))
        if on_completion is not None:
            on_completion(job.number, completions[-1])
    return completions


class _Slot:
    """An answer in progress; `unread` is the part of its prompt that is not decoded yet."""

    def __init__(self, job: Job, seq_id: int, n_cached: int, answer: Answer) -> None:
        self.job, self.seq_id, self.answer = job, seq_id, answer
        self.n_cached = self.position = n_cached
        self.unread: list[int] = job.prompt[n_cached:]
        self.pieces: list[Piece] = []
        self.began = time.perf_counter()
        self.prompt_s = 0.0

    def completion(self, reason: FinishReason) -> Completion:
        spent = time.perf_counter() - self.began
        prompt_s = self.prompt_s or spent
        totals = Totals(
            len(self.job.prompt),
            self.n_cached,
            len(self.answer.tokens),
            prompt_s,
            spent - prompt_s,
            prompt_s,
            self.answer.sampler.seed,
        )
        stopped_by = self.answer.stopped_by
        self.pieces.append(Piece(self.answer.rest(), finish_reason=reason, totals=totals, stopped_by=stopped_by))
        self.answer.sampler.close()
        return Completion.of(iter(self.pieces))


class Batch(Cancellable):
    """A run of many jobs over `context`, which has `n_slots` + 1 sequences in a unified cache."""

    def __init__(self, engine: Engine, context: Context, *, n_slots: int, step_tokens: int = 512) -> None:
        super().__init__(engine, context)
        self._n_slots = n_slots
        self._step_tokens = min(step_tokens, context.n_batch)

    def run(self, jobs: Sequence[Job], on_completion: OnCompletion | None = None) -> list[Completion]:
        """Run `jobs` and return their completions in order; `on_completion` gets each one as it finishes.

        Raises ``ContextOverflowError`` for a job that is larger than the whole context.
        """
        done: dict[int, Completion] = {}

        def finish(job: Job, completion: Completion) -> None:
            done[job.number] = completion
            if on_completion is not None:
                on_completion(job.number, completion)

        for job in jobs:
            if job.tokens_needed(self.context.n_ctx_seq) > self.context.n_ctx_seq:
                raise ContextOverflowError(
                    f"prompt {job.number} has {len(job.prompt)} tokens and asks for {job.params.max_tokens} more, and "
                    f"the context holds {self.context.n_ctx_seq}"
                )
        waiting, slots = collections.deque(jobs), dict[int, _Slot]()
        try:
            with self._engine.turn(self):
                prefix = self._read_prefix(jobs)
                while waiting or slots:
                    self._fill(waiting, slots, prefix)
                    self._step(slots)
                    for seq_id, slot in list(slots.items()):
                        if (reason := self._end_of(slot)) is not None:
                            del slots[seq_id]
                            self.context.seq_rm(seq_id)
                            finish(slot.job, slot.completion(reason))
                    if self.cancelled:
                        raise GenerationCancelled("the batch was cancelled")
        except GenerationCancelled:
            for slot in slots.values():
                finish(slot.job, slot.completion("cancelled"))
            for job in waiting:
                answer = self._engine.new_answer(job.prompt, job.params)
                finish(job, _Slot(job, 0, 0, answer).completion("cancelled"))
        finally:
            for slot in slots.values():
                slot.answer.sampler.close()
        return [done[job.number] for job in jobs]

    def _read_prefix(self, jobs: Sequence[Job]) -> list[int]:
        """Decode the prompts' common prefix, without any prompt's last token, into sequence 0, and return it."""
        if len(jobs) < 2 or not self._engine.cache.can_rewind:
            return []
        # In sorted order, a prefix of the first and of the last prompt is a prefix of all between them.
        first, last = min(job.prompt for job in jobs), max(job.prompt for job in jobs)
        shortest = max(0, min(len(job.prompt) for job in jobs) - 1)
        n = next((i for i in range(shortest) if first[i] != last[i]), shortest)
        prefix = first[:n]
        for start in range(0, n, self._step_tokens):
            chunk = prefix[start : start + self._step_tokens]
            self._decode(chunk, list(range(start, start + len(chunk))), [0] * len(chunk), [False] * len(chunk))
        return prefix

    def _fill(self, waiting: collections.deque[Job], slots: dict[int, _Slot], prefix: list[int]) -> None:
        """Give free slots to waiting jobs, in order, as long as the cache has room for all that each may need."""
        n_ctx = self.context.n_ctx_seq
        reserved = len(prefix) + sum(slot.job.tokens_needed(n_ctx) - len(prefix) for slot in slots.values())
        for seq_id in range(1, self._n_slots + 1):
            if not waiting or seq_id in slots:
                continue
            needed = waiting[0].tokens_needed(n_ctx) - len(prefix)
            if slots and reserved + needed > n_ctx:
                return
            reserved += needed
            job = waiting.popleft()
            if prefix:
                self.context.seq_cp(0, seq_id, 0, len(prefix))
            answer = self._engine.new_answer(job.prompt, job.params)
            slots[seq_id] = _Slot(job, seq_id, len(prefix), answer)

    def _step(self, slots: dict[int, _Slot]) -> None:
        """Decode one token of every answer, fill the step with tokens of prompts, and sample the next tokens."""
        tokens: list[int] = []
        positions: list[int] = []
        seq_ids: list[int] = []
        want: list[bool] = []
        sampled: list[_Slot] = []  # the slots whose next token this step gives

        def put(slot: _Slot, chunk: Sequence[int], *, want_last: bool) -> None:
            tokens.extend(chunk)
            positions.extend(range(slot.position, slot.position + len(chunk)))
            seq_ids.extend([slot.seq_id] * len(chunk))
            want.extend([False] * (len(chunk) - 1) + [want_last])
            slot.position += len(chunk)
            if want_last:
                sampled.append(slot)

        for slot in slots.values():
            if not slot.unread:
                put(slot, slot.answer.tokens[-1:], want_last=True)
        for slot in slots.values():
            room = self._step_tokens - len(tokens)
            if slot.unread and room > 0:
                chunk, slot.unread = slot.unread[:room], slot.unread[room:]
                put(slot, chunk, want_last=not slot.unread)
        self._decode(tokens, positions, seq_ids, want)
        if not sampled:
            return
        for slot, row in zip(sampled, self.context.logits(), strict=True):  # float32 [n_sampled, n_vocab]
            slot.prompt_s = slot.prompt_s or time.perf_counter() - slot.began
            if slot.answer.reason is None:
                piece = slot.answer.take(row)
                if piece is not None:
                    slot.pieces.append(piece)

    def _end_of(self, slot: _Slot) -> FinishReason | None:
        if slot.unread:
            return None
        if slot.answer.reason is None and slot.position >= self.context.n_ctx_seq:
            return "context"
        return slot.answer.reason

    def _decode(self, tokens: list[int], positions: list[int], seq_ids: list[int], want: list[bool]) -> None:
        self._engine.cache.compute(
            lambda: self.context.decode(
                np.array(tokens, np.int32), np.array(positions, np.int32), np.array(seq_ids, np.int32), want
            ),
            self.context,
        )
