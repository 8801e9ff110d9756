"""What a generation yields, and the rules by which one answer grows: pieces of text, stop strings, an end.

    answer = Answer(params, sampler, vocabulary)
    while answer.reason is None:
        piece = answer.take(logits)              # the next token, chosen; None when it ends the answer
        ...                                      # decode answer.tokens[-1], get its logits

This module knows neither a context nor threads. Characters are never split, and text that may still become a stop
string is held back.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from llamalite.errors import LlamaliteError
from llamalite.sampling import SamplingParams

FinishReason = Literal["stop", "length", "context", "cancelled"]
Logits = npt.NDArray[np.float32]


class Detokenizer(Protocol):
    """What a `llamalite.native.model.NativeModel` does for generation; see there."""

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes: ...
    def is_eog(self, token: int) -> bool: ...


class Sampler(Protocol):
    """What a `llamalite.native.sampler.NativeSampler` does; see there."""

    seed: int

    def sample(self, logits: Logits) -> int: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Totals:
    """What one generation took. `n_cached` tokens of the prompt were in the context already and not read again.

    Times are spent computing: what the caller does between two pieces is not in them, except that `ttft_s` counts from
    the first ``next()`` to the first token, waiting for the model's turn included. Of `n_drafted` tokens that were
    guessed ahead (`llamalite.speculation`), `n_accepted` were said.
    """

    n_prompt: int
    n_cached: int
    n_generated: int
    prompt_s: float
    generation_s: float
    ttft_s: float
    seed: int
    n_drafted: int = 0
    n_accepted: int = 0

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


class Answer:
    """One answer as it grows. `reason` is None until it has ended; `tokens` are those said so far."""

    def __init__(self, params: SamplingParams, sampler: Sampler, vocabulary: Detokenizer) -> None:
        self.params, self.sampler = params, sampler
        self.tokens: list[int] = []
        self.reason: FinishReason | None = "length" if params.max_tokens == 0 else None
        self._vocabulary = vocabulary
        self._text = HeldText(params.stops)

    def take(self, logits: Logits) -> Piece | None:
        """Choose the next token from `logits`, float32 [n_vocab]; None when it is one that ends the answer."""
        token = self.sampler.sample(logits)
        if self._vocabulary.is_eog(token):
            self.reason = "stop"
            return None
        self.tokens.append(token)
        scored = () if self.params.logprobs is None else score(logits, token, self.params.logprobs)
        shown = self._text.push(self._vocabulary.token_to_piece(token))
        if self._text.stopped:
            self.reason = "stop"
        elif len(self.tokens) == self.params.max_tokens:
            self.reason = "length"
        return Piece(shown, token, *scored)

    def rest(self) -> str:
        """Return the text that was held back to the end."""
        return self._text.flush()
