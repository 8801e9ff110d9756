"""Many generations at once over one context: a slot a sequence, refilled as one ends, a common prefix read once.

    batch = Batch(engine, context, n_slots=16)
    answers = batch.run([Job(0, ids, params), ...])        # Completions in the jobs' order

Each step decodes one token of every answer that is being written, and fills what room is left with prompts that are
still to be read. The cache is unified: all sequences share its cells, and the prompts' common beginning lies in it
once, in sequence 0; slot n is sequence n + 1.

llama.cpp's kernels are not batch-invariant: a token's logits depend, in their last digits, on what else is in the
batch. Greedy answers may therefore part from those of single runs at a near tie; every token chosen is within rounding
of the likeliest all the same.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llamalite.answers import Answer, Completion, FinishReason, Piece, Totals
from llamalite.errors import ContextOverflowError, GenerationCancelled
from llamalite.generation import Cancellable, Engine
from llamalite.reading import Context
from llamalite.sampling import SamplingParams

MAX_PARALLEL = 255  # llama.cpp's LLAMA_MAX_SEQ (llama-cparams.h), less the one that holds the prefix
OnCompletion = Callable[[int, Completion], None]


@dataclass(frozen=True)
class Job:
    """One prompt of a batch, with parameters of its own; `number` is its place in the results."""

    number: int
    prompt: list[int]
    params: SamplingParams

    def room(self, n_ctx: int) -> int:
        """Return how many tokens this job may come to hold: its prompt, and `max_tokens` or what `n_ctx` leaves."""
        return n_ctx if self.params.max_tokens is None else len(self.prompt) + max(self.params.max_tokens, 1)


def cells_wanted(jobs: Sequence[Job], n_slots: int, n_ctx: int) -> int:
    """Return how many cells let the `n_slots` largest of `jobs` run together, none of them beyond `n_ctx`."""
    return sum(sorted((job.room(n_ctx) for job in jobs), reverse=True)[:n_slots])


def one_by_one(engine: Engine, jobs: Sequence[Job], on_completion: OnCompletion | None = None) -> list[Completion]:
    """Run `jobs` one after another over the engine's own context; when one is cancelled, so are all after it."""
    found: list[Completion] = []
    for job in jobs:
        with engine.stream(job.prompt, job.params) as stream:
            if found and found[-1].finish_reason == "cancelled":
                stream.cancel()
            found.append(Completion.of(stream))
        if on_completion is not None:
            on_completion(job.number, found[-1])
    return found


class _Slot:
    """An answer in the making: `unread` is what of its prompt is still to be decoded."""

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
        self.pieces.append(Piece(self.answer.rest(), finish_reason=reason, totals=totals))
        self.answer.sampler.close()
        return Completion.of(iter(self.pieces))


class Batch(Cancellable):
    """A run of many jobs over `context`, which has `n_slots` + 1 sequences in a unified cache of its own."""

    def __init__(self, engine: Engine, context: Context, *, n_slots: int, step_tokens: int = 512) -> None:
        super().__init__(engine, context)
        self._n_slots = n_slots
        self._step_tokens = min(step_tokens, context.n_batch)

    def run(self, jobs: Sequence[Job], on_completion: OnCompletion | None = None) -> list[Completion]:
        """Run `jobs` and return their completions in order; each is given to `on_completion` as it finishes."""
        done: dict[int, Completion] = {}

        def finish(job: Job, completion: Completion) -> None:
            done[job.number] = completion
            if on_completion is not None:
                on_completion(job.number, completion)

        for job in jobs:
            if job.room(self.context.n_ctx_seq) > self.context.n_ctx_seq:
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
                sampler = self._engine.make_sampler(job.params, job.prompt)
                answer = Answer(job.params, sampler, self._engine.vocabulary)
                finish(job, _Slot(job, 0, 0, answer).completion("cancelled"))
        finally:
            for slot in slots.values():
                slot.answer.sampler.close()
        return [done[job.number] for job in jobs]

    def _read_prefix(self, jobs: Sequence[Job]) -> list[int]:
        """Read what all prompts begin with into sequence 0, and return it; each keeps a last token of its own."""
        if len(jobs) < 2 or not self._engine.can_rewind:
            return []
        # What the first and the last in order begin with, all in between begin with too.
        first, last = min(job.prompt for job in jobs), max(job.prompt for job in jobs)
        shortest = max(0, min(len(job.prompt) for job in jobs) - 1)
        n = next((i for i in range(shortest) if first[i] != last[i]), shortest)
        prefix = first[:n]
        for start in range(0, n, self._step_tokens):
            chunk = prefix[start : start + self._step_tokens]
            self._decode(chunk, list(range(start, start + len(chunk))), [0] * len(chunk), [False] * len(chunk))
        return prefix

    def _fill(self, waiting: collections.deque[Job], slots: dict[int, _Slot], prefix: list[int]) -> None:
        """Give free sequences to waiting jobs, in order, as long as each has room for all it may come to hold."""
        n_ctx = self.context.n_ctx_seq
        promised = len(prefix) + sum(slot.job.room(n_ctx) - len(prefix) for slot in slots.values())
        for seq_id in range(1, self._n_slots + 1):
            if not waiting or seq_id in slots:
                continue
            more = waiting[0].room(n_ctx) - len(prefix)
            if slots and promised + more > n_ctx:
                return
            promised += more
            job = waiting.popleft()
            if prefix:
                self.context.seq_cp(0, seq_id, 0, len(prefix))
            sampler = self._engine.make_sampler(job.params, job.prompt)
            answer = Answer(job.params, sampler, self._engine.vocabulary)
            slots[seq_id] = _Slot(job, seq_id, len(prefix), answer)

    def _step(self, slots: dict[int, _Slot]) -> None:
        """Decode a token of every answer and, as far as the step has room, of the prompts; choose the next tokens."""
        tokens: list[int] = []
        positions: list[int] = []
        seq_ids: list[int] = []
        want: list[bool] = []
        asked: list[_Slot] = []

        def put(slot: _Slot, some: Sequence[int], *, last: bool) -> None:
            tokens.extend(some)
            positions.extend(range(slot.position, slot.position + len(some)))
            seq_ids.extend([slot.seq_id] * len(some))
            want.extend([False] * (len(some) - 1) + [last])
            slot.position += len(some)
            if last:
                asked.append(slot)

        for slot in slots.values():
            if not slot.unread:
                put(slot, slot.answer.tokens[-1:], last=True)
        for slot in slots.values():
            room = self._step_tokens - len(tokens)
            if slot.unread and room > 0:
                some, slot.unread = slot.unread[:room], slot.unread[room:]
                put(slot, some, last=not slot.unread)
        self._decode(tokens, positions, seq_ids, want)
        if not asked:
            return
        for slot, row in zip(asked, self.context.logits(), strict=True):  # float32 [n_asked, n_vocab]
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
        self._engine.compute(
            lambda: self.context.decode(
                np.array(tokens, np.int32), np.array(positions, np.int32), np.array(seq_ids, np.int32), want
            ),
            self.context,
        )
