"""How long a decode takes, by what is in it: measured, or estimated from what was measured."""

from __future__ import annotations

import collections

import numpy as np


class Costs:
    """Seconds of a decode of n tokens, each with its logits.

    If memory bandwidth is the limit, eight tokens in one decode take hardly longer than one. If arithmetic is the limit
    and the kernels gain nothing from computing rows together, they take eight times as long. Only measuring tells.

    Each figure is the least of the last five measurements, so that an occasional slow decode does not matter. Figures
    older than 256 decodes are forgotten: a fuller cache or a busier machine changes them.
    """

    _MEMORY = 256  # decodes

    def __init__(self) -> None:
        self._n_decodes = 0
        self._seconds: dict[int, collections.deque[float]] = {}
        self._least: dict[int, tuple[float, int]] = {}  # n tokens → seconds, and the decode that measured them
        self._per_prompt_token: float | None = None

    def add(self, n: int, seconds: float) -> None:
        """Record a decode of `n` tokens, each with its logits."""
        self._n_decodes += 1
        if n not in self._seconds or self._is_old(n):
            self._seconds[n] = collections.deque(maxlen=5)
        self._seconds[n].append(seconds)
        self._least[n] = min(self._seconds[n]), self._n_decodes

    def add_prompt(self, n: int, seconds: float) -> None:
        """Record a decode of `n` tokens of a prompt."""
        if n >= 32:  # in a smaller decode most of the time goes into reading the weights once
            self._per_prompt_token = seconds / n

    def of(self, n: int) -> float | None:
        """Return the seconds of a decode of `n` tokens; None until a decode of a single token was measured."""
        if 1 not in self._least:
            return None
        if n in self._least and not self._is_old(n):
            return self._least[n][0]
        return self._least[1][0] + (n - 1) * self._estimated_per_token()

    def extra_per_token(self, n: int) -> float:
        """Return the seconds that each of `n` tokens after the first adds to a decode."""
        return max(0.0, ((self.of(1 + n) or 0.0) - (self.of(1) or 0.0)) / n)

    def _estimated_per_token(self) -> float:
        single = self._least[1][0]
        # Sizes below 4 say nothing: two or three tokens may take longer than four, which are computed together.
        known = [(self._least[m][0] - single) / (m - 1) for m in self._least if m >= 4 and not self._is_old(m)]
        if self._per_prompt_token is not None:
            known.append(self._per_prompt_token)
        return max(0.0, min(known, default=0.35 * single))

    def _is_old(self, n: int) -> bool:
        return n > 1 and self._n_decodes - self._least[n][1] > self._MEMORY


class _TokenCost:
    """Seconds that a prompt token adds to a step: p + c · its position, fitted to measured steps, older ones fading."""

    def __init__(self) -> None:
        self._sums = np.zeros((2, 3))  # of products: (tokens, positions) with (tokens, positions, seconds)
        self.fit: tuple[float, float] | None = None  # p, c

    def add(self, n: int, positions: int, seconds: float) -> None:
        """Record `n` tokens, whose positions add up to `positions`."""
        if self.fit is not None:  # at most three times as expected: the processor was busy with something else
            seconds = min(seconds, 3 * (n * self.fit[0] + positions * self.fit[1]))
        sample = np.array([n, positions, seconds])
        self._sums = 0.9 * self._sums + np.outer(sample[:2], sample)
        (nn, ns, nt), (_, ss, st) = self._sums
        determinant = nn * ss - ns * ns
        self.fit = float(nt / nn), 0.0
        if determinant > 1e-3 * nn * ss:
            p, c = (ss * nt - ns * st) / determinant, (nn * st - ns * nt) / determinant
            if p >= 0 and c >= 0:
                self.fit = float(p), float(c)
            elif p < 0:
                self.fit = 0.0, float(st / ss)

    def at(self, position: int) -> float:
        p, c = self.fit or (0.0, 0.0)
        return max(1e-6, p + c * position)


