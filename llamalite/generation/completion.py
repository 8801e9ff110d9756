"""What a generation yields, and how one answer grows: token by token, until a stop string or another reason ends it.

    answer = Answer(params, sampler, vocabulary)
    while answer.reason is None:
        piece = answer.take(logits)              # samples the next token; None when that token ends the answer
        ...                                      # decode answer.tokens[-1], get its logits

This module uses neither contexts nor threads. A piece never ends inside a character, and text that may still become a
stop string is held back.
"""

from __future__ import annotations

import codecs
import itertools
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
    """What generation needs of a `llamalite.native.model.NativeModel`."""

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes: ...
    def is_eog(self, token: int) -> bool: ...


class Sampler(Protocol):
    """What generation needs of a `llamalite.native.sampler.NativeSampler`."""

    seed: int

    def sample(self, logits: Logits) -> int: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Totals:
    """Token counts and times of one generation; its stream's last piece and its `Completion` carry them.

    `n_cached` tokens of the prompt were in the context already and were not decoded again. `queued_s` is the time that
    the generation waited, before it started or later for room in the context; `prompt_s` goes from its start until the
    prompt is read, `generation_s` from there to the last token. `ttft_s` (time to first token) counts from the first
    ``next()`` and includes waiting. Of `n_drafted` tokens guessed ahead (`llamalite.generation.speculation`),
    `n_accepted` became part of the answer.
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
    queued_s: float = 0.0

    @property
    def prompt_tok_per_s(self) -> float:
        return (self.n_prompt - self.n_cached) / self.prompt_s if self.prompt_s else 0.0

    @property
    def tok_per_s(self) -> float:
        """Tokens a second, without the first one, which comes from the prompt's logits."""
        return (self.n_generated - 1) / self.generation_s if self.generation_s and self.n_generated > 1 else 0.0


@dataclass(frozen=True)
class Piece:
    """What one token adds to the text: often a word, "" while a character or a stop string may still be incomplete.

    The last piece of a stream has no token. It carries the text held back until then, the `totals`, and the
    `finish_reason`: "stop" (the model or one of the stops ended the answer), "length" (`max_tokens`), "context" (the
    context is full) or "cancelled". `stopped_by` is the stop that ended it, a string or a token id; None if none did.
    `top_logprobs` are (token, log-probability) pairs, likeliest first.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    totals: Totals | None = None
    stopped_by: str | int | None = None


@dataclass(frozen=True)
class Completion:
    """A whole generation: its `text`, its `tokens` (without the token that ended it), and how it ended.

    `stopped_by` is the one of `SamplingParams.stop` that ended it; None if none did.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    totals: Totals
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    stopped_by: str | int | None = None

    @classmethod
    def of(cls, pieces: Iterator[Piece]) -> Completion:
        """Read a stream to its end; ``LlamaliteError`` when it was closed before."""
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
                    piece.stopped_by,
                )
        raise LlamaliteError("this stream was closed before its end")


class HeldText:
    """Turns the bytes of tokens into text, holding back what may still become a character or a stop string.

    `stopped_by` is the stop string that has come, None until then. Text may be hidden: it is found, but never shown.

    >>> held = HeldText(["END"])
    >>> held.push(b"caf\\xc3"), held.push(b"\\xa9 E"), held.push(b"N"), held.push(b"D of it"), held.stopped_by
    ('caf', 'é ', '', '', 'END')
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = tuple(stops)
        self._n_kept = max(map(len, self._stops), default=1) - 1  # that many characters may begin a stop string
        self._held = ""
        self._shown: list[bool] = []  # of each character held
        self.stopped_by: str | None = None

    def push(self, piece: bytes) -> str:
        """Take the next token's bytes; return the text that is now certain."""
        return self._add(self._decoder.decode(piece), is_shown=True)

    def push_hidden(self, spelling: str) -> str:
        """Take the spelling of a control token; return the text before it that is now certain."""
        return self._add(spelling, is_shown=False)

    def _add(self, text: str, *, is_shown: bool) -> str:
        self._held += text
        self._shown += [is_shown] * len(text)
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found, key=lambda pair: pair[0])
            certain = self._take(at)
            self._held, self._shown = "", []
            return certain
        keep = 0
        for n in range(1, min(len(self._held), self._n_kept) + 1):
            if any(stop.startswith(self._held[-n:]) for stop in self._stops):
                keep = n
        return self._take(len(self._held) - keep)

    def _take(self, n: int) -> str:
        """Remove the first `n` characters held, and return those that are shown."""
        taken = "".join(itertools.compress(self._held[:n], self._shown))
        self._held, self._shown = self._held[n:], self._shown[n:]
        return taken

    def flush(self) -> str:
        """Return the text held back, without the bytes of a character that is still incomplete."""
        return self._take(len(self._held))


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
    """One answer as it grows: its `tokens` so far, and the `reason` for its end, None until then."""

    def __init__(self, params: SamplingParams, sampler: Sampler, vocabulary: Detokenizer) -> None:
        self.params, self.sampler = params, sampler
        self.tokens: list[int] = []
        self.reason: FinishReason | None = "length" if params.max_tokens == 0 else None
        self._vocabulary = vocabulary
        self._text = HeldText(params.stops)
        self._stop_tokens = params.stop_tokens
        self._last = ""
        self._stop_token: int | None = None

    @property
    def stopped_by(self) -> str | int | None:
        """The stop, a string or a token id, that ended the answer; None if none did."""
        return self._text.stopped_by if self._stop_token is None else self._stop_token

    def take(self, logits: Logits) -> Piece | None:
        """Sample the next token from `logits`, float32 [n_vocab]; return None when that token ends the answer."""
        token = self.sampler.sample(logits)
        if token in self._stop_tokens:
            self.reason, self._stop_token = "stop", token
            return None
        if self._vocabulary.is_eog(token):
            self.reason = "stop"
            self._last = self._hidden(token)
            return None
        self.tokens.append(token)
        scored = () if self.params.logprobs is None else score(logits, token, self.params.logprobs)
        piece = self._vocabulary.token_to_piece(token)
        shown = self._text.push(piece) if piece else self._hidden(token)
        if self._text.stopped_by is not None:
            self.reason = "stop"
        elif len(self.tokens) == self.params.max_tokens:
            self.reason = "length"
        return Piece(shown, token, *scored)

    def _hidden(self, token: int) -> str:
        """Look for stops that contain the spelling of a control token; return the text that is now certain."""
        if not self.params.stops:
            return ""
        return self._text.push_hidden(self._vocabulary.token_to_piece(token, special=True).decode("utf-8", "replace"))

    def rest(self) -> str:
        """Return the text that is still held back when the answer has ended."""
        return self._last + self._text.flush()
