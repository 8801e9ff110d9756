"""One generation at a time over one context: read the prompt's new part, choose tokens, yield text as it is certain.

    engine = Engine(context, vocabulary, make_sampler)
    for piece in engine.stream(prompt_ids, SamplingParams(max_tokens=32)):
        print(piece.text, end="")            # the last piece has text held back until now, a finish reason and totals

The module knows no llama.cpp: a context, a vocabulary and samplers are whatever has a few methods, and the tests' fakes
are such. What the context holds is kept (`llamalite.reading`), so that a prompt that shares a prefix with it costs only
the rest. A decode may check several tokens that were drafted (`llamalite.speculation`); what is wrong is taken back.
Many generations at once are in `llamalite.batching`.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from llamalite.answers import Answer, Detokenizer, FinishReason, Piece, Sampler, Totals
from llamalite.errors import ContextOverflowError, GenerationCancelled, LlamaliteError
from llamalite.reading import Context, Costs, Reader, Worker
from llamalite.sampling import SamplingParams


class Speculator(Protocol):
    """What a `llamalite.speculation.Speculator` does; see there."""

    def draft(self, said: Sequence[int], room: int) -> Sequence[int]: ...


SamplerFactory = Callable[[SamplingParams, Sequence[int]], Sampler]
SpeculatorFactory = Callable[[SamplingParams, Sequence[int], Costs], Speculator | None]


class Cancellable:
    """Something that runs over `context` in a turn of `engine`, and can be ended from any thread."""

    def __init__(self, engine: Engine, context: Context) -> None:
        self.context = context
        self._engine = engine
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End what is not finished with the reason "cancelled", and wait for nothing."""
        self._cancelled.set()
        self._engine.abort(self)

    def close(self) -> None:
        """As `cancel`; what can be closed in this thread has ended then."""
        self.cancel()


