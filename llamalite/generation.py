"""One generation at a time over one context: read the prompt's new part, choose tokens, yield text as it is certain.

    engine = Engine(context, vocabulary, make_sampler)
    for piece in engine.stream(prompt_ids, SamplingParams(max_tokens=32)):
        print(piece.text, end="")            # the last piece has text held back until now, a finish reason and totals

The module knows no llama.cpp: a context, a vocabulary and samplers are whatever has the few methods named here, and the
tests' fakes are such. It keeps what the context holds (`Engine.held`), so that a prompt that shares a prefix with it
costs only the rest. Characters are never split, and text that may still become a stop string is not shown.
"""

from __future__ import annotations

import codecs
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from llamalite.errors import ContextOverflowError, GenerationCancelled, LlamaliteError
from llamalite.sampling import SamplingParams

FinishReason = Literal["stop", "length", "context", "cancelled"]
Logits = npt.NDArray[np.float32]


class Context(Protocol):
    """What a `llamalite.native.context.NativeContext` does for generation; see there."""

    n_batch: int
    n_ctx_seq: int

    def decode(self, tokens: Any, positions: Any, seq_ids: Any, want_logits: Any) -> None: ...
    def decode_next(self, token: int, position: int, seq_id: int = 0) -> None: ...
    def logits(self) -> Logits: ...
    def clear(self) -> None: ...
    def seq_rm(self, seq_id: int, start: int = 0, stop: int = -1) -> bool: ...
    def seq_pos_max(self, seq_id: int) -> int: ...
    def abort(self) -> None: ...
    def clear_abort(self) -> None: ...


class Vocabulary(Protocol):
    """What a `llamalite.native.model.NativeModel` does for generation; see there."""

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes: ...
    def is_eog(self, token: int) -> bool: ...


class Sampler(Protocol):
    """What a `llamalite.native.sampler.NativeSampler` does; see there."""

    seed: int

    def sample(self, logits: Logits) -> int: ...
    def close(self) -> None: ...


SamplerFactory = Callable[[SamplingParams, Sequence[int]], Sampler]


@dataclass(frozen=True)
class Totals:
    """What one generation took. `n_cached` tokens of the prompt were in the context already and not read again.

    Times are spent computing: what the caller does between two pieces is not in them, except that `ttft_s` counts from
    the first ``next()`` to the first token, waiting for the model's turn included.
    """

    n_prompt: int
    n_cached: int
    n_generated: int
    prompt_s: float
    generation_s: float
    ttft_s: float
    seed: int

    @property
    def prompt_tok_per_s(self) -> float:
        return (self.n_prompt - self.n_cached) / self.prompt_s if self.prompt_s else 0.0

    @property
    def tok_per_s(self) -> float:
        """Tokens a second after the first one, which the prompt's logits give."""
        return (self.n_generated - 1) / self.generation_s if self.generation_s and self.n_generated > 1 else 0.0


@dataclass(frozen=True)
class Piece:
    """What one token added to the text: often a word, empty while a character or a stop string is undecided.

    The last piece of a stream has no token: it carries the text held back, the `finish_reason` ("stop": the model or a
    stop string ended it; "length": `max_tokens`; "context": the context is full; "cancelled") and the `totals`.
    `top_logprobs` are (token, log-probability) pairs, likeliest first.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    totals: Totals | None = None


@dataclass(frozen=True)
class Completion:
    """A whole generation: its `text`, its `tokens` (without the end-of-generation token), and how it ended."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    totals: Totals
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None

    @classmethod
    def of(cls, pieces: Iterator[Piece]) -> Completion:
        """Read a stream to its end."""
        texts, tokens, logprobs, tops = [], [], [], []
        for piece in pieces:
            texts.append(piece.text)
            if piece.token is not None:
                tokens.append(piece.token)
                if piece.logprob is not None:
                    logprobs.append(piece.logprob)
                    tops.append(piece.top_logprobs)
            if piece.finish_reason is not None and piece.totals is not None:
                scored = len(logprobs) == len(tokens) and bool(tokens)
                return cls(
                    "".join(texts),
                    tuple(tokens),
                    piece.finish_reason,
                    piece.totals,
                    tuple(logprobs) if scored else None,
                    tuple(tops) if scored else None,
                )
        raise LlamaliteError("this stream was closed before its end")


