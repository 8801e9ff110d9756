"""Speculative decoding: several tokens are drafted, and one decode of the model checks all of them.

    speculator = Speculator(Lookup(), prompt_ids, engine.costs)
    drafted = speculator.draft(answer_tokens, room)     # tokens that may come next; none if checking does not pay off
    ...                                                 # decode [answer_tokens[-1], *drafted], a row of logits for each

`Lookup` drafts what followed the last tokens when they occurred before, which pays off if an answer repeats its input
(editing, extraction, translated code). `DraftModel` asks a small model with the same vocabulary.

The answer's distribution does not change. At each place the answer's own sampler draws a token from the model's logits
as it does without drafts (penalties, grammar and random numbers included), and a drafted token is accepted if it is the
token drawn. With p the distribution after all samplers, x is accepted with probability p(x), and its replacement is
distributed as p without x: for a draft that puts all its weight on one token, this is the rule of Leviathan et al. 2023
(Fast Inference from Transformers via Speculative Decoding, algorithm 1), greedy or sampled.

It is off unless asked for, because the text may still differ: llama.cpp computes several rows with other kernels than a
single one, so that logits differ in the last digits (by up to 0.25 on a random Q4_K_M model of 1.1B), and at a near tie
another token may win. How many rows are computed together depends on measured times, so two runs may differ as well.
With `reproducible` it is therefore always off.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from llamalite.errors import LlamaliteError, VocabularyError
from llamalite.generation.costs import Costs
from llamalite.generation.sequence_cache import Context, common_prefix
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel
from llamalite.sampling import SamplingParams

# Tokens of one decode. llama.cpp's repacked kernels compute rows in fours (ggml-cpu/repack.cpp), so that a size between
# two of these takes nearly as long as the larger one.
SIZES = (2, 4, 8, 16)
_MIN_GAIN = 1.1  # expected tokens a second over those of single decodes; above 1, since expectations have errors
_MIN_CHANCE = 0.05  # that all tokens up to this one are right; below it, no further token is drafted


class Proposer(Protocol):
    """Guesses tokens. Each guess has a grade of confidence; `AcceptanceRates` measures how often a grade is right."""

    @property
    def priors(self) -> Sequence[float]:
        """For each grade, the share of right guesses to assume before any is measured."""
        ...

    @property
    def step_s(self) -> float:
        """Seconds that one more guess takes."""
        ...

    @property
    def n_before(self) -> int:
        """How many tokens an answer has before the first guess: a short one is not worth reading the prompt for."""
        ...

    def push(self, token: int) -> None:
        """Append a token of the prompt or the answer."""
        ...

    def proposals(self) -> Iterator[tuple[int, int]]:
        """Yield (token, grade) for the place after the last token, then for the next place, and so on."""
        ...


class Lookup:
    """Proposes what followed the last tokens when they occurred before; a longer match has a higher grade.

    >>> lookup = Lookup()
    >>> for token in [5, 6, 7, 8, 1, 5, 6]:
    ...     lookup.push(token)
    >>> [token for token, _ in itertools.islice(lookup.proposals(), 4)]
    [7, 8, 1, 5]

    It takes the latest occurrence of the last four, three or two tokens (as ``common_ngram_simple_draft``,
    common/ngram-map.cpp, and transformers' ``PromptLookupCandidateGenerator`` do), unless the current match is longer.
    When a match ends at a token that differs, proposals continue after that token: a word may have been replaced.
    """

    priors = (0.05, 0.2, 0.4, 0.6, 0.75, 0.85)  # for matches of 0, 1, 2-3, 4-7, 8-15 and 16 or more tokens
    step_s = 0.0
    n_before = 4
    _SIZES = (4, 3, 2)

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # n-gram → the place after its latest occurrence
        self._at: int | None = None  # the place of the first token to propose
        self._length = 0  # of the match that ends before `_at`

    def push(self, token: int) -> None:
        tokens = self._tokens
        if self._at is not None:
            self._length = self._length + 1 if tokens[self._at] == token else 0
            self._at += 1
        tokens.append(token)
        end, is_matched = len(tokens), False
        for size in self._SIZES:
            if size > end:
                continue
            key = tuple(tokens[end - size :])
            at = self._next.get(key)
            self._next[key] = end
            if at is not None and not is_matched:
                is_matched = True
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
            # Past the last token the copy continues with its own beginning, as in LZ77: a repetition goes on.
            token = self._tokens[start + i % (n - start)]
            yield token, min((self._length + i).bit_length(), len(self.priors) - 1)


class DraftReader:
    """A draft model's context: it holds the beginning of one text, and reads what another has beyond that."""

    def __init__(self, context: Context, prompt_step: int | None = None) -> None:
        self.context, self.costs = context, Costs()
        self._step = min(prompt_step or context.n_batch, context.n_batch)
        self._held: list[int] = []

    def read(self, tokens: Sequence[int]) -> None:
        """Hold exactly `tokens`, a list; the logits that follow them are ready."""
        n = common_prefix(self._held, tokens, len(tokens) - 1)
        if n < len(self._held):
            self.context.seq_rm(0, n, -1)
            del self._held[n:]
        for start in range(n, len(tokens), self._step):
            chunk = tokens[start : start + self._step]
            want = np.zeros(len(chunk), np.int8)
            want[-1] = 1
            began = time.perf_counter()
            try:
                self.context.decode(chunk, np.arange(start, start + len(chunk), dtype=np.int32), 0, want)
            except BaseException:
                self._held = []
                self.context.clear()
                raise
            self._held += chunk
            if len(chunk) == 1:
                self.costs.add(1, time.perf_counter() - began)


class DraftModel:
    """Proposes the likeliest tokens of a small model over a context of its own; the grade is their probability."""

    priors = tuple((grade + 0.5) / 10 for grade in range(10))
    n_before = 8

    def __init__(self, reader: DraftReader) -> None:
        self._reader = reader
        self._tokens: list[int] = []

    @property
    def step_s(self) -> float:
        return self._reader.costs.of(1) or 0.0

    def push(self, token: int) -> None:
        self._tokens.append(token)

    def proposals(self) -> Iterator[tuple[int, int]]:
        reader, tokens = self._reader, list(self._tokens)
        while len(tokens) <= reader.context.n_ctx_seq:
            reader.read(tokens)
            row = reader.context.logits()[-1]  # float32 [n_vocab]
            token = int(row.argmax())
            probability = 1.0 / float(np.exp(row - row[token]).sum())
            yield token, min(int(10 * probability), 9) if probability > 0 else 0
            tokens.append(token)


class AcceptanceRates:
    """How often guesses of each grade were right: over about the last thirty, and four assumed ones."""

    def __init__(self, priors: Sequence[float]) -> None:
        self._right = [4 * prior for prior in priors]
        self._seen = [4.0] * len(priors)

    def of(self, grade: int) -> float:
        return self._right[grade] / self._seen[grade]

    def count(self, grade: int, right: bool) -> None:
        self._right[grade] = self._right[grade] * 0.97 + right
        self._seen[grade] = self._seen[grade] * 0.97 + 1

    def fade(self) -> None:
        """Reduce the weight of all counts to eight observations: the next answer may be another kind of text."""
        for grade, seen in enumerate(self._seen):
            share = min(1.0, 8 / seen)
            self._right[grade], self._seen[grade] = share * self._right[grade], share * seen


class Speculator:
    """Decides, decode by decode, how many drafted tokens of one answer to check.

    It knows how long a decode of n tokens takes (`Costs`) and how often guesses of each grade are right. Guesses are
    also compared with the new tokens while no decode checks them. It takes the size that promises the most tokens a
    second, if that is more than single tokens give. It also keeps a balance of time: when
    checking has cost more than it has saved, it pauses, each time for longer.
    """

    def __init__(
        self, proposer: Proposer, prompt: Sequence[int], costs: Costs, rates: AcceptanceRates | None = None
    ) -> None:
        self._proposer, self._costs, self._rates = proposer, costs, rates or AcceptanceRates(proposer.priors)
        self._rates.fade()
        self._prompt = prompt
        self._n_pushed: int | None = None  # tokens of the answer that the proposer has; None: not even the prompt
        self._proposed: list[tuple[int, int]] = []
        self._max_drafted = SIZES[1] - 1  # grows when that many tokens were all right
        self._n_drafted = 0  # in the last decode
        self._proposing_s = 0.0
        self._saved_s = 0.0
        self._caught_up = False
        self._pause, self._next_pause = 0, 64  # decodes

    def draft(self, answer_tokens: Sequence[int], room: int) -> list[int]:
        """Return up to `room` tokens that may follow the prompt and `answer_tokens`, the answer so far; often none.

        Call it once before each decode: the tokens added since the last call show which guesses were right.
        """
        if len(answer_tokens) < self._proposer.n_before:
            return []
        self._learn(answer_tokens)
        single_s = self._costs.of(1)
        if single_s is None or room < 1:  # nothing measured yet: decode one token, which is measured
            return []
        if self._pause:
            self._pause -= 1
            return []
        began = time.perf_counter()
        chances: list[float] = []  # that all tokens up to this one are right
        chance, expected, step_s = 1.0, 1.0, self._proposer.step_s
        n_max = min(room, self._max_drafted)
        for n, (token, grade) in enumerate(itertools.islice(self._proposer.proposals(), n_max), 1):
            rate = self._rates.of(grade)
            chance *= rate
            expected += chance
            self._proposed.append((token, grade))
            chances.append(chance)
            if chance < _MIN_CHANCE:
                break
            if step_s:  # guess on only while that adds tokens faster than the decode does without it
                more_s = step_s + self._costs.extra_per_token(n)
                if chance * rate / more_s < expected / (single_s + n * more_s):
                    break
        # The first time does not count: a draft model then also reads all tokens before.
        self._proposing_s = time.perf_counter() - began if self._caught_up else 0.0
        self._caught_up = True
        self._n_drafted = self._best_size(chances, single_s) - 1
        return [token for token, _ in self._proposed[: self._n_drafted]]

    def _best_size(self, chances: Sequence[float], single_s: float) -> int:
        """Return how many tokens the next decode should have."""
        best, most = 1, _MIN_GAIN / single_s  # tokens a second
        expected = 1.0
        for n, chance in enumerate(chances, 2):
            expected += chance
            if n in SIZES or n == len(chances) + 1:
                tok_per_s = expected / (self._costs.of(n) or single_s)
                if tok_per_s > most:
                    best, most = n, tok_per_s
        return best

    def _learn(self, answer_tokens: Sequence[int]) -> None:
        """Give the proposer the new tokens of the answer, and count which guesses were right and what they cost."""
        if self._n_pushed is None:
            for token in self._prompt:
                self._proposer.push(token)
            self._n_pushed = 0
        new = answer_tokens[self._n_pushed :]
        self._n_pushed = len(answer_tokens)
        for token in new:
            self._proposer.push(token)
        n_right = 0
        for token, (guess, grade) in zip(new, self._proposed, strict=False):
            self._rates.count(grade, token == guess)
            if token != guess:
                break
            n_right += 1
        if self._n_drafted or self._proposing_s:
            self._settle(len(new), n_right)
        self._proposed, self._n_drafted, self._proposing_s = [], 0, 0.0

    def _settle(self, n_new: int, n_right: int) -> None:
        """Update the balance of time; pause where it is negative."""
        single_s, spent_s = self._costs.of(1) or 0.0, self._costs.of(1 + self._n_drafted) or 0.0
        self._saved_s = 0.98 * self._saved_s + n_new * single_s - spent_s - self._proposing_s
        if n_right == self._n_drafted == self._max_drafted:
            self._max_drafted = min(2 * self._max_drafted + 1, SIZES[-1] - 1)
        if self._saved_s < -2 * single_s:
            self._pause, self._saved_s, self._caught_up = self._next_pause, 0.0, False
            self._next_pause = min(2 * self._next_pause, 1024)
        elif self._saved_s > 2 * single_s:
            self._next_pause = 64


def speculator_factory(
    model: NativeModel, draft: DraftReader | None
) -> Callable[[SamplingParams, Sequence[int], Costs], Speculator | None]:
    """Return a function that makes the speculator that a generation's parameters ask for, or returns None.

    It raises ``ValueError`` for parameters that `model` cannot serve.
    """

    rates = {"lookup": AcceptanceRates(Lookup.priors), "draft": AcceptanceRates(DraftModel.priors)}

    def make(params: SamplingParams, prompt: Sequence[int], costs: Costs) -> Speculator | None:
        kind = params.speculate or ("draft" if draft else "off")
        if kind == "off":
            return None
        if model.is_recurrent:
            raise ValueError(f"speculate: {model.path.name} is recurrent, and cannot undo what it has read")
        if kind == "draft" and draft is None:
            raise ValueError("speculate='draft' needs a draft model: load the model with draft=FILE, or use 'lookup'")
        if params.reproducible:
            return None
        proposer = Lookup() if kind == "lookup" or draft is None else DraftModel(draft)
        return Speculator(proposer, prompt, costs, rates[kind])

    return make


def open_draft_model(path: Path, main_context: NativeContext, *, n_gpu_layers: int = 0) -> DraftReader:
    """Load a draft model for `main_context`: it is aborted with that context and closed with that context's model.

    Raises ``VocabularyError`` if the two vocabularies differ in any token, ``LlamaliteError`` for recurrent models.
    """
    main_model = main_context.model
    native = NativeModel(path, n_gpu_layers=n_gpu_layers, thread=main_model.thread)
    try:
        if (difference := main_model.difference(native)) is not None:
            raise VocabularyError(
                f"{path.name} cannot draft for {main_model.path.name}: {difference}; a draft model needs the same "
                "vocabulary, as a smaller model of the same family has"
            )
        for model in (main_model, native):
            if model.is_recurrent or not model.has_decoder:
                raise LlamaliteError(f"{model.path.name} cannot undo what it has read: load the model without a draft")
        options = ContextOptions(
            n_ctx=main_context.n_ctx_seq,
            n_batch=main_context.n_batch,
            n_threads=main_context.n_threads,
            flash_attn=main_context.options.flash_attn,
        )
        context = NativeContext(native, options, abort_flag=main_context.abort_flag)
    except BaseException:
        native.close()
        raise
    main_model.own(native)
    return DraftReader(context, None if n_gpu_layers == 0 else context.n_ubatch)
