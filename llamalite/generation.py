"""One generation at a time over one context: read the prompt's new part, choose tokens, yield text as it is certain.

    engine = Engine(context, vocabulary, make_sampler)
    for piece in engine.stream(prompt_ids, SamplingParams(max_tokens=32)):
        print(piece.text, end="")            # the last piece has text held back until now, a finish reason and totals

The module knows no llama.cpp: a context, a vocabulary and samplers are whatever has the few methods named here, and the
tests' fakes are such. It keeps what the context holds (`Engine.held`), so that a prompt that shares a prefix with it
costs only the rest. Many at once are in `llamalite.batching`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from llamalite.answers import Answer, FinishReason, Logits, Piece, Sampler, Totals, Vocabulary
from llamalite.errors import ContextOverflowError, GenerationCancelled, LlamaliteError
from llamalite.sampling import SamplingParams


class Context(Protocol):
    """What a `llamalite.native.context.NativeContext` does for generation; see there."""

    n_batch: int
    n_ctx_seq: int

    def decode(self, tokens: Any, positions: Any, seq_ids: Any, want_logits: Any) -> None: ...
    def decode_next(self, token: int, position: int, seq_id: int = 0) -> None: ...
    def logits(self) -> Logits: ...
    def clear(self) -> None: ...
    def seq_rm(self, seq_id: int, start: int = 0, stop: int = -1) -> bool: ...
    def seq_cp(self, source: int, target: int, start: int = 0, stop: int = -1) -> None: ...
    def seq_pos_max(self, seq_id: int) -> int: ...
    def abort(self) -> None: ...
    def clear_abort(self) -> None: ...


SamplerFactory = Callable[[SamplingParams, Sequence[int]], Sampler]


class Cancellable(Protocol):
    """Something that runs in a `Engine.turn` and can be ended from outside."""

    context: Context

    @property
    def cancelled(self) -> bool: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


class Stream(Iterator[Piece]):
    """The pieces of one generation. Close it (or leave its ``with``, or drop it) to end early; what was read stays.

    `cancel` may be called from any thread: the stream's last piece then comes within moments, with "cancelled".
    """

    def __init__(self, engine: Engine, run: Callable[[Stream], Iterator[Piece]]) -> None:
        self.context = engine.context
        self._engine = engine
        self._run = run(self)
        self._cancelled = threading.Event()

    def __next__(self) -> Piece:
        return next(self._run)

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End this generation, also in the middle of a prompt, and wait for nothing."""
        self._cancelled.set()
        self._engine.abort(self)

    def close(self) -> None:
        """End this generation. From another thread than the one that iterates it is a `cancel`."""
        try:
            self._run.close()  # type: ignore[attr-defined] # it is a generator
        except ValueError:  # "generator already executing": in another thread, which will end it
            self.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Worker:
    """A thread that computes for the main thread, so that the main thread hears Ctrl-C.

    Python delivers signals to the main thread between bytecodes: inside one C call of seconds it hears nothing. It is
    one thread for all calls, since OpenMP keeps a team of threads for each thread that calls it.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[], None], abort: Callable[[], None]) -> None:
        """Run `call` there; when this thread is interrupted meanwhile, `abort` it, wait for its end, and raise."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="llamalite-decode", daemon=True)
            self._thread.start()
        self._calls.put(call)
        try:
            failure = self._end()
        except BaseException:
            abort()
            while True:  # a second Ctrl-C must not leave the first call's end behind for the next call to find
                with contextlib.suppress(KeyboardInterrupt):
                    self._end()
                    break
            raise
        if failure is not None:
            raise failure

    def _end(self) -> BaseException | None:
        while True:
            with contextlib.suppress(queue.Empty):  # in steps: Windows wakes no wait for a signal
                return self._ends.get(timeout=0.1)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._ends.put(_failure_of(call))

    def close(self) -> None:
        self._calls.put(None)


def _failure_of(call: Callable[[], None]) -> BaseException | None:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
        return error
    return None