class HeldText:
    """Turns the bytes of tokens into text, and holds back what may still become a character or a stop string.

    >>> held = HeldText(["END"])
    >>> held.push(b"caf\\xc3"), held.push(b"\\xa9 E"), held.push(b"N"), held.push(b"D of it"), held.stopped
    ('caf', 'é ', '', '', True)
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Take the next token's bytes; return the text that is now certain to stand."""
        text = self._held + self._decoder.decode(piece)
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0
        for n in range(1, min(len(text), max(map(len, self._stops), default=1) - 1) + 1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                keep = n
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back; the bytes of a character that never became whole are dropped."""
        text, self._held = self._held, ""
        return text


def score(logits: Logits, token: int, n_top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the natural log-probability of `token` under `logits`, and the `n_top` likeliest tokens with theirs."""
    row = logits.astype(np.float64)
    log_sum = float(row.max()) + math.log(float(np.exp(row - row.max()).sum()))
    top: tuple[tuple[int, float], ...] = ()
    if n_top:
        n_top = min(n_top, len(row))
        best = np.argpartition(-row, n_top - 1)[:n_top]
        best = best[np.argsort(-row[best], kind="stable")]
        top = tuple((int(i), float(row[i]) - log_sum) for i in best)
    return float(row[token]) - log_sum, top


class Stream(Iterator[Piece]):
    """The pieces of one generation. Close it (or leave its ``with``, or drop it) to end early; what was read stays.

    `cancel` may be called from any thread: the stream's last piece then comes within moments, with "cancelled".
    """

    def __init__(self, run: Callable[[Stream], Iterator[Piece]], abort: Callable[[Stream], None]) -> None:
        self._run = run(self)
        self._abort = abort
        self._cancelled = threading.Event()

    def __next__(self) -> Piece:
        return next(self._run)

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End this generation, also in the middle of a prompt, and wait for nothing."""
        self._cancelled.set()
        self._abort(self)

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
        self.context, self.vocabulary = context, vocabulary
        self.held: list[int] = []  # the tokens that sequence 0 holds, in order
        self._make_sampler = make_sampler
        self._can_rewind = can_rewind
        self._prompt_step = min(prompt_step or context.n_batch, context.n_batch)
        self._turn = threading.Lock()
        self._owner: int | None = None  # the thread whose turn it is
        self._active: Stream | None = None
        self._guard = threading.Lock()  # between `_active` and the abort flag
        self._slow = False  # one token takes long enough for Ctrl-C to be missed

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def turn(self, stream: Stream | None = None) -> Iterator[None]:
        """Hold the context for the ``with`` block; wait while another thread has it."""
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
                self.context.clear_abort()
                if stream is not None and stream.cancelled:
                    self.context.abort()
            yield
        finally:
            with self._guard:
                self._active = None
            self._owner = None
            self._turn.release()

    def _abort(self, stream: Stream) -> None:
        with self._guard:
            if self._active is stream:
                self.context.abort()

    def cancel(self) -> None:
        """Cancel the generation that is running, if any; from any thread."""
        with self._guard:
            stream = self._active
        if stream is not None:
            stream.cancel()

    def end_active(self) -> None:
        """End the stream that has the turn: close it when it is this thread's, else cancel it."""
        with self._guard:
            stream = self._active
        if stream is not None:
            stream.close()

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _compute(self, decode: Callable[[], None], *, long: bool) -> None:
        """Run `decode`; on the main thread a long one runs in another, so that Ctrl-C is heard and aborts it.

        Python delivers signals to the main thread between bytecodes: inside one C call of seconds it hears nothing.
        """
        if not (long or self._slow) or threading.current_thread() is not threading.main_thread():
            decode()
            return
        failure: list[BaseException] = []

        def work() -> None:
            try:
                decode()
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                failure.append(error)

        worker = threading.Thread(target=work, name="llamalite-decode", daemon=True)
        worker.start()
        try:
            while worker.is_alive():
                worker.join(0.1)
        except BaseException:
            self.context.abort()
            worker.join()
            self.context.clear_abort()
            raise
        if failure:
            raise failure[0]

    def _resync(self, tokens: Sequence[int]) -> None:
        """After a decode that did not finish: hold those of `tokens` that the context says it has."""
        n = self.context.seq_pos_max(0) + 1
        if self._can_rewind and 0 < n <= len(tokens):
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
            if self._can_rewind and n_same and self.context.seq_rm(0, n_same, -1):
                self.held = self.held[:n_same]
            else:
                n_same = 0
                self.forget()
        elif fresh:
            self.forget()
        start = n_same
        while start < len(prompt):
            chunk = prompt[start : start + self._prompt_step]
            want = np.zeros(len(chunk), np.int8)
            want[-1] = start + len(chunk) == len(prompt)
            positions = np.arange(start, start + len(chunk), dtype=np.int32)

            def step(chunk: Any = chunk, positions: Any = positions, want: Any = want) -> None:
                self.context.decode(chunk, positions, 0, want)

            try:
                self._compute(step, long=len(chunk) > 1)
            except BaseException:
                self._resync([*self.held, *chunk])
                raise
            self.held.extend(chunk)
            start += len(chunk)
        return n_same

    def _next(self, token: int) -> None:
        try:
            began = time.perf_counter()
            self._compute(lambda: self.context.decode_next(token, len(self.held), 0), long=False)
            self._slow = time.perf_counter() - began > 0.1
        except BaseException:
            self._resync([*self.held, token])
            raise
        self.held.append(token)

    # ── generation ──────────────────────────────────────────────────────────────────────────────────────────────

    def check_room(self, n_prompt: int, params: SamplingParams) -> None:
        """Raise ``ContextOverflowError``, which says by how much, when prompt and `max_tokens` do not fit."""
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
        if not ids:
            raise ValueError("the prompt has no tokens: give some text (this vocabulary adds no BOS of its own)")
        self.check_room(len(ids), params)
        sampler = self._make_sampler(params, ids)
        return Stream(lambda stream: self._run(stream, ids, params, sampler), self._abort)

    def _run(self, stream: Stream, prompt: list[int], params: SamplingParams, sampler: Sampler) -> Iterator[Piece]:
        asked = time.perf_counter()
        text = HeldText(params.stops)
        n_cached = n_generated = 0
        prompt_s = generation_s = ttft_s = 0.0
        reason: FinishReason = "length"
        try:
            with self.turn(stream):
                began = time.perf_counter()
                try:
                    n_cached = self.read(prompt, fresh=params.reproducible)
                    prompt_s = time.perf_counter() - began
                    began = time.perf_counter()
                    while params.max_tokens is None or n_generated < params.max_tokens:
                        logits = self.context.logits()[0]  # float32 [n_vocab]
                        token = sampler.sample(logits)
                        if self.vocabulary.is_eog(token):
                            reason = "stop"
                            break
                        n_generated += 1
                        scored = () if params.logprobs is None else score(logits, token, params.logprobs)
                        shown = text.push(self.vocabulary.token_to_piece(token))
                        if n_generated == 1:
                            ttft_s = time.perf_counter() - asked
                        generation_s += time.perf_counter() - began
                        yield Piece(shown, token, *scored)
                        began = time.perf_counter()
                        if stream.cancelled:
                            reason = "cancelled"
                            break
                        if text.stopped:
                            reason = "stop"
                            break
                        if n_generated == params.max_tokens:
                            break
                        if len(self.held) >= self.context.n_ctx_seq:
                            reason = "context"
                            break
                        self._next(token)
                    generation_s += time.perf_counter() - began
                except GenerationCancelled:
                    reason = "cancelled"
        except GenerationCancelled:  # while waiting for its turn
            reason = "cancelled"
        finally:
            sampler.close()
        totals = Totals(len(prompt), n_cached, n_generated, prompt_s, generation_s, ttft_s, sampler.seed)
        yield Piece(text.flush(), finish_reason=reason, totals=totals)
