"""Runs generations over one context, one at a time: reads the prompt, samples tokens, yields text once it is certain.

    engine = Engine(context, vocabulary, make_sampler)
    for piece in engine.stream(prompt_ids, SamplingParams(max_tokens=32)):
        print(piece.text, end="")            # the last piece has the text held back, a finish reason and the totals

This module does not import llama.cpp: any object with the right methods can be the context, the vocabulary or the
sampler, and the tests use fakes. `llamalite.generation.prefix_cache` keeps what the context holds, so that a prefix in
common with the last prompt is not read again. One decode may check several drafted tokens
(`llamalite.generation.speculation`); those that turn out wrong are removed. `llamalite.generation.batch` runs many
generations at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from llamalite.errors import ContextOverflowError, GenerationCancelled, LlamaliteError
from llamalite.generation.completion import Answer, Detokenizer, FinishReason, Piece, Sampler, Totals
from llamalite.generation.costs import Costs
from llamalite.generation.prefix_cache import Context, PrefixCache
from llamalite.native.decode_thread import DecodeThread, stop_at_exit
from llamalite.sampling import SamplingParams


class SupportsDraft(Protocol):
    """What the engine needs of a `llamalite.generation.speculation.Speculator`."""

    def draft(self, answer_tokens: Sequence[int], room: int) -> Sequence[int]: ...


SamplerFactory = Callable[[SamplingParams, Sequence[int]], Sampler]
SpeculatorFactory = Callable[[SamplingParams, Sequence[int], Costs], SupportsDraft | None]


class Cancellable:
    """A job that runs over `context` during a turn of `engine`, and that any thread can cancel."""

    def __init__(self, engine: Engine, context: Context) -> None:
        self.context = context
        self._engine = engine
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End what is unfinished with the reason "cancelled"; return at once."""
        self._cancelled.set()
        self._engine.abort(self)

    def close(self) -> None:
        """Cancel the job; if this thread runs it, it has ended when this returns."""
        self.cancel()


