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

    `n_cached` tokens of the prompt were in the context already and were not decoded again. `queued_s` is the time
    that the generation waited, before it started or later for room in the context; `prompt_s` goes from there until the prompt is read, `generation_s` from there to the
    last token. `ttft_s` (time to first token) counts from the first ``next()`` and includes `queued_s`. Of `n_drafted`
    tokens guessed ahead (`llamalite.generation.speculation`), `n_accepted` became part of the answer.
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
    `finish_reason`: "stop" (the model or a stop string ended the answer), "length" (`max_tokens`), "context" (the
    context is full) or "cancelled". `top_logprobs` are (token, log-probability) pairs, likeliest first.
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
                )
        raise LlamaliteError("this stream was closed before its end")


class HeldText:
    """Turns the bytes of tokens into text, holding back what may still become a character or a stop string.

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
        """Take the next token's bytes; return the text that is now certain."""
        text = self._held + self._decoder.decode(piece)
        stops_at = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if stops_at:
            self.stopped, self._held = True, ""
            return text[: min(stops_at)]
        keep = 0
        for n in range(1, min(len(text), max(map(len, self._stops), default=1) - 1) + 1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                keep = n
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the text held back, without the bytes of a character that is still incomplete."""
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
    """One answer as it grows: its `tokens` so far, and the `reason` for its end, None until then."""

    def __init__(self, params: SamplingParams, sampler: Sampler, vocabulary: Detokenizer) -> None:
        self.params, self.sampler = params, sampler
        self.tokens: list[int] = []
        self.reason: FinishReason | None = "length" if params.max_tokens == 0 else None
        self._vocabulary = vocabulary
        self._text = HeldText(params.stops)

    def take(self, logits: Logits) -> Piece | None:
        """Sample the next token from `logits`, float32 [n_vocab]; return None when it is an end-of-generation token."""
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
        """Return the text that is still held back when the answer has ended."""
        return self._text.flush()