class Engine:
    """Runs generations over sequence 0 of a context, one after another, whatever thread they come from.

    `can_rewind` is False for models whose memory cannot forget its newest part (recurrent ones): a prompt is then read
    anew unless it continues what is held. `prompt_step` is how many tokens one decode of a prompt holds: n_batch where
    a decode can be aborted, less where cancellation has to wait for it.
    """

    def __init__(
        self,
        context: Context,
        vocabulary: Vocabulary,
        make_sampler: SamplerFactory,
        *,
        can_rewind: bool = True,
        prompt_step: int | None = None,
    ) -> None:
        self.context, self.vocabulary, self.make_sampler = context, vocabulary, make_sampler
        self.held: list[int] = []  # the tokens that sequence 0 holds, in order
        self.can_rewind = can_rewind
        self.prompt_step = min(prompt_step or context.n_batch, context.n_batch)
        self._turn = threading.Lock()
        self._owner: int | None = None  # the thread whose turn it is
        self._active: Cancellable | None = None
        self._guard = threading.Lock()  # between `_active` and the abort flag
        self._worker = Worker()
        self._slow = False  # one token takes long enough for Ctrl-C to be missed

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def turn(self, stream: Cancellable | None = None) -> Iterator[None]:
        """Hold the model for the ``with`` block; wait while another thread has it."""
        if self._owner == threading.get_ident():
            raise LlamaliteError(
                "a stream of this model is still open in this thread: read it to its end or close it first, "
                "or use generate_batch for several at once"
            )
        while not self._turn.acquire(timeout=0.1):  # in steps: a signal must be heard on Windows too
            if stream is not None and stream.cancelled:
                raise GenerationCancelled("cancelled while waiting for the model's turn")
        try:
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

    def close(self) -> None:
        """End the generation that has the turn: close it when it is this thread's, else cancel it."""
        with self._guard:
            stream = self._active
        if stream is not None:
            stream.close()
        self._worker.close()

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────

    def compute(self, decode: Callable[[], None], context: Context, *, long: bool) -> None:
        """Run `decode`; on the main thread a long one runs in another, so that Ctrl-C is heard and aborts it."""
        if not (long or self._slow) or threading.current_thread() is not threading.main_thread():
            decode()
            return
        try:
            self._worker.run(decode, context.abort)
        except KeyboardInterrupt:
            context.clear_abort()
            raise

    def _resync(self, tokens: Sequence[int]) -> None:
        """After a decode that did not finish: hold those of `tokens` that the context says it has."""
        n = self.context.seq_pos_max(0) + 1
        if self.can_rewind and 0 < n <= len(tokens):
            self.held = list(tokens[:n])
        else:
            self.forget()

    def forget(self) -> None:
        """Empty the context."""
        self.held = []
        self.context.clear()

    def read(self, prompt: Sequence[int], *, fresh: bool = False) -> int:
        """Bring the context to hold exactly `prompt`, its last token's logits ready; return how many were held before.

        Call it inside a `turn`. At least the last token is read again, since logits are not kept.
        """
        n_same = 0
        if not fresh:
            for mine, theirs in zip(self.held, prompt[: len(prompt) - 1]):  # noqa: B905 - the shorter one ends it
                if mine != theirs:
                    break
                n_same += 1
        if n_same < len(self.held):
            if self.can_rewind and n_same and self.context.seq_rm(0, n_same, -1):
                self.held = self.held[:n_same]
            else:
                n_same = 0
                self.forget()
        elif fresh:
            self.forget()
        start = n_same
        while start < len(prompt):
            chunk = prompt[start : start + self.prompt_step]
            want = np.zeros(len(chunk), np.int8)
            want[-1] = start + len(chunk) == len(prompt)
            positions = np.arange(start, start + len(chunk), dtype=np.int32)

            def step(chunk: Any = chunk, positions: Any = positions, want: Any = want) -> None:
                self.context.decode(chunk, positions, 0, want)

            try:
                self.compute(step, self.context, long=len(chunk) > 1)
            except BaseException:
                self._resync([*self.held, *chunk])
                raise
            self.held.extend(chunk)
            start += len(chunk)
        return n_same

    def _next(self, token: int) -> None:
        try:
            began = time.perf_counter()
            self.compute(lambda: self.context.decode_next(token, len(self.held), 0), self.context, long=False)
            self._slow = time.perf_counter() - began > 0.1
        except BaseException:
            self._resync([*self.held, token])
            raise
        self.held.append(token)

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
        answer = Answer(params, self.make_sampler(params, ids), self.vocabulary)
        return Stream(self, lambda stream: self._run(stream, ids, answer))

    def _run(self, stream: Stream, prompt: list[int], answer: Answer) -> Iterator[Piece]:
        asked = time.perf_counter()
        n_cached, prompt_s, generation_s, ttft_s = 0, 0.0, 0.0, 0.0
        reason: FinishReason | None = None
        try:
            with self.turn(stream):
                began = time.perf_counter()
                n_cached = self.read(prompt, fresh=answer.params.reproducible)
                prompt_s = time.perf_counter() - began
                began = time.perf_counter()
                while answer.reason is None:
                    piece = answer.take(self.context.logits()[0])
                    ttft_s = ttft_s or time.perf_counter() - asked
                    generation_s += time.perf_counter() - began
                    if piece is not None:
                        yield piece
                    began = time.perf_counter()
                    if stream.cancelled:
                        reason = "cancelled"
                        break
                    if answer.reason is None:
                        if len(self.held) >= self.context.n_ctx_seq:
                            reason = "context"
                            break
                        self._next(answer.tokens[-1])
        except GenerationCancelled:
            reason = "cancelled"
        finally:
            answer.sampler.close()
        totals = Totals(len(prompt), n_cached, len(answer.tokens), prompt_s, generation_s, ttft_s, answer.sampler.seed)
        yield Piece(answer.rest(), finish_reason=reason or answer.reason, totals=totals)
