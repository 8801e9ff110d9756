"""Counts the bytes and words of scored tokens, so that figures of different tokenizers are comparable."""

from __future__ import annotations

import numpy as np

from llamalite.evaluation.windows import TokenIds
from llamalite.native.model import NativeModel

_SPACE = frozenset(b" \t\n\r\v\f")  # where bytes.split() splits


class TextUnits:
    """Counts bytes and words. White space separates words; a word is counted with the token that has its first byte."""

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        self._known = np.zeros(model.n_vocab, dtype=np.bool_)
        self._n_bytes = np.zeros(model.n_vocab, dtype=np.int32)
        self._n_words = np.zeros(
            model.n_vocab, dtype=np.int32
        )  # words that begin in the token if white space precedes it
        self._begins_in_word = np.zeros(model.n_vocab, dtype=np.bool_)  # the token begins with a byte of a word
        self._ends_in_space = np.ones(model.n_vocab, dtype=np.bool_)  # the token is empty or ends in white space

    def count(self, previous: TokenIds, targets: TokenIds) -> tuple[int, int]:
        """Return the bytes of `targets` and the words that begin in them; `previous` holds the token before each."""
        for token in np.union1d(previous, targets):
            if not self._known[token]:
                self._learn(int(token))
        continued = self._begins_in_word[targets] & ~self._ends_in_space[previous]
        return int(self._n_bytes[targets].sum()), int(self._n_words[targets].sum() - np.count_nonzero(continued))

    def _learn(self, token: int) -> None:
        piece = self._model.token_to_piece(token)
        self._known[token] = True
        if piece:
            self._n_bytes[token] = len(piece)
            self._n_words[token] = len(piece.split())
            self._begins_in_word[token] = piece[0] not in _SPACE
            self._ends_in_space[token] = piece[-1] in _SPACE
