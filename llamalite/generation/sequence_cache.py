"""Keeps track of which tokens each sequence of a context holds, so that no prompt's beginning is read twice.

    cache = SequenceCache(context)
    sequence = cache.claim(tokens)           # it holds the longest beginning of `tokens` that any sequence has
    ...                                      # decode tokens[len(sequence.tokens):] into sequence.id
    cache.extend(sequence, decoded)
    cache.release(sequence)                  # its tokens stay until their cells are needed

In llama.cpp's unified KV cache a cell may belong to several sequences. A prompt that begins like one that is held
shares its cells (``llama_memory_seq_cp``), whether that one is still being answered or not. Each sequence here lists
its cells by numbers of our own, so the number of cells in use is known exactly. This module does not import llama.cpp:
a context is any object with the methods of `Context`.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from llamalite.generation.completion import Logits


class Context(Protocol):
    """What generation needs of a `llamalite.native.context.NativeContext`."""

    n_batch: int
    n_ctx_seq: int
    n_seq_max: int

    def decode(self, tokens: Any, positions: Any, seq_ids: Any, want_logits: Any) -> None: ...
    def decode_next(self, token: int, position: int, seq_id: int = 0) -> None: ...
    def logits(self) -> Logits: ...
    def clear(self) -> None: ...
    def seq_rm(self, seq_id: int, start: int = 0, stop: int = -1) -> bool: ...
    def seq_cp(self, source: int, target: int, start: int = 0, stop: int = -1) -> None: ...
    def seq_pos_max(self, seq_id: int) -> int: ...
    def abort(self) -> None: ...
    def clear_abort(self) -> None: ...


class CachedSequence:
    """A sequence of the context: its `tokens`, and the `adapters` (LoRA scales) they were decoded with.

    It is busy while a generation uses it, else its tokens may be forgotten when their cells are needed.
    """

    def __init__(self, number: int) -> None:
        self.id = number
        self.tokens: list[int] = []
        self.cells: list[int] = []  # one for each token, perhaps shared with other sequences
        self.adapters: Hashable = None
        self.is_busy = False
        self.last_used = 0


class SequenceCache:
    """The sequences of `context` and the cells that they use.

    `can_rewind` is False for models whose memory cannot forget its newest tokens (recurrent ones): then a sequence can
    only be continued as a whole. `window` is the number of tokens of a sliding window, 0 without one: of a sequence
    that is longer, llama.cpp overwrites what lies before its window (``llama_kv_cache::find_slot``,
    llama-kv-cache.cpp), so that it can be continued or copied only as a whole.
    """

    def __init__(self, context: Context, *, can_rewind: bool = True, window: int = 0) -> None:
        self.context, self.can_rewind, self.window = context, can_rewind, window
        self.sequences = [CachedSequence(number) for number in range(context.n_seq_max)]
        self._n_owners: collections.Counter[int] = collections.Counter()  # cell → sequences that hold it
        self._numbers = itertools.count()
        self._uses = itertools.count(1)

    # ── room ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def n_used(self) -> int:
        """How many cells hold a token, whichever and however many sequences it belongs to."""
        return len(self._n_owners)

    @property
    def n_ctx(self) -> int:
        """How many cells there are."""
        return self.context.n_ctx_seq

    @property
    def n_free(self) -> int:
        return self.n_ctx - len(self._n_owners)

    def n_busy(self) -> int:
        """Return how many cells the busy sequences hold together: all others can be had."""
        return len(set().union(*(sequence.cells for sequence in self.sequences if sequence.is_busy)))

    def make_room(self, n: int) -> bool:
        """Forget idle sequences, least recently used first, until `n` cells are free; tell whether they are."""
        while self.n_free < n:
            idle = [sequence for sequence in self._idle() if sequence.tokens]
            if not idle:
                return False
            self.forget(idle[0])
        return True

    def _idle(self) -> list[CachedSequence]:
        """Return the idle sequences, empty ones first, then the least recently used."""
        idle = [sequence for sequence in self.sequences if not sequence.is_busy]
        return sorted(idle, key=lambda sequence: (bool(sequence.tokens), sequence.last_used))

    # ── prefixes ────────────────────────────────────────────────────────────────────────────────────────────────

    def longest(self, tokens: Sequence[int], adapters: Hashable = None) -> tuple[CachedSequence | None, int]:
        """Return the sequence that holds the longest beginning of `tokens`, and its length, less than all of them.

        The last token is always decoded again, since its logits are not kept.
        """
        best, most = None, 0
        for sequence in self.sequences:
            if not sequence.tokens or sequence.adapters != adapters:
                continue
            n = common_prefix(sequence.tokens, tokens, len(tokens) - 1)
            if not self.can_rewind and (sequence.is_busy or n < len(sequence.tokens)):
                continue
            if self.window and n < len(sequence.tokens) > self.window:
                continue
            # Of two that hold as much, an idle one that holds no more can be continued without a copy.
            if n > most or (n == most and n and not sequence.is_busy and n == len(sequence.tokens)):
                best, most = sequence, n
        return best, most

    def claim(self, tokens: Sequence[int], adapters: Hashable = None) -> CachedSequence:
        """Return an idle sequence, now busy, that holds the longest beginning of `tokens` that any sequence holds."""
        source, n = self.longest(tokens, adapters)
        if source is not None and not source.is_busy and n == len(source.tokens):
            target = source
        else:
            idle = self._idle()
            target = next((sequence for sequence in idle if sequence is not source), idle[0])
            if target is source:
                n = n if self.truncate(source, n) else 0
            else:
                self.forget(target)
                if source is not None and n:
                    self._share(source, target, n)
        target.is_busy, target.adapters = True, adapters
        return target

    def empty(self, n: int) -> CachedSequence | None:
        """Return an idle sequence that holds nothing, beside at least `n` free cells; None if busy ones need them."""
        idle = self._idle()
        if not idle or self.n_busy() + n > self.n_ctx:
            return None
        self.forget(idle[0])
        self.make_room(n)
        idle[0].adapters = None
        return idle[0]

    def catch_up(self, sequence: CachedSequence, tokens: Sequence[int]) -> int:
        """Let a busy sequence share what others hold of `tokens` beyond its own; return how many tokens that adds."""
        source, n = self.longest(tokens, sequence.adapters)
        n_more = n - len(sequence.tokens)
        if source is None or not self.can_rewind or n_more <= 0:
            return 0
        self._share(source, sequence, n)
        return n_more

    def _share(self, source: CachedSequence, target: CachedSequence, n: int) -> None:
        """Let `target`, which holds a beginning of the same tokens, hold the first `n` of `source`."""
        start = len(target.tokens)
        self.context.seq_cp(source.id, target.id, start, n)
        target.tokens += source.tokens[start:n]
        target.cells += source.cells[start:n]
        self._n_owners.update(source.cells[start:n])

    def release(self, sequence: CachedSequence) -> None:
        """Keep the sequence's tokens, but only until their cells are needed."""
        sequence.is_busy, sequence.last_used = False, next(self._uses)

    def most_recent(self) -> CachedSequence:
        """Return the sequence that was released last."""
        return max(self.sequences, key=lambda sequence: sequence.last_used)

    # ── content ─────────────────────────────────────────────────────────────────────────────────────────────────

    def extend(self, sequence: CachedSequence, tokens: Sequence[int]) -> None:
        """Record that `tokens` were decoded into the sequence, each into a cell of its own."""
        cells = list(itertools.islice(self._numbers, len(tokens)))
        sequence.tokens.extend(tokens)
        sequence.cells.extend(cells)
        self._n_owners.update(cells)

    def resync(self, sequence: CachedSequence, tokens: Sequence[int]) -> None:
        """After an unfinished decode of `tokens`, record those that the context reports to have."""
        n_before = len(sequence.tokens)
        n = self.context.seq_pos_max(sequence.id) + 1 - n_before
        if self.can_rewind and 0 <= n <= len(tokens):
            self.extend(sequence, tokens[:n])
        else:
            self.context.seq_rm(sequence.id)
            self._disown(sequence, 0)

    def truncate(self, sequence: CachedSequence, n: int) -> bool:
        """Forget all but the first `n` tokens, or all and return False if the memory cannot forget a part."""
        if n == len(sequence.tokens):
            return True
        if n and self.can_rewind:
            if self.context.seq_rm(sequence.id, n, -1):
                self._disown(sequence, n)
                return True
            self.can_rewind = False  # it was wrong
        self.forget(sequence)
        return n == 0

    def forget(self, sequence: CachedSequence) -> None:
        """Forget all tokens of the sequence."""
        if sequence.tokens:
            self.context.seq_rm(sequence.id)
            self._disown(sequence, 0)

    def _disown(self, sequence: CachedSequence, n: int) -> None:
        for cell in sequence.cells[n:]:
            self._n_owners[cell] -= 1
            if not self._n_owners[cell]:
                del self._n_owners[cell]
        del sequence.tokens[n:], sequence.cells[n:]

    def clear(self) -> None:
        """Forget all sequences that are not busy; with none busy, the context is then as new."""
        for sequence in self._idle():
            self.forget(sequence)
        if not self._n_owners:
            self.context.clear()


def common_prefix(left: Sequence[int], right: Sequence[int], most: int) -> int:
    """Return how many tokens `left` and `right`, two lists, have in common at their beginning, at most `most`."""
    n = min(len(left), len(right), most)
    if left[:n] == right[:n]:
        return n
    low, high = 0, n  # the first `low` are equal, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
