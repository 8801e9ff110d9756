"""How long a decode takes, by its number of tokens: measured, or estimated from what was measured."""

from __future__ import annotations

import collections


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
