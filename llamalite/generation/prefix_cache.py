"""Keeps track of what sequence 0 of a context holds, so that the common beginning of a prompt is not read again.

    cache = PrefixCache(context)
    cache.read(prompt_ids)                   # decodes what is new; the last token's logits are ready
    cache.extend([token])                    # decodes one more token, or several: a row of logits for each
    cache.truncate(len(prompt_ids))          # forgets the tokens after the prompt

This module does not import llama.cpp: a context is any object with the methods of `Context`. Decodes run in the model's
decode thread (`llamalite.native.decode_thread`), and `Costs` records how long they took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from llamalite.generation.completion import Logits
from llamalite.generation.costs import Costs
from llamalite.native.decode_thread import DecodeThread


class Context(Protocol):
    """What generation needs of a `llamalite.native.context.NativeContext`."""

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


class PrefixCache:
    """Decodes tokens into sequence 0 of `context` and knows which ones it holds.

    `can_rewind` is False for models whose memory cannot forget its newest tokens (recurrent ones): then a prompt is
    read again from its beginning unless it continues what is held. `prompt_step` is the most tokens of a prompt in one
    decode: n_batch if a decode can be aborted, fewer if a cancellation has to wait for the end of a decode. `thread` is
    the model's.
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
        self._prompt_step = min(prompt_step or context.n_batch, context.n_batch)
        self._thread = thread or DecodeThread()

    def read(self, prompt: Sequence[int], *, fresh: bool = False) -> int:
        """Make the context hold exactly `prompt`, its last token's logits ready; return how many tokens were reused.

        At least the last token is decoded again, since logits are not kept. `fresh` reuses nothing.
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
                self.clear()
        elif fresh:
            self.clear()
        start = n_same
        while start < len(prompt):
            chunk = prompt[start : start + self._prompt_step]
            want = np.zeros(len(chunk), np.int8)
            want[-1] = start + len(chunk) == len(prompt)
            positions = np.arange(start, start + len(chunk), dtype=np.int32)

            def step(chunk: Any = chunk, positions: Any = positions, want: Any = want) -> None:
                self.context.decode(chunk, positions, 0, want)

            began = time.perf_counter()
            self._decode(step, chunk)
            self.costs.add_prompt(len(chunk), time.perf_counter() - began)
            start += len(chunk)
        return n_same

    def extend(self, tokens: Sequence[int]) -> None:
        """Decode `tokens` after those held; the context then has a row of logits for each of them."""
        position, began = len(self.held), time.perf_counter()
        if len(tokens) == 1:
            self._decode(lambda: self.context.decode_next(tokens[0], position, 0), tokens)
        else:
            positions = np.arange(position, position + len(tokens), dtype=np.int32)
            self._decode(lambda: self.context.decode(tokens, positions, 0, True), tokens)
        self.costs.add(len(tokens), time.perf_counter() - began)

    def truncate(self, n: int) -> None:
        """Forget all but the first `n` tokens held."""
        if n == len(self.held):
            return
        if self.context.seq_rm(0, n, -1):
            del self.held[n:]
        else:  # `can_rewind` was wrong: this memory cannot forget a part
            self.can_rewind = False
            tokens = self.held[:n]
            self.clear()
            self.read(tokens)

    def clear(self) -> None:
        """Empty the context."""
        self.held = []
        self.context.clear()

    def compute(self, decode: Callable[[], None], context: Context) -> None:
        """Run `decode`, over `context`, in the decode thread and wait for it; Ctrl-C aborts it."""
        try:
            self._thread.run(decode, context.abort)
        except KeyboardInterrupt:
            context.clear_abort()
            raise

    def _decode(self, decode: Callable[[], None], tokens: Sequence[int]) -> None:
        try:
            self.compute(decode, self.context)
        except BaseException:
            self._resync([*self.held, *tokens])
            raise
        self.held.extend(tokens)

    def _resync(self, tokens: Sequence[int]) -> None:
        """After an unfinished decode, keep those of `tokens` that the context reports to have."""
        n = self.context.seq_pos_max(0) + 1
        if self.can_rewind and 0 < n <= len(tokens):
            self.held = list(tokens[:n])
        else:
            self.clear()