class PromptBudget:
    """How much of the prompts a step may read beside answers, so that no answer waits long for its next token.

    A step takes what its answers take alone, and more for each prompt token, the more the further back the prompt goes:
    on a processor, attention soon costs more than the weights do. Both are measured. It may take `BOUND_S`, or twice
    what its answers take, whichever is more: so a long prompt at most halves the speed of the answers of a large model,
    and those of a small one still come as fast as people read.

    Where steps within the bound would read at less than a third of the speed, a step has `TILE` rows though it takes
    longer: with fewer, ggml's flash attention computes row by row, at up to ten times the cost of each
    (``ggml_compute_forward_flash_attn_ext_f16``, ggml-cpu/ops.cpp).
    """

    BOUND_S = 0.15  # seven tokens a second
    TILE = 64  # rows
    _FRESH = (
        32  # steps: then the answers are measured again, as they take longer when other programs need the processor
    )

    def __init__(self) -> None:
        self._answers_s: dict[int, float] = {}  # number of answers → seconds of a step that has nothing else
        self._n_since = 0  # steps since such a step
        self._few, self._many = _TokenCost(), _TokenCost()  # in steps of fewer rows than TILE, and of more

    def add(self, n_answers: int, n_prompt: int, positions: int, seconds: float) -> None:
        """Record a step of `n_answers` rows and `n_prompt` tokens of prompts, whose positions add up to `positions`."""
        if not n_prompt:
            known = self._answers_s.get(n_answers, seconds)
            self._answers_s[n_answers] = known + (0.1 if self._n_since == 0 else 0.5) * (seconds - known)
            self._n_since = 0
        else:
            self._n_since += 1
            beside_s = max(0.0, seconds - self._of_answers(n_answers))
            (self._few if n_answers + n_prompt < self.TILE else self._many).add(n_prompt, positions, beside_s)

    def _of_answers(self, n_answers: int) -> float:
        """Return the seconds of a step of `n_answers` rows, or of the nearest number of rows that was measured."""
        if not n_answers or not self._answers_s:
            return 0.0
        return self._answers_s[min(self._answers_s, key=lambda n: abs(n - n_answers))]

    @property
    def wants_answers_alone(self) -> bool:
        """Whether the next step should read no prompt, to measure what the answers take."""
        return self._n_since >= self._FRESH

    def is_long(self, n_prompt: int, start: int) -> bool:
        """Tell whether a step of `n_prompt` tokens from position `start` takes longer than a step should."""
        if self._many.fit is None:
            return n_prompt > self.TILE
        return n_prompt * self._many.at(start + n_prompt // 2) > self.BOUND_S

    def room_s(self, n_answers: int) -> float:
        """Return how long a step with `n_answers` rows may read prompts."""
        answers_s = self._of_answers(n_answers)
        return max(self.BOUND_S, 2 * answers_s) - answers_s

    def tokens(self, n_rows: int, room_s: float, n_left: int, position: int) -> tuple[int, float]:
        """Return how many of a prompt's `n_left` tokens from `position` to read in `room_s`, and how long that takes.

        `n_rows` is what the step has already.
        """
        n_tile = max(1, self.TILE - n_rows)
        few_s = (self._few if self._few.fit else self._many).at(position)
        many_s = (self._many if self._many.fit else self._few).at(position)
        if not self._few.fit and not self._many.fit:
            return min(n_left, n_tile), room_s
        n = min(n_left, max(1, int(room_s / few_s)), n_tile)
        if n_left >= n_tile:
            if n_tile * many_s <= room_s:
                n = min(n_left, int(room_s / many_s))
                return n, n * many_s
            if n_tile / (self.BOUND_S + n_tile * many_s) > 3 * n / (self.BOUND_S + n * few_s):
                n = n_left if n_left < 2 * n_tile else n_tile  # what would be left is slow to read on its own
                return n, n * many_s
        return n, n * few_s
