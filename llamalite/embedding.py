"""`Embedder`: texts as vectors, many in one decode, from a model that is loaded for something else too.

    with Embedder(model) as embedder:
        vectors = embedder.embed([model.tokenize("a text"), model.tokenize("another")])     # float32 [2, n_embd]

The vector of a text is pooled from those of its tokens, as the model's file says: their mean, the last or the first. It
is computed in a context of its own, whose micro-batch holds a whole text, since llama.cpp pools within a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llamalite.errors import ContextOverflowError
from llamalite.model import Model
from llamalite.native.context import NativeContext
from llamalite.native.context_options import POOLING, ContextOptions

DEFAULT_POOLING = "mean"
_MOST_TOKENS, _MOST_TEXTS = 2048, 64  # of one decode


def pooling_of(model: Model) -> str:
    """Return how the model's file says to pool (``ARCHITECTURE.pooling_type``), the mean if it says nothing."""
    architecture = model.metadata.get("general.architecture", "llama")
    number = model.metadata.get(f"{architecture}.pooling_type")
    return next((name for name, value in POOLING.items() if str(value) == number), DEFAULT_POOLING)


class Embedder:
    """Makes vectors with `model`, which stays loaded; close it, or use ``with``.

    `max_tokens` is the longest text. Raises ``OutOfMemoryError`` if the context does not fit.
    """

    def __init__(self, model: Model, pooling: str | None = None) -> None:
        self.pooling = pooling or pooling_of(model)
        self.max_tokens = min(_MOST_TOKENS, model.native.n_ctx_train)
        options = ContextOptions(
            n_ctx=self.max_tokens,
            n_batch=self.max_tokens,
            n_ubatch=self.max_tokens,
            n_seq_max=min(_MOST_TEXTS, self.max_tokens),
            n_threads=model.n_threads,
            kv_unified=True,
            pooling=self.pooling,
        )
        self._native = model.native
        self._context = NativeContext(model.native, options)

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the context; closing twice does nothing."""
        self._context.close()

    def embed(self, texts: Sequence[Sequence[int]], *, normalize: bool = True) -> npt.NDArray[np.float32]:
        """Return the vectors of `texts`, given as token ids: float32 [n_texts, n_embd], of length 1 if `normalize`.

        Raises ``ValueError`` for a text without tokens, ``ContextOverflowError`` for one longer than `max_tokens`.
        """
        for i, ids in enumerate(texts):
            if not ids:
                raise ValueError(f"text {i} has no tokens")
            if len(ids) > self.max_tokens:
                most = f"the most is {self.max_tokens}"
                raise ContextOverflowError(f"the input is too large: text {i} has {len(ids)} tokens, and {most}")
        vectors = [vector for group in self._groups(texts) for vector in self._decode(group)]
        found = np.array(vectors, np.float32).reshape(len(texts), self._native.n_embd)
        if normalize:
            lengths = np.linalg.norm(found, axis=1, keepdims=True)
            found /= np.where(lengths > 0, lengths, 1)
        return found

    def _groups(self, texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """Yield the texts that are decoded together."""
        group: list[Sequence[int]] = []
        for ids in texts:
            n_tokens = sum(map(len, group))
            if group and (n_tokens + len(ids) > self.max_tokens or len(group) == self._context.n_seq_max):
                yield group
                group = []
            group.append(ids)
        if group:
            yield group

    def _decode(self, group: list[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        tokens = np.concatenate([np.asarray(ids, np.int32) for ids in group])
        positions = np.concatenate([np.arange(len(ids), dtype=np.int32) for ids in group])
        sequences = np.repeat(np.arange(len(group), dtype=np.int32), [len(ids) for ids in group])

        def work() -> list[npt.NDArray[np.float32]]:
            self._context.clear()
            self._context.decode(tokens, positions, sequences, True)
            return [self._context.pooled(seq_id) for seq_id in range(len(group))]

        with self._context.in_use():
            self._context.clear_abort()
            return self._native.thread.run(work, self._context.abort)
