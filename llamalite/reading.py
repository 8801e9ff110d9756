"""What sequence 0 of a context holds, and how it is brought to hold something else: only what is new is read.

    reader = Reader(context)
    reader.read(prompt_ids)                  # the last token's logits are ready; what was held before is not read again
    reader.extend([token])                   # one more token, or several: a row of logits for each
    reader.keep(len(prompt_ids))             # forget what came after

The module knows no llama.cpp: a context is whatever has the few methods named here. Decodes run in a thread of their
own (`llamalite.computing` says why), and `Costs` remembers how long they took.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from llamalite.answers import Logits
from llamalite.computing import DecodeThread


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


class Costs:
    """How long a decode takes, by its number of tokens: measured, or estimated from a prompt's speed.

    One token and eight in one decode may take nearly the same time (where memory is the limit) or eight times as long
    (where arithmetic is, and the kernels gain nothing from rows that are computed together): only measuring tells.
    Figures are the least of the last five, so that what disturbs a decode from outside counts little. What was measured
    long ago is forgotten: caches fill, machines get busy.
    """

    _MEMORY = 256  # decodes

    def __init__(self) -> None:
        self._n_decodes = 0
        self._seconds: dict[int, collections.deque[float]] = {}
        self._least: dict[int, tuple[float, int]] = {}  # size → seconds, and the decode that they were measured at
        self._per_prompt_token: float | None = None

    def add(self, n: int, seconds: float) -> None:
        """Remember that a decode of `n` tokens, each with its logits, took so long."""
        self._n_decodes += 1
        if n not in self._seconds or self._is_old(n):
            self._seconds[n] = collections.deque(maxlen=5)
        self._seconds[n].append(seconds)
        self._least[n] = min(self._seconds[n]), self._n_decodes

    def add_prompt(self, n: int, seconds: float) -> None:
        """Remember how long `n` tokens of a prompt took in one decode."""
        if n >= 32:  # fewer say little: the weights are read once for all of them
            self._per_prompt_token = seconds / n

    def of(self, n: int) -> float | None:
        """Return the seconds that a decode of `n` tokens takes; None before one of a single token was measured."""
        if 1 not in self._least:
            return None
        if n in self._least and not self._is_old(n):
            return self._least[n][0]
        return self._least[1][0] + (n - 1) * self._guessed_more()

    def more(self, n: int) -> float:
        """Return the seconds that each of `n` tokens after the first one adds to a decode."""
        return max(0.0, ((self.of(1 + n) or 0.0) - (self.of(1) or 0.0)) / n)

    def _guessed_more(self) -> float:
        one = self._least[1][0]
        # What one more token costs. Two or three may cost more than four, which are computed together: no evidence.
        known = [(self._least[m][0] - one) / (m - 1) for m in self._least if m >= 4 and not self._is_old(m)]
        if self._per_prompt_token is not None:
            known.append(self._per_prompt_token)
        return max(0.0, min(known, default=0.35 * one))

    def _is_old(self, n: int) -> bool:
        return n > 1 and self._n_decodes - self._least[n][1] > self._MEMORY


class Reader:
    """Reads tokens into sequence 0 of `context` and knows which ones it holds.

    `can_rewind` is False for models whose memory cannot forget its newest part (recurrent ones): a prompt is then read
    anew unless it continues what is held. `prompt_step` is how many tokens one decode of a prompt holds: n_batch where
    a decode can be aborted, less where cancellation has to wait for it. `thread` is where a model computes, whatever it
    computes.
    """

    def __init__(
        self,
        context: Context,
        *,
        can_rewind: bool = True,
        prompt_step: int | None = None,
        thread: DecodeThread | None = None,
    ) -> None:
        self.context = context
        self.held: list[int] = []  # the tokens that sequence 0 holds, in order
        self.costs = Costs()
        self.can_rewind = can_rewind
        self.prompt_step = min(prompt_step or context.n_batch, context.n_batch)
        self.thread = thread or DecodeThread()

    def compute(self, decode: Callable[[], None], context: Context) -> None:
        """Run `decode` in the one thread and wait for it; Ctrl-C aborts it."""
        try:
            self.thread.run(decode, context.abort)
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

        At least the last token is read again, since logits are not kept.
        """
        n_same = 0
        if not fresh:
            n_same = min(len(self.held), len(prompt) - 1)
            if self.held[:n_same] != list(prompt[:n_same]):
                n_same = next(i for i in range(n_same) if self.held[i] != prompt[i])
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

            began = time.perf_counter()
            self._guarded(step, chunk)
            self.costs.add_prompt(len(chunk), time.perf_counter() - began)
            start += len(chunk)
        return n_same

    def extend(self, tokens: Sequence[int]) -> None:
        """Read `tokens` after what is held, in one decode; the context then has a row of logits for each of them."""
        position, began = len(self.held), time.perf_counter()
        if len(tokens) == 1:
            self._guarded(lambda: self.context.decode_next(tokens[0], position, 0), tokens)
        else:
            positions = np.arange(position, position + len(tokens), dtype=np.int32)
            self._guarded(lambda: self.context.decode(tokens, positions, 0, True), tokens)
        self.costs.add(len(tokens), time.perf_counter() - began)

    def keep(self, n: int) -> None:
        """Forget all but the first `n` tokens that are held."""
        if n == len(self.held):
            return
        if self.context.seq_rm(0, n, -1):
            del self.held[n:]
        else:  # a memory that should be able to forget, and is not
            self.can_rewind = False
            tokens = self.held[:n]
            self.forget()
            self.read(tokens)

    def _guarded(self, decode: Callable[[], None], tokens: Sequence[int]) -> None:
        try:
            self.compute(decode, self.context)
        except BaseException:
            self._resync([*self.held, *tokens])
            raise
        self.held.extend(tokens)
