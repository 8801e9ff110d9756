"""The log-probabilities of a prompt's own tokens, for ``echo`` with ``logprobs``: what evaluation harnesses sum up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llamalite.errors import ContextOverflowError
from llamalite.generation.completion import score
from llamalite.model import Model
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions

_ROWS_BYTES = 64 << 20  # of logits at a time


@dataclass(frozen=True)
class TokenScore:
    """A token with its log-probability after the tokens before it; None for the first, which nothing precedes."""

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...] = ()


def prompt_scores(model: Model, ids: Sequence[int], n_top: int) -> list[TokenScore]:
    """Return the score of each token of `ids`, computed in a context of its own; this takes as long as reading them.

    Raises ``ContextOverflowError`` if the model's context could not hold them.
    """
    if len(ids) > model.n_ctx:
        raise ContextOverflowError(
            f"the prompt has {len(ids)} tokens, and the context holds {model.n_ctx}: shorten the prompt"
        )
    native = model.native
    n_rows = max(1, min(512, _ROWS_BYTES // (4 * native.n_vocab)))
    options = ContextOptions(n_ctx=max(256, len(ids)), n_batch=n_rows, n_ubatch=n_rows, n_threads=model.n_threads)
    scores = [TokenScore(ids[0], None)]
    with NativeContext(native, options) as context:
        for start in range(0, len(ids) - 1, n_rows):
            part = list(ids[start : start + n_rows])
            positions = np.arange(start, start + len(part))

            def decode(part: list[int] = part, positions: np.ndarray = positions) -> None:
                context.decode(part, positions, 0, True)

            with context.in_use():
                native.thread.run(decode, context.abort)
                rows = context.logits()  # float32 [len(part), n_vocab]
                for row, token in zip(rows, ids[start + 1 : start + 1 + len(part)], strict=False):
                    scores.append(TokenScore(token, *score(row, token, n_top)))
    return scores
