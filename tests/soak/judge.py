"""What the long runs share: a separate computation of their answers, their memory, and what they report."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llamalite.hardware.process_memory import resident_bytes
from llamalite.model import Model
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions

WITHIN = 0.05  # of the largest logit
HANG_S = 120


@dataclass
class Found:
    """The result of a run: how many answers it gave, how many were checked by a separate computation, memory."""

    n: int
    what: str
    n_checked: int
    warm_bytes: int
    end_bytes: int
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        return self.end_bytes / self.warm_bytes - 1

    def __str__(self) -> str:
        return (
            f"{self.n:,} {self.what} in {self.seconds:.0f} s, {self.n_checked:,} answers checked, "
            f"{self.warm_bytes / 2**20:.1f} MiB after the warm-up, {self.end_bytes / 2**20:.1f} at the end "
            f"({self.growth:+.1%})"
        )


class Judge:
    """A separate context that computes prompt and answer in one go, from scratch.

    Making it fills both contexts once: memory that is touched for the first time later would look like a leak.
    """

    def __init__(self, model: Model) -> None:
        self._context = NativeContext(model.native, ContextOptions(n_ctx=model.n_ctx, n_batch=model.n_ctx, n_threads=1))
        self._turn = threading.Lock()
        full = [5] * (model.n_ctx - 1)
        model.generate(full, max_tokens=1)
        self._context.decode(full, np.arange(len(full)), 0, np.ones(len(full), bool))
        self.n_checked = 0

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Raise ``AssertionError`` if a token of `answer` was not the likeliest."""
        if not answer:
            return
        ids = [*prompt, *answer[:-1]]
        want = np.zeros(len(ids), bool)
        want[len(prompt) - 1 :] = True
        with self._turn:
            self._context.clear()
            self._context.decode(ids, np.arange(len(ids)), 0, want)
            logits = self._context.logits()  # float32 [n_answer, n_vocab]
            short = logits.max(axis=1) - logits[np.arange(len(answer)), np.array(answer)]
            self.n_checked += 1
        assert float(short.max()) < WITHIN, f"token {int(short.argmax())} of {len(answer)} is {short.max():.3f} short"


class Memory:
    """Resident memory at the end of the warm-up, the first tenth of `n` steps, and now."""

    def __init__(self, n: int) -> None:
        self._warm_at = max(1, n // 10)
        self.warm_bytes = 0

    def step(self, done: int) -> None:
        if not self.warm_bytes and done >= self._warm_at:
            self.warm_bytes = resident_bytes()