class _Handle(Cancellable):
    """What an engine has of a stream: what ends it, and not the stream, so that one that is dropped ends, too."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, engine.context)
        self.run: Callable[[], Generator[Piece] | None] = lambda: None

    def close(self) -> None:
        run = self.run()
        try:
            if run is not None:
                run.close()
        except ValueError:  # "generator already executing": in another thread, which will end it
            self.cancel()


class Stream(Iterator[Piece]):
    """The pieces of one generation. Close it (or leave its ``with``, or drop it) to end early; what was read stays.

    `cancel` may be called from any thread: the stream's last piece then comes within moments, with "cancelled".
    """

    def __init__(self, engine: Engine, run: Callable[[Cancellable], Generator[Piece]]) -> None:
        self._handle = _Handle(engine)
        self._run = run(self._handle)
        self._handle.run = weakref.ref(self._run)

    def __next__(self) -> Piece:
        return next(self._run)

    @property
    def cancelled(self) -> bool:
        return self._handle.cancelled

    def cancel(self) -> None:
        """End this generation, also in the middle of a prompt, and wait for nothing."""
        self._handle.cancel()

    def close(self) -> None:
        """End this generation. From another thread than the one that iterates it is a `cancel`."""
        self._handle.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine(Reader):
    """Runs generations over sequence 0 of a context, one after another, whatever thread they come from.

    `can_rewind`, `prompt_step` and `worker` are those of `Reader`. `make_speculator` gives what drafts tokens for a
    generation, None for one token a decode.
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
        worker: Worker | None = None,
    ) -> None:
        super().__init__(context, can_rewind=can_rewind, prompt_step=prompt_step, worker=worker)
        self.vocabulary, self.make_sampler, self.make_speculator = vocabulary, make_sampler, make_speculator
        self._turn = threading.Lock()
        self._owner: int | None = None  # the thread whose turn it is
        self._active: Cancellable | None = None
        self._guard = threading.Lock()  # between `_active` and the abort flag
        self._is_closing = self._is_closed = False

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def turn(self, stream: Cancellable | None = None) -> Iterator[None]:
        """Hold the model for the ``with`` block; wait while another thread has it, and no longer when it is closed."""
        if self._is_closed:
            raise ValueError("this model is closed")
        with self._turn_for(stream, while_closing=False):
            yield

    @contextlib.contextmanager
    def _turn_for(self, stream: Cancellable | None, *, while_closing: bool) -> Iterator[None]:
        if self._owner == threading.get_ident():
            raise LlamaliteError(
                "a generation of this model is still open in this thread: read the stream to its end or close it "
                "first, or use generate_batch for several at once, whose callback can cancel the model and nothing else"
            )
        while not self._turn.acquire(timeout=0.1):  # in steps: a signal must be heard on Windows too
            if stream is not None and stream.cancelled:
                raise GenerationCancelled("cancelled while waiting for the model's turn")
        try:
            if self._is_closing and not while_closing:
                raise GenerationCancelled("the model is being closed")
            self._owner = threading.get_ident()
            with self._guard:
                self._active = stream
                context = stream.context if stream else self.context
                context.clear_abort()
                if stream is not None and stream.cancelled:
                    context.abort()
            yield
        finally:
            with self._guard:
                self._active = None
            self._owner = None
            self._turn.release()

    def abort(self, stream: Cancellable) -> None:
        """Abort what `stream` computes, if it is its turn."""
        with self._guard:
            if self._active is stream:
                stream.context.abort()

    def cancel(self) -> None:
        """Cancel the generation that is running, if any; from any thread."""
        with self._guard:
            stream = self._active
        if stream is not None:
            stream.cancel()

    def close(self, free: Callable[[], None] = lambda: None) -> None:
        """End what has the turn (close a stream of this thread, else cancel) and what waits for it, then the worker.

        `free` is called last, when nothing runs and nothing will.
        """
        self._is_closing = True
        try:
            with self._guard:
                stream = self._active
            if stream is not None:
                stream.close()
            with self._turn_for(None, while_closing=True):
                self.worker.close()
                free()
                self._is_closed = True
        except BaseException:
            self._is_closing = False  # it is still open, and to be used
            raise

    # ── generation ──────────────────────────────────────────────────────────────────────────────────────────────

    def check_room(self, n_prompt: int, params: SamplingParams) -> None:
        """Raise ``ContextOverflowError``, which says by how much, when prompt and `max_tokens` do not fit.

        A prompt of no tokens is a ``ValueError``: there would be nothing to go on from.
        """
        if not n_prompt:
            raise ValueError("the prompt has no tokens: give some text (this vocabulary adds no BOS of its own)")
        room, wanted = self.context.n_ctx_seq, max(params.max_tokens or 0, 1)
        if n_prompt + wanted > room:
            answer = "" if params.max_tokens is None else f" and max_tokens asks for {params.max_tokens} more"
            raise ContextOverflowError(
                f"the prompt has {n_prompt} tokens{answer}, and the context holds {room}: {n_prompt + wanted - room} "
                "too many; load the model with a larger n_ctx, or shorten the prompt or the answer"
            )

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Stream:
        """Return the stream of one generation; nothing is computed before its first piece is asked for.

        Raises at once ``ValueError`` for an empty prompt or parameters that do not fit this model, and
        ``ContextOverflowError`` when prompt and `max_tokens` exceed the context.
        """
        ids = [int(token) for token in prompt]
        self.check_room(len(ids), params)
        speculator = self.make_speculator(params, ids, self.costs) if self.make_speculator else None
        answer = Answer(params, self.make_sampler(params, ids), self.vocabulary)
        return Stream(self, lambda stream: self._run(stream, ids, answer, speculator))

    def _run(
        self, stream: Cancellable, prompt: list[int], answer: Answer, speculator: Speculator | None
    ) -> Generator[Piece]:
        asked = time.perf_counter()
        n_cached, prompt_s, generation_s, ttft_s = 0, 0.0, 0.0, 0.0
        n_drafted, n_accepted = 0, 0
        reason: FinishReason | None = None
        try:
            with self.turn(stream):
                began = time.perf_counter()
                n_cached = self.read(prompt, fresh=answer.params.reproducible)
                prompt_s = time.perf_counter() - began
                began = time.perf_counter()
                drafted: Sequence[int] = ()
                while answer.reason is None and reason is None:
                    # Row i of the last decode follows the first i drafted tokens: it counts as long as those were said.
                    n_sure, n_right = len(self.held) - len(drafted), 0
                    try:
                        for row in self.context.logits():
                            piece = answer.take(row)
                            ttft_s = ttft_s or time.perf_counter() - asked
                            generation_s += time.perf_counter() - began
                            if piece is not None:
                                yield piece
                            began = time.perf_counter()
                            if stream.cancelled:
                                reason = "cancelled"
                            if answer.reason is not None or reason is not None or n_right == len(drafted):
                                break
                            if answer.tokens[-1] != drafted[n_right]:
                                break
                            n_right += 1
                    finally:
                        self.keep(n_sure + n_right)
                        n_accepted += n_right
                    if answer.reason is None and reason is None:
                        if len(self.held) >= self.context.n_ctx_seq:
                            reason = "context"
                            break
                        drafted = self._draft(speculator, answer)
                        n_drafted += len(drafted)
                        self.extend([answer.tokens[-1], *drafted])
        except GenerationCancelled:
            reason = "cancelled"
        finally:
            answer.sampler.close()
        totals = Totals(
            len(prompt), n_cached, len(answer.tokens), prompt_s, generation_s, ttft_s, answer.sampler.seed,
            n_drafted, n_accepted,
        )  # fmt: skip
        yield Piece(answer.rest(), finish_reason=reason or answer.reason, totals=totals)

    def _draft(self, speculator: Speculator | None, answer: Answer) -> Sequence[int]:
        """Return tokens that may follow the last one: no more than the answer, the context and a decode have room for.

        The rows of a decode end with a token that nobody drafted, so that one place is left for it.
        """
        if speculator is None or not self.can_rewind:
            return ()
        room = min(self.context.n_ctx_seq - len(self.held), self.context.n_batch) - 1
        if answer.params.max_tokens is not None:
            room = min(room, answer.params.max_tokens - len(answer.tokens) - 1)
        return speculator.draft(answer.tokens, room)
