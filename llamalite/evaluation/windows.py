"""A text → windows of tokens → the batches that llama.cpp decodes, and the rows of logits that are scored.

With n_ctx = 8 and a vocabulary that adds BOS (``B``), the 16 tokens ``B1234567 89abcdef`` become two windows::

    B1234567    logits of positions 4 5 6 7, scored on the tokens 5 6 7 and none
    B9abcdef    logits of positions 4 5 6 7, scored on the tokens d e f and none

This is llama-perplexity's protocol (``perplexity()`` in llama.cpp's tools/perplexity/perplexity.cpp): chunks that do
not overlap, the first token of each replaced by BOS, the second half scored, and as many chunks in a batch as fit, each
as a sequence. As there, the last row is computed but not scored: a batch without it might be rounded differently.

This module loads no model: `perplexity`, `comparison` and `imatrix` decode and score the batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from llamalite.errors import EvaluationError

TokenIds = npt.NDArray[np.int32]
# A text, token ids, or an iterable of texts, which are tokenized one by one and joined.
Text: TypeAlias = Union[str, bytes, Sequence[int], "npt.NDArray[np.integer]", Iterable[str], Iterable[bytes]]

NOT_SCORED = -1


class Tokenizer(Protocol):
    """The part of `llamalite.native.model.NativeModel` that this module uses."""

    add_bos: bool
    add_eos: bool
    bos: int

    def tokenize(self, text: bytes | str, *, add_special: bool, parse_special: bool) -> TokenIds: ...

    def check_tokens(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> TokenIds: ...


class Window(NamedTuple):
    """Tokens that are decoded together from an empty cache, and the targets to score them on."""

    tokens: TokenIds  # int32 [n]
    first: int  # the first position whose logits are wanted
    targets: TokenIds  # int32 [n - first]: the token after each of those positions, or NOT_SCORED


@dataclass(frozen=True)
class TokenBatch:
    """One decode: the arrays for `NativeContext.decode`, and the targets of its rows of logits."""

    fresh: bool  # clear the cache first
    tokens: TokenIds  # int32 [n_tokens]
    positions: TokenIds  # int32 [n_tokens]
    seq_ids: TokenIds  # int32 [n_tokens]
    wanted: npt.NDArray[np.bool_]  # bool [n_tokens]
    targets: TokenIds  # int32 [n_rows]: the token that each row is scored on, or NOT_SCORED
    window_ends: tuple[int, ...]  # for each window that this decode completes, the row after its last


def read_text(path: str | Path) -> bytes:
    """Return the bytes of a text file without the last newline, as llama.cpp's ``-f`` reads it."""
    return without_newline(Path(path).read_bytes())


def without_newline(raw: bytes) -> bytes:
    """Return `raw` without one trailing newline (``-f`` in llama.cpp's common/arg.cpp)."""
    return raw[:-1] if raw.endswith(b"\n") else raw


def tokens_of(text: Text, model: Tokenizer, limit: int | None = None) -> TokenIds:
    """Return the token ids of `text`, int32, at most `limit`; an iterable of texts is read no further than that.

    Each text begins with BOS if the vocabulary adds it.
    """
    if isinstance(text, str | bytes):
        return _document(text, model)[:limit]
    if isinstance(text, np.ndarray):
        return model.check_tokens(text)[:limit]
    items = iter(text)
    first = next(items, None)
    if first is None:
        return np.empty(0, dtype=np.int32)
    if not isinstance(first, str | bytes):
        ids = itertools.islice(itertools.chain([first], items), limit)
        return model.check_tokens(np.array(list(ids)))
    pieces: list[TokenIds] = []
    n = 0
    for document in itertools.chain([first], items):
        pieces.append(_document(document, model))
        n += len(pieces[-1])
        if limit is not None and n >= limit:
            break
    return np.concatenate(pieces)[:limit]


def _document(text: str | bytes, model: Tokenizer) -> TokenIds:
    tokens = model.tokenize(text, add_special=True, parse_special=False)
    # EOS is not part of the text, so it is not scored. (llama-perplexity aborts if the vocabulary adds it.)
    return tokens[:-1] if model.add_eos else tokens


