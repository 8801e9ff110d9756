"""Several tokens a decode: what may come next is drafted, and the model checks all of it at once.

    speculator = Speculator(Lookup(), prompt_ids, reader.costs)
    drafted = speculator.draft(said, room)          # tokens that may follow; none where checking them does not pay
    reader.extend([said[-1], *drafted])             # one decode, a row of logits for each

`Lookup` drafts what followed when the last tokens occurred before, which pays where an answer repeats its input (edit,
extract, translate code). `Draft` asks a small model with the same vocabulary.

Nothing is lost: at each place the answer's own sampler draws from the model's row, with its penalties, grammar, random
numbers, as it does without drafts, and a drafted token stands if it is the one that was drawn. With p the distribution
after all samplers, x is thus accepted with probability p(x), and what replaces it is distributed as p without x: the
rule of Leviathan et al. 2023 (Fast Inference from Transformers via Speculative Decoding, algorithm 1) for a draft that
puts all its weight on one token, greedy or sampled.

It is off unless asked for, because bytes may still differ: llama.cpp computes several rows with other kernels than one,
their logits differ in the last digits (by up to 0.25 on a random Q4_K_M model of 1.1B), and at a near tie another token
may win. How many rows are computed together follows from times measured, so two runs may differ as well. With
`reproducible` it is therefore always off.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from llamalite.errors import LlamaliteError, VocabularyError
from llamalite.native.context import NativeContext
from llamalite.native.model import NativeModel
from llamalite.reading import Costs, Reader
from llamalite.sampling import SamplingParams

# Tokens of one decode. llama.cpp's repacked kernels compute rows in fours (ggml-cpu/repack.cpp): what lies in between
# costs nearly as much as the next of these.
SIZES = (2, 4, 8, 16)
_GAIN = 1.1  # what a decode must promise over one token at a time: promises have errors
_LEAST = 0.05  # a token that is right less often is not drafted


class Proposer(Protocol):
    """Something that guesses tokens. A grade says how sure a guess is; what the grades are worth is measured."""

    @property
    def priors(self) -> Sequence[float]:
        """Grade → how often such a guess is right, before any was measured."""
        ...

    @property
    def step_s(self) -> float:
        """Seconds that one more guess costs."""
        ...

    @property
    def n_before(self) -> int:
        """How long an answer is before the first guess: short ones are not worth what the proposer has to read."""
        ...

    def push(self, token: int) -> None:
        """Take the next token of the sequence as certain."""
        ...

    def proposals(self) -> Iterator[tuple[int, int]]:
        """Yield (token, grade) for the place after the last token, then for the one after that, and so on."""
        ...


class Lookup:
    """Proposes what followed the last tokens when they occurred before; the grade grows with the length of the match.

    >>> lookup = Lookup()
    >>> for token in [5, 6, 7, 8, 1, 5, 6]:
    ...     lookup.push(token)
    >>> [token for token, _ in itertools.islice(lookup.proposals(), 4)]
    [7, 8, 1, 5]

    The latest occurrence of the last four, three or two tokens counts (as in ``common_ngram_simple_draft``,
    common/ngram-map.cpp, and transformers' ``PromptLookupCandidateGenerator``), unless the match that is being followed
    is longer. One that ends at a token that differs is followed on behind it, for a word that was replaced.
    """

    priors = (0.05, 0.2, 0.4, 0.6, 0.75, 0.85)  # for matches of 0, 1, 2-3, 4-7, 8-15, 16 and more tokens
    step_s = 0.0
    n_before = 4
    _SIZES = (4, 3, 2)

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # n-gram → where its latest occurrence goes on
        self._at: int | None = None  # what is proposed stands there
        self._length = 0  # of the match that ends before `_at`

    def push(self, token: int) -> None:
        tokens = self._tokens
        if self._at is not None:
            self._length = self._length + 1 if tokens[self._at] == token else 0
            self._at += 1
        tokens.append(token)
        end, found = len(tokens), False
        for size in self._SIZES:
            if size > end:
                continue
            key = tuple(tokens[end - size :])
            at = self._next.get(key)
            self._next[key] = end
            if at is not None and not found:
                found = True
                length = size
                while length < at and length <= 16 and tokens[at - 1 - length] == tokens[end - 1 - length]:
                    length += 1
                if length > self._length:
                    self._at, self._length = at, length

    def proposals(self) -> Iterator[tuple[int, int]]:
        if self._at is None:
            return
        n, start = len(self._tokens), self._at
        for i in itertools.count():
            # Beyond the end a copy goes on with what it has copied, as in LZ77: a repetition is proposed to go on.
            token = self._tokens[start + i % (n - start)]
            yield token, min((self._length + i).bit_length(), len(self.priors) - 1)


class Draft:
    """Proposes the likeliest tokens of a small model, read by a reader of its own; the grade is their probability."""

    priors = tuple((grade + 0.5) / 10 for grade in range(10))
    n_before = 8

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._tokens: list[int] = []

    @property
    def step_s(self) -> float:
        return self._reader.costs.of(1) or 0.0

    def push(self, token: int) -> None:
        self._tokens.append(token)

    def proposals(self) -> Iterator[tuple[int, int]]:
        reader = self._reader
        if len(self._tokens) >= reader.context.n_ctx_seq:
            return
        reader.read(self._tokens)
        while True:
            row = reader.context.logits()[-1]  # float32 [n_vocab]
            token = int(row.argmax())
            probability = 1.0 / float(np.exp(row - row[token]).sum())
            yield token, min(int(10 * probability), 9) if probability > 0 else 0
            if len(reader.held) >= reader.context.n_ctx_seq:
                return
            reader.extend([token])


class Odds:
    """How often guesses of a grade were right: the last thirty or so of each, and four that are presumed."""

    def __init__(self, priors: Sequence[float]) -> None:
        self._right = [4 * prior for prior in priors]
        self._seen = [4.0] * len(priors)

    def of(self, grade: int) -> float:
        return self._right[grade] / self._seen[grade]

    def count(self, grade: int, right: bool) -> None:
        self._right[grade] = self._right[grade] * 0.97 + right
        self._seen[grade] = self._seen[grade] * 0.97 + 1

    def fade(self) -> None:
        """Let what was counted weigh as eight observations at the most: another answer may be another kind of text."""
        for grade, seen in enumerate(self._seen):
            share = min(1.0, 8 / seen)
            self._right[grade], self._seen[grade] = share * self._right[grade], share * seen


class Speculator:
    """Decides, token by token, how many drafted ones to check in the next decode of one answer.

    It knows what a decode of n tokens costs (`Costs`) and how often guesses of a grade were right, which is counted
    also while none are checked: the token that came is compared with the one that would have been guessed. The size
    that promises the most tokens a second is taken, if it promises more than single tokens. Accounts are kept beside
    that: when checking has cost more time than it won, it pauses, for longer each time.
    """

    def __init__(self, proposer: Proposer, prompt: Sequence[int], costs: Costs, odds: Odds | None = None) -> None:
        self._proposer, self._costs, self._odds = proposer, costs, odds or Odds(proposer.priors)
        self._odds.fade()
        self._prompt = prompt
        self._n_said: int | None = None  # how many tokens of the answer the proposer has; None: not the prompt either
        self._proposed: list[tuple[int, int]] = []
        self._most = SIZES[1] - 1  # tokens drafted at once: more as soon as all of so many were right
        self._n_drafted = 0  # in the decode that is being learned from
        self._proposing_s = 0.0
        self._won_s = 0.0
        self._caught_up = False
        self._pause, self._next_pause = 0, 64

    def draft(self, said: Sequence[int], room: int) -> list[int]:
        """Return up to `room` tokens that may follow the prompt and `said`, the answer so far; often none.

        Call it once a decode: what was said since the last call tells what the tokens returned then were worth.
        """
        if len(said) < self._proposer.n_before:
            return []
        self._learn(said)
        one = self._costs.of(1)
        if one is None or room < 1:  # without figures a token is decoded alone, and measured
            return []
        if self._pause:
            self._pause -= 1
            return []
        began = time.perf_counter()
        chances: list[float] = []  # that all tokens up to this one are right
        chance, expected, step_s = 1.0, 1.0, self._proposer.step_s
        for n, (token, grade) in enumerate(itertools.islice(self._proposer.proposals(), min(room, self._most)), 1):
            odds = self._odds.of(grade)
            chance *= odds
            expected += chance
            self._proposed.append((token, grade))
            chances.append(chance)
            if chance < _LEAST:
                break
            if step_s:  # a guess is worth its time while it adds more tokens a second than there are without it
                more_s = step_s + self._costs.more(n)
                if chance * odds / more_s < expected / (one + n * more_s):
                    break
        # What a draft model reads to catch up with the answer is spent, whatever its tokens turn out to be worth.
        self._proposing_s = time.perf_counter() - began if self._caught_up else 0.0
        self._caught_up = True
        self._n_drafted = self._best(chances, one) - 1
        return [token for token, _ in self._proposed[: self._n_drafted]]

    def _best(self, chances: Sequence[float], one: float) -> int:
        """Return how many tokens the next decode should hold."""
        best, most = 1, _GAIN / one  # tokens a second
        expected = 1.0
        for n, chance in enumerate(chances, 2):
            expected += chance
            if n in SIZES or n == len(chances) + 1:
                rate = expected / (self._costs.of(n) or one)
                if rate > most:
                    best, most = n, rate
        return best

    def _learn(self, said: Sequence[int]) -> None:
        """Hand what was said to the proposer, and count which guesses were right and what they cost."""
        if self._n_said is None:
            for token in self._prompt:
                self._proposer.push(token)
            self._n_said = 0
        new = said[self._n_said :]
        self._n_said = len(said)
        for token in new:
            self._proposer.push(token)
        n_right = 0
        for token, (guess, grade) in zip(new, self._proposed, strict=False):
            self._odds.count(grade, token == guess)
            if token != guess:
                break
            n_right += 1
        if self._n_drafted or self._proposing_s:
            self._settle(len(new), n_right)
        self._proposed, self._n_drafted, self._proposing_s = [], 0, 0.0

    def _settle(self, n_new: int, n_right: int) -> None:
        one, spent = self._costs.of(1) or 0.0, self._costs.of(1 + self._n_drafted) or 0.0
        self._won_s = 0.98 * self._won_s + n_new * one - spent - self._proposing_s
        if n_right == self._n_drafted == self._most:
            self._most = min(2 * self._most + 1, SIZES[-1] - 1)
        if self._won_s < -2 * one:
            self._pause, self._won_s, self._caught_up = self._next_pause, 0.0, False
            self._next_pause = min(2 * self._next_pause, 1024)
        elif self._won_s > 2 * one:
            self._next_pause = 64


def factory(
    model: NativeModel, draft: Reader | None
) -> Callable[[SamplingParams, Sequence[int], Costs], Speculator | None]:
    """Return what makes a generation's speculator as its parameters ask; ``ValueError`` for what `model` cannot do."""

    odds = {"lookup": Odds(Lookup.priors), "draft": Odds(Draft.priors)}

    def make(params: SamplingParams, prompt: Sequence[int], costs: Costs) -> Speculator | None:
        kind = params.speculate or ("draft" if draft else "off")
        if kind == "off":
            return None
        if model.is_recurrent:
            raise ValueError(f"speculate: {model.path.name} is recurrent, and cannot take back what it has read")
        if kind == "draft" and draft is None:
            raise ValueError("speculate='draft' needs a draft model: load the model with draft=FILE, or use 'lookup'")
        if params.reproducible:
            return None
        proposer = Lookup() if kind == "lookup" or draft is None else Draft(draft)
        return Speculator(proposer, prompt, costs, odds[kind])

    return make


def open_draft(path: Path, beside: NativeContext, *, n_gpu_layers: int = 0) -> Reader:
    """Return a reader of a draft model for the context of another: closed with it, and its decodes aborted with it.

    Raises ``VocabularyError`` where the two vocabularies differ in any token, ``LlamaliteError`` for recurrent models.
    """
    target = beside.model
    native = NativeModel(path, n_gpu_layers=n_gpu_layers, thread=target.thread)
    try:
        if (difference := target.difference(native)) is not None:
            raise VocabularyError(
                f"{path.name} cannot draft for {target.path.name}: {difference}; a draft model needs the same "
                "vocabulary, as a smaller model of the same family has"
            )
        for model in (target, native):
            if model.is_recurrent or not model.has_decoder:
                raise LlamaliteError(f"{model.path.name} cannot take back what it has read: it runs without a draft")
        context = NativeContext(
            native,
            n_ctx=beside.n_ctx_seq,
            n_batch=beside.n_batch,
            n_threads=beside.n_threads,
            flash_attn=beside.flash_attn,
            abort_flag=beside.abort_flag,
        )
    except BaseException:
        native.close()
        raise
    target.own(native)
    return Reader(context, prompt_step=None if n_gpu_layers == 0 else context.n_ubatch, thread=target.thread)
