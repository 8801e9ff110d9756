"""Runs all generations of a model together over one context, step by step.

    engine = Engine(context, vocabulary, make_sampler, limits=Limits(n_parallel=8))
    for piece in engine.stream(prompt_ids, SamplingParams(max_tokens=32)):     # from any number of threads
        print(piece.text, end="")            # the last piece has the text held back, a finish reason and the totals

A step is one decode: a token of every answer in progress, and as many tokens of prompts as keep it short
(`llamalite.generation.schedule`). Between two steps requests join and leave. Steps run in the model's decode thread,
one after another as long as there is a request, and the engine's state changes only there.

This module does not import llama.cpp: any object with the right methods can be the context, the vocabulary or the
sampler, and the tests use fakes. llama.cpp's kernels are not batch-invariant: the last digits of a token's logits
depend on what else is in the step. At a near tie, a greedy answer may therefore differ from that of a run of its own;
every token chosen is still the likeliest one, within rounding.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from llamalite.errors import ContextOverflowError, GenerationCancelled, LlamaliteError, QueueFullError
from llamalite.generation.completion import Answer, Detokenizer, FinishReason, Logits, Piece, Sampler
from llamalite.generation.costs import Costs
from llamalite.generation.request import Deliver, GenerationRequest, Stream, SupportsDraft
from llamalite.generation.schedule import Part, Schedule
from llamalite.generation.sequence_cache import Context, SequenceCache
from llamalite.native.decode_thread import DecodeThread
from llamalite.sampling import SamplingParams


def _drop(_piece: Piece | BaseException) -> None:
    pass


SamplerFactory = Callable[[SamplingParams, Sequence[int]], Sampler]
SpeculatorFactory = Callable[[SamplingParams, Sequence[int], Costs], SupportsDraft | None]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much an engine takes on.

    - `n_parallel`: how many generations are computed together; `max_queue`: how many may wait while so many run, None
      sets no limit.
    - `n_ctx`: the most tokens of one generation, prompt and answer; None is as many as the context holds.
    - `prompt_step`: the most tokens of a prompt in one decode. None is n_batch; it is less where a decode cannot be
      aborted, so that whoever joins or cancels has to wait for its end.
    """

    n_parallel: int = 1
    max_queue: int | None = None
    n_ctx: int | None = None
    prompt_step: int | None = None