def chunk_windows(tokens: TokenIds, n_ctx: int, bos: int | None) -> list[Window]:
    """Return llama-perplexity's windows of `tokens`: whole chunks of `n_ctx`, the second half of each scored.

    `bos` replaces the first token of each chunk; None leaves it. BOS is never scored: it separates the texts of an
    iterable and belongs to none of them. Raises ``EvaluationError`` for fewer than two chunks, as llama-perplexity
    does.
    """
    if n_ctx < 4:
        raise ValueError(f"n_ctx must be 4 or more, so that half a chunk has a token to score; found {n_ctx}")
    if len(tokens) < 2 * n_ctx:
        largest = len(tokens) // 2
        shorter = (
            f", or a smaller context: the largest for this text is {largest} (--ctx {largest})" if largest > 3 else ""
        )
        raise EvaluationError(
            f"the text has {len(tokens)} tokens, and a context of {n_ctx} needs at least {2 * n_ctx}: "
            f"give a longer text{shorter}"
        )
    first = n_ctx // 2
    windows = []
    for start in range(0, len(tokens) - n_ctx + 1, n_ctx):
        chunk = tokens[start : start + n_ctx].copy()
        if bos is not None:
            chunk[0] = bos
        targets = np.append(chunk[first + 1 :], np.int32(NOT_SCORED))
        if bos is not None:
            targets[targets == bos] = NOT_SCORED
        windows.append(Window(chunk, first, targets))
    return windows


def stride_windows(tokens: TokenIds, n_ctx: int, stride: int) -> list[Window]:
    """Return windows of `n_ctx` tokens that start every `stride` tokens, each token scored once.

    The method is "Perplexity of fixed-length models" in Hugging Face's documentation: BOS is only at the beginning of
    the text; the first window is scored from its second token on, a later one on the tokens that earlier windows did
    not reach. (That page weighs a later window by one token less than it scores; here every token weighs the same.)
    """
    if not 1 <= stride <= n_ctx:
        raise ValueError(f"the stride must lie in 1..{n_ctx} (n_ctx), found {stride}")
    if len(tokens) < 2:
        raise EvaluationError(f"the text has {len(tokens)} tokens, and at least 2 are needed: give a longer text")
    windows = []
    scored = 1  # tokens[:scored] have been scored, or cannot be
    for start in range(0, len(tokens), stride):
        end = min(start + n_ctx, len(tokens))
        # A window that does not overlap (stride = n_ctx) has no token before its first one to predict it from.
        scored = max(scored, start + 1)
        if scored == end:
            break
        first = scored - start - 1  # the row before the first target
        windows.append(Window(tokens[start : end - 1], first, tokens[scored:end]))
        scored = end
        if end == len(tokens):
            break
    return windows


def batches(windows: Sequence[Window], n_ctx: int, n_batch: int) -> Iterator[TokenBatch]:
    """Yield the batches that decode `windows`: several windows in a batch, or a long window in several batches.

    `n_batch // n_ctx` windows share a batch, each as a sequence; a window longer than `n_batch` is decoded in parts.
    """
    n_seq = sequences(n_ctx, n_batch)
    for at in range(0, len(windows), n_seq):
        group = windows[at : at + n_seq]
        longest = max(len(window.tokens) for window in group)
        for start in range(0, longest, n_batch):
            parts = [(seq, window, start, min(start + n_batch, len(window.tokens))) for seq, window in enumerate(group)]
            yield _batch(parts, fresh=start == 0)


_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ (src/llama-cparams.h)


def sequences(n_ctx: int, n_batch: int) -> int:
    """Return how many windows of `n_ctx` tokens share a batch of `n_batch`: from 1 to what llama.cpp allows."""
    return max(1, min(n_batch // n_ctx, _MAX_SEQUENCES))


def _batch(parts: list[tuple[int, Window, int, int]], *, fresh: bool) -> TokenBatch:
    positions = [np.arange(start, end, dtype=np.int32) for _, _, start, end in parts]
    wanted = [places >= window.first for places, (_, window, _, _) in zip(positions, parts, strict=True)]
    targets = [
        window.targets[max(0, start - window.first) : max(0, end - window.first)] for _, window, start, end in parts
    ]
    rows = np.cumsum([len(part) for part in targets])
    ends = [int(row) for row, (_, window, _, end) in zip(rows, parts, strict=True) if end == len(window.tokens)]
    return TokenBatch(
        fresh=fresh,
        tokens=np.concatenate([window.tokens[start:end] for _, window, start, end in parts]),
        positions=np.concatenate(positions),
        seq_ids=np.concatenate([np.full(end - start, seq, dtype=np.int32) for seq, _, start, end in parts]),
        wanted=np.concatenate(wanted),
        targets=np.concatenate(targets),
        window_ends=tuple(ends),
    )