class _StreamHandle(Cancellable):
    """The engine's weak link to a stream, so that an abandoned stream is collected and cancelled."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, engine.cache.context)
        self.generator: Callable[[], Generator[Piece] | None] = lambda: None  # a weak reference, once there is one

    def close(self) -> None:
        generator = self.generator()
        try:
            if generator is not None:
                generator.close()
        except ValueError:  # "generator already executing", in another thread
            self.cancel()


class Stream(Iterator[Piece]):
    """An iterator over the pieces of one generation.

    To end it early, close it, leave its ``with`` block, or drop it; the context keeps what was read. `cancel` may be
    called from any thread: the last piece then comes within moments, with the finish reason "cancelled".
    """

    def __init__(self, engine: Engine, run: Callable[[Cancellable], Generator[Piece]]) -> None:
        self._handle = _StreamHandle(engine)
        self._generator = run(self._handle)
        self._handle.generator = weakref.ref(self._generator)

    def __next__(self) -> Piece:
        return next(self._generator)

    @property
    def cancelled(self) -> bool:
        return self._handle.cancelled

    def cancel(self) -> None:
        """End this generation, even while it reads its prompt; return at once."""
        self._handle.cancel()

    def close(self) -> None:
        """End this generation; while another thread iterates it, this is the same as `cancel`."""
        self._handle.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine:
    """Runs generations over sequence 0 of a context, one after another, from any thread.

    `make_speculator` returns the object that drafts tokens for a generation, or None to decode them one by one.
    `can_rewind`, `prompt_step` and `thread` are those of `PrefixCache`.
    """

    def __init__(
        self,
        context: Context,
        vocabulary: Detokenizer,
        make_sampler: SamplerFactory,
        *,
        make_speculator: SpeculatorFactory | None = None,
        can_rewind: bool = True,
        prompt_step: int | None = None,
        thread: DecodeThread | None = None,
    ) -> None:
        self.cache = PrefixCache(context, can_rewind=can_rewind, prompt_step=prompt_step, thread=thread)
        self._vocabulary, self.make_sampler, self._make_speculator = vocabulary, make_sampler, make_speculator
        self._turn = threading.Lock()
        self._owner: int | None = None  # the thread whose turn it is
        self._active: Cancellable | None = None
        self._guard = threading.Lock()  # makes `_active` and the context's abort flag change together
        self._is_closing = self._is_closed = False

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def turn(self, job: Cancellable | None = None) -> Iterator[None]:
        """Hold the model for the ``with`` block, after waiting for other threads' turns.

        Raises ``GenerationCancelled`` when `job` is cancelled or the model is closed while this waits, ``ValueError``
        when the model was closed before.
        """
        if self._is_closed:
            raise ValueError("this model is closed")
        with self._turn_for(job, while_closing=False):
            yield

    @contextlib.contextmanager
    def _turn_for(self, job: Cancellable | None, *, while_closing: bool) -> Iterator[None]:
        if self._owner == threading.get_ident():
            raise LlamaliteError(
                "a generation of this model is still open in this thread: read the stream to its end or close it; "
                "for several at once use generate_batch, whose callback can only cancel the model"
            )
        while not self._turn.acquire(timeout=0.1):  # with a timeout, so that signals are handled on Windows too
            if job is not None and job.cancelled:
                raise GenerationCancelled("cancelled while waiting for the model's turn")
            self._refuse_while_closing(while_closing)
            stop_at_exit()
        try:
            self._owner = threading.get_ident()
            with self._guard:
                self._active = job
                context = job.context if job else self.cache.context
                context.clear_abort()
                if job is not None and job.cancelled:
                    context.abort()
            self._refuse_while_closing(while_closing)  # after `_active` is set, so that `close` cannot miss this job
            yield
        finally:
            with self._guard:
                self._active = None
            self._owner = None
            self._turn.release()

    def _refuse_while_closing(self, is_closer: bool) -> None:
        if self._is_closing and not is_closer:
            raise GenerationCancelled("the model is being closed")

    def abort(self, job: Cancellable) -> None:
        """Abort the computation of `job`, if it has the turn."""
        with self._guard:
            if self._active is job:
                job.context.abort()

    @property
    def is_busy(self) -> bool:
        """Whether a generation or a batch is running, which `cancel` would end."""
        return self._active is not None

    def cancel(self) -> None:
        """Cancel the generation or batch that is running, if any; from any thread."""
        with self._guard:
            job = self._active
        if job is not None:
            job.cancel()

    def close(self, free: Callable[[], None] = lambda: None) -> None:
        """End what is running and what waits for its turn, then call `free`; nothing can run afterwards.

        A stream that this thread has open is closed, any other job is cancelled.
        """
        self._is_closing = True
        try:
            with self._guard:
                job = self._active
            if job is not None:
                job.close()
            with self._turn_for(None, while_closing=True):
                free()
                self._is_closed = True
        except BaseException:
            self._is_closing = False  # still open and usable
            raise

    # ── generation ──────────────────────────────────────────────────────────────────────────────────────────────

    def check_room(self, n_prompt: int, params: SamplingParams) -> None:
        """Raise ``ContextOverflowError``, with the number of excess tokens, if prompt and `max_tokens` do not fit.

        Raises ``ValueError`` for a prompt of no tokens: there would be nothing to continue.
        """
        if not n_prompt:
            raise ValueError("the prompt has no tokens: give some text (this vocabulary adds no BOS of its own)")
        room, wanted = self.cache.context.n_ctx_seq, max(params.max_tokens or 0, 1)
        if n_prompt + wanted > room:
            answer = "" if params.max_tokens is None else f" and max_tokens asks for {params.max_tokens} more"
            raise ContextOverflowError(
                f"the prompt has {n_prompt} tokens{answer}, and the context holds {room}: {n_prompt + wanted - room} "
                "too many; load the model with a larger n_ctx, or shorten the prompt or the answer"
            )

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Stream:
        """Return the stream of one generation; nothing is computed before its first piece is asked for.

        Raises immediately ``ValueError`` for an empty prompt or parameters that do not fit this model, and
        ``ContextOverflowError`` if prompt and `max_tokens` exceed the context.
        """
        ids = [int(token) for token in prompt]
        self.check_room(len(ids), params)
        speculator = self._make_speculator(params, ids, self.cache.costs) if self._make_speculator else None
        answer = self.new_answer(ids, params)
        return Stream(self, lambda handle: self._run(handle, ids, answer, speculator))

    def new_answer(self, prompt: Sequence[int], params: SamplingParams) -> Answer:
        """Return an answer without tokens yet; ``ValueError`` for parameters that do not fit this model."""
        return Answer(params, self.make_sampler(params, prompt), self._vocabulary)

    def _run(
        self, handle: Cancellable, prompt: list[int], answer: Answer, speculator: SupportsDraft | None
    ) -> Generator[Piece]:
        cache, started = self.cache, time.perf_counter()
        n_cached, prompt_s, generation_s, ttft_s = 0, 0.0, 0.0, 0.0
        n_drafted, n_accepted = 0, 0
        reason: FinishReason | None = None
        try:
            with self.turn(handle):
                began = time.perf_counter()
                n_cached = cache.read(prompt, fresh=answer.params.reproducible)
                prompt_s = time.perf_counter() - began
                began = time.perf_counter()
                drafted: Sequence[int] = ()
                while answer.reason is None and reason is None:
                    # Row i of the last decode follows the first i drafted tokens: it is valid if those were sampled.
                    n_before, n_right = len(cache.held) - len(drafted), 0
                    try:
                        for row in cache.context.logits():
                            piece = answer.take(row)
                            ttft_s = ttft_s or time.perf_counter() - started
                            generation_s += time.perf_counter() - began
                            if piece is not None:
                                yield piece
                            began = time.perf_counter()
                            if handle.cancelled:
                                reason = "cancelled"
                            if answer.reason is not None or reason is not None or n_right == len(drafted):
                                break
                            if answer.tokens[-1] != drafted[n_right]:
                                break
                            n_right += 1
                    finally:
                        cache.truncate(n_before + n_right)
                        n_accepted += n_right
                    if answer.reason is None and reason is None:
                        if len(cache.held) >= cache.context.n_ctx_seq:
                            reason = "context"
                            break
                        drafted = self._draft(speculator, answer)
                        n_drafted += len(drafted)
                        cache.extend([answer.tokens[-1], *drafted])
        except GenerationCancelled:
            reason = "cancelled"
        finally:
            answer.sampler.close()
        totals = Totals(
            len(prompt), n_cached, len(answer.tokens), prompt_s, generation_s, ttft_s, answer.sampler.seed,
            n_drafted, n_accepted,
        )  # fmt: skip
        yield Piece(answer.rest(), finish_reason=reason or answer.reason, totals=totals, stopped_by=answer.stopped_by)

    def _draft(self, speculator: SupportsDraft | None, answer: Answer) -> Sequence[int]:
        """Return tokens that may follow the last one, no more than the answer, the context and one decode allow.

        One place is left free, for the token that is sampled after the drafted ones.
        """
        cache = self.cache
        if speculator is None or not cache.can_rewind:
            return ()
        room = min(cache.context.n_ctx_seq - len(cache.held), cache.context.n_batch) - 1
        if answer.params.max_tokens is not None:
            room = min(room, answer.params.max_tokens - len(answer.tokens) - 1)
        return speculator.draft(answer.tokens, room)
