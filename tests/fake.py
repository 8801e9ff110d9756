"""A decoder that can be read in a minute: it keeps what was decoded, and derives the next token from it.

    context, vocabulary = FakeContext(n_ctx=64), FakeVocabulary()
    engine = Engine(context, vocabulary, fake_sampler)

The likeliest next token of a sequence is `next_token` of its tokens, so the expected answer can be computed without the
decoder. Positions that do not continue a sequence raise AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.errors import ContextOverflowError, GenerationCancelled
from llamalite.sampling import SamplingParams

N_VOCAB, EOG = 128, 0


def next_token(tokens: Sequence[int]) -> int:
    """The token that the fake generates after `tokens`: a letter that depends on all of them."""
    return 97 + (7 * sum(tokens) + 3 * len(tokens)) % 26


def story(prompt: Sequence[int], n: int) -> list[int]:
    """The `n` tokens that the fake generates after `prompt`."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeVocabulary:
    """Token n is the byte n; 0 ends a generation."""

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token])

    def is_eog(self, token: int) -> bool:
        return token == EOG


class FakeSampler:
    """Takes the likeliest token, or with a seed the token that the seed shifts it to."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self.params, self.prompt, self.closed = params, list(prompt), False
        self.seed = params.seed or 0

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        best = int(logits.argmax())
        return best if best == EOG else 97 + (best - 97 + self.seed) % 26

    def close(self) -> None:
        self.closed = True


class FakeContext:
    """Sequences as lists of tokens in one cache of `n_ctx` cells; `calls` keeps (sequence, token) of every decode."""

    def __init__(
        self,
        n_ctx: int = 64,
        n_batch: int = 16,
        *,
        n_seq_max: int = 1,
        can_forget: bool = True,
        ends: Sequence[int] = (),
    ) -> None:
        self.n_ctx_seq, self.n_batch, self.n_seq_max = n_ctx, n_batch, n_seq_max
        self.sequences: dict[int, list[int]] = {}
        self.cells: dict[int, list[object]] = {}  # of each sequence; copies share them
        self.calls: list[list[tuple[int, int]]] = []
        self.can_forget = can_forget
        self.ends = set(ends)  # lengths at which a sequence is followed by the end of its generation
        self.abort_after: int | None = None  # decodes
        self.aborted = False
        self.cleared = 0
        self.on_decode: Callable[[], None] = lambda: None
        self._rows: list[npt.NDArray[np.float32]] = []

    @property
    def n_used(self) -> int:
        return len({id(cell) for cells in self.cells.values() for cell in cells})

    def decode(self, tokens: Any, positions: Any, seq_ids: Any, want_logits: Any) -> None:
        seq_ids = np.broadcast_to(seq_ids, (len(tokens),))
        want = np.broadcast_to(want_logits, (len(tokens),))
        assert 0 < len(tokens) <= self.n_batch
        self.on_decode()
        if self.aborted or (self.abort_after is not None and len(self.calls) >= self.abort_after):
            self.aborted = True
            raise GenerationCancelled("aborted")
        if self.n_used + len(tokens) > self.n_ctx_seq:
            raise ContextOverflowError("no room")
        self.calls.append([(int(i), int(token)) for i, token in zip(seq_ids, tokens, strict=True)])
        self._rows = []
        for token, position, seq_id, wanted in zip(tokens, positions, seq_ids, want, strict=True):
            assert 0 <= seq_id < self.n_seq_max
            held = self.sequences.setdefault(int(seq_id), [])
            self.cells.setdefault(int(seq_id), []).append(object())
            assert int(position) == len(held), "positions go on where a sequence ends"
            held.append(int(token))
            if wanted:
                self._rows.append(self.row(held))

    def row(self, held: list[int]) -> npt.NDArray[np.float32]:
        """The logits after `held`."""
        row = np.zeros(N_VOCAB, np.float32)
        row[EOG if len(held) in self.ends else next_token(held)] = 9.0
        return row

    def decode_next(self, token: int, position: int, seq_id: int = 0) -> None:
        self.decode([token], [position], seq_id, True)

    def logits(self) -> npt.NDArray[np.float32]:
        assert self._rows, "the last decode asked for no logits"
        return np.stack(self._rows)

    def clear(self) -> None:
        self.sequences.clear()
        self.cells.clear()
        self.cleared += 1

    def seq_rm(self, seq_id: int, start: int = 0, stop: int = -1) -> bool:
        if start > 0 and not self.can_forget:
            return False
        del self.sequences.get(seq_id, [])[start:]
        del self.cells.get(seq_id, [])[start:]
        if not start:
            self.sequences.pop(seq_id, None)
            self.cells.pop(seq_id, None)
        return True

    def seq_cp(self, source: int, target: int, start: int = 0, stop: int = -1) -> None:
        assert len(self.sequences.setdefault(target, [])) == start
        end = stop if stop >= 0 else None
        self.sequences[target] += self.sequences[source][start:end]
        self.cells.setdefault(target, []).extend(self.cells[source][start:end])

    def seq_pos_max(self, seq_id: int) -> int:
        return len(self.sequences.get(seq_id, [])) - 1

    def abort(self) -> None:
        self.aborted = True

    def clear_abort(self) -> None:
        self.aborted = False
