"""Scores continuations of contexts: many requests in one decode, and each distinct context read once.

    context  "The capital of France is"     read once, then shared by the sequences of its continuations
             " Paris"  " Lyon"  " a city"   read together, each in its own sequence

The context of a question with four choices is read once instead of four times. This module works on tokens; tasks
are in `harness`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llamalite.evaluation.measured_model import Decoder
from llamalite.evaluation.scoring import Float32s, negative_log_likelihoods
from llamalite.evaluation.windows import NOT_SCORED, TokenBatch
from llamalite.hardware import physical_cores
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel


@dataclass(frozen=True)
class Request:
    """A context and its continuation, at least one token each."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """ln p(continuation | context) in nats, and whether each of its tokens was the likeliest."""

    log_likelihood: float
    is_greedy: bool


@dataclass
class _Group:
    """The requests that share a context, as (index of the request, tokens of its continuation)."""

    context: tuple[int, ...]
    members: list[tuple[int, tuple[int, ...]]]


class LikelihoodScorer:
    """Scores requests in one cache of `n_batch` cells that all sequences share; use it in a ``with`` block.

    A request longer than `max_length` tokens loses the beginning of its context. The cache has room for at least
    `max_length` tokens.
    """

    def __init__(
        self,
        model: NativeModel,
        *,
        max_length: int | None = None,
        n_batch: int = 2048,
        n_seq_max: int = 64,
        n_threads: int | None = None,
        exact: bool = False,
    ) -> None:
        self.max_length = max_length or min(model.n_ctx_train, n_batch)
        self._n_cells = max(n_batch, self.max_length)
        options = ContextOptions(
            n_ctx=self._n_cells,
            n_batch=self._n_cells,
            n_seq_max=min(n_seq_max, self._n_cells),
            n_threads=n_threads or physical_cores(),
            kv_unified=True,
            exact=exact,
        )
        self._context = NativeContext(model, options)
        self._decoder = Decoder(self._context)

    def __enter__(self) -> LikelihoodScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def score(self, requests: Sequence[Request], progress: Callable[[int], None] | None = None) -> list[Likelihood]:
        """Return a likelihood for each request, in order; `progress` is called with the number done.

        Raises ``ValueError`` for an empty context or continuation, or a continuation longer than `max_length`,
        ``EvaluationError`` for logits that are not finite, and ``GenerationCancelled`` if the model is closed.
        """
        by_index: dict[int, Likelihood] = {}
        for groups in self._rounds(requests):
            with self._context.in_use():
                by_index |= self._round(groups)
            if progress is not None:
                progress(len(by_index))
        return [by_index[index] for index in range(len(requests))]

    def _rounds(self, requests: Sequence[Request]) -> Iterator[list[_Group]]:
        """Yield groups of requests that fit into the cache together, long contexts first."""
        by_context: dict[tuple[int, ...], _Group] = {}
        for index, request in enumerate(requests):
            context, continuation = self._truncated(request)
            by_context.setdefault(context, _Group(context, [])).members.append((index, continuation))
        groups: list[_Group] = []
        n_cells = n_seqs = 0
        for group in sorted(by_context.values(), key=lambda group: len(group.context), reverse=True):
            for members in self._parts(group):
                cells = len(group.context) + sum(len(continuation) - 1 for _, continuation in members)
                if groups and (n_cells + cells > self._n_cells or n_seqs + len(members) > self._context.n_seq_max):
                    yield groups
                    groups, n_cells, n_seqs = [], 0, 0
                groups.append(_Group(group.context, members))
                n_cells, n_seqs = n_cells + cells, n_seqs + len(members)
        if groups:
            yield groups

    def _truncated(self, request: Request) -> tuple[tuple[int, ...], tuple[int, ...]]:
        context, continuation = tuple(request.context), tuple(request.continuation)
        if not context or not continuation:
            raise ValueError("a context and its continuation need at least one token each")
        if len(continuation) > self.max_length:
            raise ValueError(f"a continuation of {len(continuation)} tokens is longer than {self.max_length}")
        # The last token is scored, but not decoded.
        room = self.max_length + 1 - len(continuation)
        return context[-room:], continuation

    def _parts(self, group: _Group) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        """Split the continuations of a group into parts that fit into the cache beside its context."""
        part: list[tuple[int, tuple[int, ...]]] = []
        room = self._n_cells - len(group.context)
        for index, continuation in group.members:
            n_cells = sum(len(tokens) - 1 for _, tokens in part) + len(continuation) - 1
            if part and (n_cells > room or len(part) == self._context.n_seq_max):
                yield part
                part = []
            part.append((index, continuation))
        yield part

    def _round(self, groups: Sequence[_Group]) -> dict[int, Likelihood]:
        """Decode the contexts, then the continuations, and return the likelihood of each request by its index."""
        firsts = [0, *itertools.accumulate(len(group.members) for group in groups)][: len(groups)]
        logits = self._decode(
            [(group.context, 0, first) for group, first in zip(groups, firsts, strict=True)], fresh=True
        )
        sums: dict[int, tuple[float, bool]] = {}  # by index: −ln p so far, greedy so far
        read: list[tuple[tuple[int, ...], int, int]] = []
        rest: list[tuple[int, tuple[int, ...]]] = []
        for i, (group, first) in enumerate(zip(groups, firsts, strict=True)):
            for seq, (index, continuation) in enumerate(group.members, first):
                sums[index] = self._scored(logits[i : i + 1], continuation[:1])
                if len(continuation) > 1:
                    # The first sequence of the group holds the context, and continues with its own continuation.
                    if seq != first:
                        self._context.seq_cp(first, seq)
                    read.append((continuation[:-1], len(group.context), seq))
                    rest.append((index, continuation[1:]))
        if read:
            logits = self._decode(read, fresh=False)
            at = 0
            for index, tokens in rest:
                nll, greedy = self._scored(logits[at : at + len(tokens)], tokens)
                sums[index] = (sums[index][0] + nll, sums[index][1] and greedy)
                at += len(tokens)
        return {index: Likelihood(-nll, greedy) for index, (nll, greedy) in sums.items()}

    def _decode(self, parts: Sequence[tuple[tuple[int, ...], int, int]], *, fresh: bool) -> Float32s:
        """Decode `parts` (tokens, first position, sequence) and return their rows of logits.

        `fresh` clears the cache first, and returns only the last row of each part.
        """
        lengths = [len(tokens) for tokens, _, _ in parts]
        wanted = np.full(sum(lengths), not fresh)
        wanted[np.cumsum(lengths) - 1] = True
        batch = TokenBatch(
            fresh=fresh,
            tokens=np.concatenate([np.asarray(tokens, dtype=np.int32) for tokens, _, _ in parts]),
            positions=np.concatenate(
                [np.arange(start, start + len(tokens), dtype=np.int32) for tokens, start, _ in parts]
            ),
            seq_ids=np.concatenate([np.full(len(tokens), seq, dtype=np.int32) for tokens, _, seq in parts]),
            wanted=wanted,
            targets=np.full(np.count_nonzero(wanted), NOT_SCORED, dtype=np.int32),  # `_round` scores them
            window_ends=(),
        )
        return self._decoder.decode(batch)

    @staticmethod
    def _scored(rows: Float32s, tokens: Sequence[int]) -> tuple[float, bool]:
        targets = np.asarray(tokens, dtype=np.int64)
        greedy = bool((rows.argmax(axis=1) == targets).all())
        return float(negative_log_likelihoods(rows, targets).sum()), greedy
