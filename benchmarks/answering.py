"""Who answers in a benchmark of many streams, what its client sees, and what is asked.

    prompts, side = Prompts(model, seed=1), InProcess(model)
    answer = asyncio.run(side.answer(prompts.piece(30), 64))
    answer.first_s, len(answer.tokens)

`llama_server.LlamaServer` is the other `Side`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from side_by_side import ROOT

from llamalite.model import Model
from llamalite.sampling import SamplingParams

TEXT = ROOT / "models" / "demo" / "heldout.txt"


@dataclass
class Answer:
    """One answer as its client sees it, in seconds of `time.perf_counter`; it grows while it is streamed.

    `times` has the arrival of each piece, `tokens` all tokens. Of the prompt, `n_read` tokens were read, and not found
    in the cache.
    """

    began: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    n_read: int = 0

    @property
    def first_s(self) -> float:
        return self.times[0] - self.began


class Side(Protocol):
    """Who answers: a model in this process, or llama-server."""

    async def answer(self, prompt: Sequence[int], n_new: int, answer: Answer | None = None) -> Answer: ...


class InProcess:
    """`Model.astream` as a `Side`."""

    def __init__(self, model: Model) -> None:
        self.model, self.params = model, endless(model)

    async def answer(self, prompt: Sequence[int], n_new: int, answer: Answer | None = None) -> Answer:
        answer = Answer() if answer is None else answer
        async for piece in self.model.astream(list(prompt), self.params, max_tokens=n_new):
            if piece.token is not None:
                answer.times.append(time.perf_counter())
                answer.tokens.append(piece.token)
            if piece.totals is not None:
                answer.n_read = piece.totals.n_prompt - piece.totals.n_cached
        answer.ended = time.perf_counter()
        return answer


def ends(model: Model) -> list[int]:
    return [token for token in range(model.native.n_vocab) if model.native.is_eog(token)]


def endless(model: Model) -> SamplingParams:
    return SamplingParams(temperature=0, logit_bias=dict.fromkeys(ends(model), -float("inf")))


class Prompts:
    """Pieces of a text as token ids, at random places; the same ones for the same seed."""

    def __init__(self, model: Model, seed: int) -> None:
        self._ids = model.tokenize(TEXT.read_text(encoding="utf-8"), add_special=False)
        self._random = random.Random(seed)

    def piece(self, n: int) -> list[int]:
        start = self._random.randrange(len(self._ids) - n)
        return self._ids[start : start + n]

    def pieces(self, count: int, n: int) -> list[list[int]]:
        return [self.piece(n) for _ in range(count)]

    def moments(self, count: int, within_s: float) -> list[float]:
        """Arrivals of a Poisson process, given how many there are; the first is now."""
        moments = sorted(self._random.uniform(0, within_s) for _ in range(count))
        return [moment - moments[0] for moment in moments]
