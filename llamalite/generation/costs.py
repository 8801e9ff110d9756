"""How long a decode takes, by what is in it: measured, or estimated from what was measured."""

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


class PromptBudget:
    """How many tokens of prompts a step may read beside answers, so that no answer waits long for its next token.

    A step with `n_answers` rows alone takes a time that is measured, and each prompt token adds to it. The step may
    take up to `BOUND_S`, or twice what the answers alone take, whichever is more: so a long prompt at most halves the
    speed of the answers of a large model, and those of a small one still come as fast as people read.
    """

    BOUND_S = 0.15  # seven tokens a second: about as fast as people read
    LEAST = 16  # tokens: a prompt never stands still

    def __init__(self) -> None:
        self._answers_s: dict[int, float] = {}  # number of answers → seconds of a step that has nothing else
        self._token_s: float | None = None  # of one more prompt token

    def add(self, n_answers: int, n_prompt: int, seconds: float) -> None:
        """Record a step of `n_answers` rows and `n_prompt` tokens of prompts."""
        if not n_prompt:
            known = self._answers_s.get(n_answers, seconds)
            self._answers_s[n_answers] = min(known + 0.1 * (seconds - known), seconds + known)
        elif n_prompt >= self.LEAST // 2:
            token_s = max(0.0, seconds - self._of_answers(n_answers)) / n_prompt
            self._token_s = token_s if self._token_s is None else self._token_s + 0.3 * (token_s - self._token_s)

    def _of_answers(self, n_answers: int) -> float:
        """Return the seconds of a step of `n_answers` rows, or of the nearest number of rows that was measured."""
        if not n_answers or not self._answers_s:
            return 0.0
        return self._answers_s[min(self._answers_s, key=lambda n: abs(n - n_answers))]

    def is_long(self, n_prompt: int) -> bool:
        """Tell whether a step of `n_prompt` tokens of prompts takes longer than a step should."""
        return n_prompt > 64 if self._token_s is None else n_prompt * self._token_s > self.BOUND_S

    def tokens(self, n_answers: int) -> int:
        """Return how many tokens of prompts a step with `n_answers` rows may have."""
        if self._token_s is None:
            return 2 * self.LEAST
        answers_s = self._of_answers(n_answers)
        room_s = max(self.BOUND_S, 2 * answers_s) - answers_s
        return max(self.LEAST, int(room_s / max(self._token_s, 1e-6)))