class Engine:
    """Runs generations over the sequences of a context, for any number of threads, within `limits`.

    - `make_speculator` returns the object that drafts tokens for a generation, or None to decode them one by one.
    - `can_rewind` and `window` are those of `SequenceCache`.
    - `use_adapters` makes later decodes use a request's `adapters`.
    - `thread` is the model's.
    """

    def __init__(
        self,
        context: Context,
        vocabulary: Detokenizer,
        make_sampler: SamplerFactory,
        *,
        make_speculator: SpeculatorFactory | None = None,
        can_rewind: bool = True,
        window: int = 0,
        limits: Limits = Limits(),
        use_adapters: Callable[[Hashable], None] = lambda _adapters: None,
        thread: DecodeThread | None = None,
    ) -> None:
        self.context, self.cache = context, SequenceCache(context, can_rewind=can_rewind, window=window)
        self.costs, self.n_parallel = Costs(), min(limits.n_parallel, context.n_seq_max)
        self.n_ctx = min(limits.n_ctx or context.n_ctx_seq, context.n_ctx_seq)
        step_tokens = min(limits.prompt_step or context.n_batch, context.n_batch)
        self.schedule = Schedule(self.cache, n_parallel=self.n_parallel, step_tokens=step_tokens)
        self._vocabulary, self.make_sampler, self._make_speculator = vocabulary, make_sampler, make_speculator
        self._max_queue = limits.max_queue
        self._use_adapters = use_adapters
        self._adapters: Hashable = None
        self._thread = thread or DecodeThread()
        self.check_process = self._thread.check_process
        self._numbers = itertools.count()
        self._in_step: tuple[GenerationRequest, ...] = ()  # whose tokens are being decoded
        self._is_long_step = False  # whether whoever joins should not wait for its end
        self._scheduling = threading.Lock()
        self._is_scheduled = False  # whether the decode thread has a step to do
        self._calls: list[Callable[[], object]] = []  # queued or running
        self._closing = threading.RLock()  # a signal's handler may close a model that is being closed
        self._is_closing = self._is_closed = False

    # ── requests, from any thread ───────────────────────────────────────────────────────────────────────────────

    def check_room(self, n_prompt: int, params: SamplingParams) -> None:
        """Raise ``ContextOverflowError``, with the number of excess tokens, if prompt and `max_tokens` do not fit.

        Raises ``ValueError`` for a prompt of no tokens: there would be nothing to continue.
        """
        if not n_prompt:
            raise ValueError("the prompt has no tokens: give some text (this vocabulary adds no BOS of its own)")
        room, wanted = self.n_ctx, max(params.max_tokens or 0, 1)
        if n_prompt + wanted > room:
            answer = "" if params.max_tokens is None else f" and max_tokens asks for {params.max_tokens} more"
            raise ContextOverflowError(
                f"the prompt has {n_prompt} tokens{answer}, and the context holds {room}: {n_prompt + wanted - room} "
                "too many; load the model with a larger n_ctx, or shorten the prompt or the answer"
            )

    def request(
        self, prompt: Sequence[int], params: SamplingParams, deliver: Deliver, adapters: Hashable = None
    ) -> GenerationRequest:
        """Return a request for `submit`.

        Raises ``ValueError`` for an empty prompt or parameters that do not fit this model, and
        ``ContextOverflowError`` if prompt and `max_tokens` exceed the context.
        """
        ids = [int(token) for token in prompt]
        self.check_room(len(ids), params)
        speculator = self._make_speculator(params, ids, self.costs) if self._make_speculator else None
        answer = Answer(params, self.make_sampler(params, ids), self._vocabulary)
        return GenerationRequest(ids, answer, deliver, speculator=speculator, adapters=adapters)

    def stream(self, prompt: Sequence[int], params: SamplingParams, adapters: Hashable = None) -> Stream:
        """Return the stream of one generation; nothing is computed before its first piece is asked for.

        Raises what `request` raises, and the stream's first step what `submit` raises.
        """
        return Stream(self.submit, lambda deliver: self.request(prompt, params, deliver, adapters))

    def submit(self, request: GenerationRequest, *, may_refuse: bool = True) -> None:
        """Queue `request` and return; it starts as soon as there is room for it.

        Raises ``QueueFullError`` when as many wait as may (unless it may not refuse), ``ValueError`` when the model is
        closed, ``LlamaliteError`` in a process that was forked after the model had computed.
        """
        if self._is_closed:
            raise ValueError("this model is closed")
        self.check_process()
        n_waiting, n_running = self.schedule.n_waiting, len(self.schedule.running)
        if may_refuse and self._max_queue is not None and n_waiting + n_running >= self.n_parallel + self._max_queue:
            raise QueueFullError(n_waiting, self._max_queue)
        request.number, request.wake, request.check = next(self._numbers), self._wake, self.check_process
        request.submitted_s = request.since_s = time.perf_counter()
        if self._is_closing:
            self._end(request, "cancelled")
            return
        self.schedule.add(request)
        # A step sets `_is_long_step`, then looks for arrivals; here it is the other way round: one sees the other.
        if self._is_long_step:
            self.context.abort()
        self._schedule()

    def _wake(self, request: GenerationRequest) -> None:
        """Abort the step if nobody else needs it; called when `request` is cancelled, perhaps while it is collected."""
        if request in self._in_step and all(other.is_cancelled for other in self._in_step):
            self.context.abort()

    def _schedule(self) -> None:
        with self._scheduling:
            if self._is_closed:
                raise ValueError("this model is closed")
            if not self._is_scheduled:
                self._thread.submit(self._step, self.context.abort)
                self._is_scheduled = True

    def call(self, function: Callable[[], T]) -> T:
        """Run `function`, which may use the cache and its context, between two steps, and return what it returns."""
        if self._is_closed:
            raise ValueError("this model is closed")
        if self._is_long_step:
            self.context.abort()

        def between_two_steps() -> T:
            if self._is_closed:
                raise ValueError("this model is closed")
            self._admit()  # what was cancelled ends first
            return function()

        self._calls.append(function)
        try:
            return self._thread.run(between_two_steps, lambda: None)
        finally:
            self._calls.remove(function)

    def start_over(self) -> None:
        """Empty the context, within `call`; generations that run read their tokens again."""
        for request in list(self.schedule.running):
            self.schedule.pause(request)
        self.cache.clear()

    def cancel(self) -> None:
        """Cancel all generations, those that wait included; from any thread."""
        for request in self.schedule.all():
            request.cancel()

    def close(self, free: Callable[[], None] = lambda: None) -> None:
        """End what is running and what waits, then call `free`; nothing can run afterwards.

        Raises ``LlamaliteError`` in the decode thread, where a finalizer may run: it would wait for itself forever.
        """
        if self._thread.is_current:
            raise LlamaliteError("a model cannot be closed in the thread in which it computes: close it in another")
        with self._closing:
            if self._is_closed:
                return
            self._is_closing = True
            try:
                self.cancel()
                while not self._refuse_steps():
                    self._thread.run(lambda: None, lambda: None)  # after the step that ends them
                    self.cancel()
                while self._calls:
                    self._thread.run(lambda: None, lambda: None)
                free()
            except BaseException:
                self._is_closed = False
                raise
            finally:
                self._is_closing = False  # if it was interrupted, the model is still open and usable

    def _refuse_steps(self) -> bool:
        """Let no step begin any more and return True, unless there is one to do."""
        with self._scheduling:
            self._is_closed = not self._is_scheduled
            return self._is_closed

    # ── a step, in the decode thread ────────────────────────────────────────────────────────────────────────────

    def _step(self) -> None:
        try:
            self._admit()
            parts = self.schedule.parts()
            if parts:
                self._decode(parts)
            elif len(self.schedule.running) == 1 and not self.cache.make_room(1):  # it has all cells
                self._end(self.schedule.running[0], "context")
        except BaseException as error:  # noqa: BLE001 - raised again in the threads that wait for an answer
            for request in self.schedule.admitted():
                self._end(request, error)
        with self._scheduling:
            self._is_scheduled = bool(self.schedule.running or self.schedule.n_waiting)
            if self._is_scheduled:
                self._thread.submit(self._step, self.context.abort)

    def _admit(self) -> None:
        for request in self.schedule.admit():
            self._end(request, "cancelled")

    def _end(self, request: GenerationRequest, reason: FinishReason | BaseException) -> None:
        """Take a request out and deliver its last piece, or the exception that ended it."""
        self.schedule.remove(request)
        request.answer.sampler.close()
        deliver, request.deliver = request.deliver, _drop  # it may refer to the request: a reference cycle
        deliver(reason if isinstance(reason, BaseException) else request.last_piece(reason))

    def _with_drafts(self, parts: list[Part]) -> list[Part]:
        """Add guesses to the next token of an answer that runs alone, as many as answer, context and decode allow.

        One place is left free, for the token that is chosen after the guesses.
        """
        request, answer = parts[0].request, parts[0].request.answer
        if len(self.schedule.running) == 1 and request.speculator is not None and answer.tokens and parts[0].is_answer:
            room = min(self.n_ctx - len(request.tokens), self.context.n_batch - 1)
            if answer.params.max_tokens is not None:
                room = min(room, answer.params.max_tokens - len(answer.tokens) - 1)
            if self.cache.can_rewind:
                drafted = request.speculator.draft(answer.tokens, room)
                if drafted and self.cache.make_room(1 + len(drafted)):
                    return [Part(request, parts[0].sequence, [*parts[0].tokens, *drafted], len(drafted))]
        return parts

    def _decode(self, parts: list[Part]) -> None:
        """Decode `parts` and choose the tokens that follow; if the decode is aborted, keep what it has finished."""
        adapters = parts[0].request.adapters
        if adapters != self._adapters:
            self._use_adapters(adapters)
            self._adapters = adapters
        n_prompt = sum(len(part.tokens) for part in parts if not part.is_answer)
        self.context.clear_abort()
        self._in_step = tuple(part.request for part in parts)
        self._is_long_step = self._may_be_joined(parts, n_prompt)
        try:
            if (self._is_long_step and self.schedule.has_arrivals) or any(part.request.is_cancelled for part in parts):
                return  # the next step takes them in, or leaves them out
            parts = self._with_drafts(parts)
            began = time.perf_counter()
            self._compute(parts)
            ended = time.perf_counter()
        except ContextOverflowError:  # a memory that has less room than it has cells
            if self.cache.n_used > self.cache.n_busy():
                self.cache.clear()
            elif self.schedule.make_newest_wait() is None:
                self._end(parts[0].request, "context")
            return
        except BaseException as error:
            for part in parts:
                self.cache.resync(part.sequence, part.tokens)
            if not isinstance(error, GenerationCancelled):  # somebody came, or nobody needs this step any more
                raise
            return
        finally:
            self._in_step, self._is_long_step = (), False
        self._measure(parts, n_prompt, ended - began)  # before the sequences grow
        rows = self.context.logits() if any(part.n_rows for part in parts) else None  # float32 [n_rows, n_vocab]
        n_row = 0
        for part in parts:
            n_rows = part.n_rows
            self.cache.extend(part.sequence, part.tokens)
            if rows is not None and n_rows:
                self._choose(part, rows[n_row : n_row + n_rows], ended)
                n_row += n_rows

    def _may_be_joined(self, parts: list[Part], n_prompt: int) -> bool:
        """Tell whether whoever comes should end this step: it takes long, loses little, and there is room beside it."""
        request, sequence = parts[0].request, parts[0].sequence
        if len(parts) > 1 or request.params.reproducible or self.schedule.is_full or not self.cache.can_rewind:
            return False
        return request.speculator is not None or self.schedule.budget.is_long(n_prompt, len(sequence.tokens))

    def _compute(self, parts: list[Part]) -> None:
        if len(parts) == 1 and len(parts[0].tokens) == 1:
            sequence = parts[0].sequence
            self.context.decode_next(parts[0].tokens[0], len(sequence.tokens), sequence.id)
            return
        tokens: list[int] = []
        positions: list[int] = []
        seq_ids: list[int] = []
        want: list[bool] = []
        for part in parts:
            n, start = len(part.tokens), len(part.sequence.tokens)
            tokens += part.tokens
            positions += range(start, start + n)
            seq_ids += [part.sequence.id] * n
            want += [False] * (n - part.n_rows) + [True] * part.n_rows
        self.context.decode(
            np.array(tokens, np.int32), np.array(positions, np.int32), np.array(seq_ids, np.int32), want
        )

    def _measure(self, parts: list[Part], n_prompt: int, took_s: float) -> None:
        n_tokens = sum(len(part.tokens) for part in parts)
        positions = sum(
            len(part.tokens) * (2 * len(part.sequence.tokens) + len(part.tokens)) // 2
            for part in parts if not part.is_answer
        )  # fmt: skip
        self.schedule.budget.add(n_tokens - n_prompt, n_prompt, positions, took_s)
        if len(parts) == 1 and n_prompt:
            self.costs.add_prompt(n_prompt, took_s)
        elif len(parts) == 1:
            self.costs.add(n_tokens, took_s)

    def _choose(self, part: Part, rows: Logits, now: float) -> None:
        """Choose the next tokens of a request; row i follows the first i guesses, and is valid if those were chosen."""
        request, answer = part.request, part.request.answer
        drafted = part.tokens[len(part.tokens) - part.n_drafted :]
        if not request.first_s:
            request.prompt_s, request.first_s = now - request.since_s, now
        n_right = 0
        end: FinishReason | BaseException | None = None
        for row in rows:
            if answer.reason is not None or request.is_cancelled:
                break
            try:
                piece = answer.take(row)
            except Exception as error:  # noqa: BLE001 - it ends this request only, and is raised where its answer is awaited
                end = error
                break
            request.count_token()
            if piece is not None:
                request.tokens.append(answer.tokens[-1])
                request.deliver(piece)
            if answer.reason is not None or n_right == len(drafted) or answer.tokens[-1] != drafted[n_right]:
                break
            n_right += 1
        request.n_drafted += len(drafted)
        request.n_accepted += n_right
        self.cache.truncate(part.sequence, len(part.sequence.tokens) - len(drafted) + n_right)
        end = end or answer.reason
        if end is None and len(request.tokens) > self.n_ctx:
            end = "context"
        if end is not None:
            self._end(request, end)
