"""How likely a model finds given continuations of given contexts: many requests in one decode, shared contexts once.

    context  "The capital of France is"     read once, in a sequence of its own, shared by its continuations' sequences
             " Paris"  " Lyon"  " a city"   read together, each in its sequence

A multiple-choice question with four choices costs one reading of its context instead of four. This module knows tokens
and no tasks; `harness` brings those.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llamalite.evaluation.decoding import Decoder
from llamalite.evaluation.scoring import Float32s, negative_log_likelihoods
from llamalite.evaluation.windows import NOT_SCORED, TokenBatch
from llamalite.hardware import physical_cores
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel


@dataclass(frozen=True)
class Request:
    """A context, at least one token, and what follows it, at least one token."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """ln p(continuation | context) in nats, and whether each of its tokens was the likeliest."""

    log_likelihood: float
    is_greedy: bool


@dataclass
class _Group:
    """Requests with one context: their places among all, and the tokens of each continuation."""

    context: tuple[int, ...]
    members: list[tuple[int, tuple[int, ...]]]


class LikelihoodScorer:
    """Scores requests over one context of `n_batch` cells that all sequences share; use it in a ``with`` block.

    A request longer than `max_length` loses the beginning of its context. `max_length` is at most `n_batch`: what is
    read together lies in the cache together.
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
        """Return a likelihood for each request, in their order; `progress` gets how many are done.

        ``ValueError`` for an empty context or continuation, or one that does not fit `max_length`;
        ``EvaluationError`` for logits that are no numbers; ``GenerationCancelled`` when somebody closes the model.
        """
        found: list[Likelihood | None] = [None] * len(requests)
        done = 0
        for groups in self._rounds(requests):
            with self._context.in_use():
                likelihoods = self._round(groups)
            for place, likelihood in likelihoods.items():
                found[place] = likelihood
            done += len(likelihoods)
            if progress is not None:
                progress(done)
        return [one for one in found if one is not None]

    def _rounds(self, requests: Sequence[Request]) -> Iterator[list[_Group]]:
        """Yield groups of requests that fit into the cache together, long ones first."""
        by_context: dict[tuple[int, ...], _Group] = {}
        for place, request in enumerate(requests):
            context, continuation = self._fitted(request)
            by_context.setdefault(context, _Group(context, [])).members.append((place, continuation))
        groups: list[_Group] = []
        n_cells = n_seqs = 0
        for group in sorted(by_context.values(), key=lambda one: len(one.context), reverse=True):
            for members in self._parts(group):
                cells = len(group.context) + sum(len(continuation) - 1 for _, continuation in members)
                if groups and (n_cells + cells > self._n_cells or n_seqs + len(members) > self._context.n_seq_max):
                    yield groups
                    groups, n_cells, n_seqs = [], 0, 0
                groups.append(_Group(group.context, members))
                n_cells, n_seqs = n_cells + cells, n_seqs + len(members)
        if groups:
            yield groups

    def _fitted(self, request: Request) -> tuple[tuple[int, ...], tuple[int, ...]]:
        context, continuation = tuple(request.context), tuple(request.continuation)
        if not context or not continuation:
            raise ValueError("a context and its continuation need at least one token each")
        if len(continuation) > self.max_length:
            raise ValueError(f"a continuation of {len(continuation)} tokens is longer than {self.max_length}")
        # The last token is scored and not read.
        room = self.max_length + 1 - len(continuation)
        return context[-room:], continuation

    def _parts(self, group: _Group) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        """Cut a group whose continuations do not fit beside its context into several."""
        part: list[tuple[int, tuple[int, ...]]] = []
        room = self._n_cells - len(group.context)
        for place, continuation in group.members:
            need = sum(len(tokens) - 1 for _, tokens in part) + len(continuation) - 1
            if part and (need > room or len(part) == self._context.n_seq_max):
                yield part
                part = []
            part.append((place, continuation))
        yield part

    def _round(self, groups: Sequence[_Group]) -> dict[int, Likelihood]:
        """Read the contexts, then the continuations, and return the likelihood of each request by its place."""
        firsts = [0, *itertools.accumulate(len(group.members) for group in groups)][: len(groups)]
        logits = self._decode(
            [(group.context, 0, first) for group, first in zip(groups, firsts, strict=True)], fresh=True
        )
        sums: dict[int, tuple[float, bool]] = {}  # of each place: −ln p so far, greedy so far
        read: list[tuple[tuple[int, ...], int, int]] = []
        rest: list[tuple[int, tuple[int, ...]]] = []
        for i, (group, first) in enumerate(zip(groups, firsts, strict=True)):
            for seq, (place, continuation) in enumerate(group.members, first):
                sums[place] = self._scored(logits[i : i + 1], continuation[:1])
                if len(continuation) > 1:
                    # Of the group's sequences the first holds the context; it goes on with its own continuation.
                    if seq != first:
                        self._context.seq_cp(first, seq)
                    read.append((continuation[:-1], len(group.context), seq))
                    rest.append((place, continuation[1:]))
        if read:
            logits = self._decode(read, fresh=False)
            at = 0
            for place, tokens in rest:
                more, also = self._scored(logits[at : at + len(tokens)], tokens)
                sums[place] = (sums[place][0] + more, sums[place][1] and also)
                at += len(tokens)
        return {place: Likelihood(-nll, greedy) for place, (nll, greedy) in sums.items()}

    def _decode(self, parts: Sequence[tuple[tuple[int, ...], int, int]], *, fresh: bool) -> Float32s:
        """Decode tokens from a position on, each part in its sequence, and return their rows.

        A `fresh` cache begins with contexts: of them only the last row is returned.
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
            targets=np.full(np.count_nonzero(wanted), NOT_SCORED, dtype=np.int32),  # they are scored in `_round`
            window_ends=(),
        )
        return self._decoder.decode(batch)

    @staticmethod
    def _scored(rows: Float32s, tokens: Sequence[int]) -> tuple[float, bool]:
        targets = np.asarray(tokens, dtype=np.int64)
        greedy = bool((rows.argmax(axis=1) == targets).all())
        return float(negative_log_likelihoods(rows, targets).sum()), greedy
