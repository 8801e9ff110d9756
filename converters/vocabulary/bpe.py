"""``tokenizer.json``: byte-level BPE (Llama 3, SmolLM, DeepSeek, Nemo) and BPE with byte fallback (Llama 2).

Byte-level tokens are spelled in GPT-2's alphabet (a space is ``Ġ``) and merged in the order of ``merges``. The other
form is a SentencePiece model in disguise: tokens are plain text with ``▁`` for a space, and unknown characters fall
back to byte tokens such as ``<0xE2>``; llama.cpp runs it as SentencePiece, which needs scores instead of merges.
"""

from __future__ import annotations

import re
from typing import Any

from llamalite.converters.vocabulary.files import MAX_TOKENS, AddedToken, TokenizerFiles, entries
from llamalite.converters.vocabulary.pretokenizer import pre_tokenizer_name
from llamalite.converters.vocabulary.sentencepiece import ADDED_SCORE, PAD_SCORE, looks_special
from llamalite.converters.vocabulary.tokens import BYTE_LETTERS, TokenType, Vocabulary, as_bytes
from llamalite.converters.warning_log import warn
from llamalite.errors import VocabularyError

_SOURCE = "tokenizer.json"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# The score of a token that no merge makes: it is merged after everything else.
_NEVER = -1e9


def has_byte_fallback(tokenizer: dict[str, Any]) -> bool:
    """Tell whether the parsed tokenizer.json is a SentencePiece model in disguise (LlamaHfVocab, gguf-py)."""
    decoder = tokenizer.get("decoder")
    is_sequence = isinstance(decoder, dict) and decoder.get("type") == "Sequence"
    return bool(tokenizer["model"].get("byte_fallback")) and is_sequence


def read_byte_level(files: TokenizerFiles) -> Vocabulary:
    """Return the byte-level BPE vocabulary of tokenizer.json, without special tokens.

    On purpose: a ``▁`` in an added token is kept; llama.cpp's converter replaces it with a space, as in SentencePiece.
    """
    tokenizer = _bpe(files)
    texts = _texts_by_id(tokenizer, files)
    cleans_up = bool((files.tokenizer_config or {}).get("clean_up_tokenization_spaces"))
    vocabulary = Vocabulary(
        "gpt2",
        pre_tokenizer_name(tokenizer, cleans_up_spaces=cleans_up),
        _SOURCE,
        tokens=[b"[PAD%d]" % i for i in range(len(texts))],
        token_types=[int(TokenType.UNUSED)] * len(texts),
        merges=_merges(tokenizer),
    )
    if not vocabulary.merges:
        raise VocabularyError(f"{_SOURCE} has no merges, and llama.cpp loads no byte-level vocabulary without them")
    for token_id, text in enumerate(texts):
        if text is None:
            continue
        added = files.added_tokens.get(token_id)
        token_type = TokenType.NORMAL
        if added is not None:
            text = text if added.normalized else _decoded(text)
            token_type = _added_type(added, text)
        vocabulary.tokens[token_id] = as_bytes(text, token_id, _SOURCE)
        vocabulary.token_types[token_id] = int(token_type)
    return vocabulary


def read_byte_fallback(files: TokenizerFiles) -> Vocabulary:
    """Return the vocabulary of a tokenizer.json with byte fallback, without special tokens.

    On purpose: the k-th token that the merges make gets the score -k, as in SentencePiece. llama.cpp's converter gives
    every token the score -1000, which loses the order of the merges: every text is merged from the left. Rows of the
    embedding beyond the tokenizer's tokens become ``[PAD7]`` and so on; without them no file would load.
    """
    tokenizer = _bpe(files)
    texts = _texts_by_id(tokenizer, files)
    merge_scores: dict[str, float] = {}
    for merge in _merges(tokenizer):
        merge_scores.setdefault(merge.replace(" ", ""), -float(len(merge_scores)))
    tokens, scores, types = [], [], []
    for token_id, text in enumerate(texts):
        added = files.added_tokens.get(token_id)
        if text is None:
            text, score, token_type = f"[PAD{token_id}]", PAD_SCORE, TokenType.UNUSED
        elif _BYTE_TOKEN.fullmatch(text):
            score, token_type = ADDED_SCORE, TokenType.BYTE
        elif added is not None:
            score, token_type = ADDED_SCORE, _added_type(added, text)
            if token_type is TokenType.USER_DEFINED:
                text = text.replace("▁", " ")
        else:
            score, token_type = merge_scores.get(text, _NEVER), TokenType.NORMAL
        tokens.append(as_bytes(text, token_id, _SOURCE))
        scores.append(score)
        types.append(int(token_type))
    return Vocabulary("llama", "default", _SOURCE, tokens, types, scores)


def adds_prefix(tokenizer: dict[str, Any]) -> bool:
    """Tell whether a tokenizer.json with byte fallback puts a space before a text."""

    def steps(node: Any, list_name: str) -> list[dict[str, Any]]:
        if not isinstance(node, dict):
            return []
        if node.get("type") == "Sequence":
            return [step for part in entries(node, list_name) for step in steps(part, list_name)]
        return [node]

    prepends = any(step.get("type") == "Prepend" for step in steps(tokenizer.get("normalizer"), "normalizers"))
    spaces = [s for s in steps(tokenizer.get("pre_tokenizer"), "pretokenizers") if s.get("type") == "Metaspace"]
    # Until version 0.14 of tokenizers, prepend_scheme was add_prefix_space.
    return prepends or any(
        s.get("prepend_scheme", "always" if s.get("add_prefix_space", True) else "never") != "never" for s in spaces
    )


def _bpe(files: TokenizerFiles) -> dict[str, Any]:
    tokenizer = files.tokenizer_json or {"model": {}}
    model = tokenizer["model"]
    kind = model.get("type", "BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise VocabularyError(
            f"{files.folder / _SOURCE} holds a {kind} model, expected BPE: llama.cpp has no such LLaMA vocabulary"
        )
    if not isinstance(model.get("vocab"), dict):
        raise VocabularyError(f"{files.folder / _SOURCE}: 'model.vocab' is not an object of token → id")
    return tokenizer


def _texts_by_id(tokenizer: dict[str, Any], files: TokenizerFiles) -> list[str | None]:
    """Return the text of every row of the embedding; ``None`` for a row without a token."""
    vocabulary: dict[str, Any] = tokenizer["model"]["vocab"]
    by_id: dict[int, str] = {}
    for text, token_id in vocabulary.items():
        if not isinstance(token_id, int) or token_id < 0:
            raise VocabularyError(f"{_SOURCE}: token {text!r} has the id {token_id!r}, expected a whole number")
        if by_id.setdefault(token_id, text) != text:
            raise VocabularyError(f"{_SOURCE}: token {token_id} is both {by_id[token_id]!r} and {text!r}")
    n_base = max(by_id, default=-1) + 1
    for added in files.added_tokens.values():
        if by_id.setdefault(added.id, added.content) != added.content:
            raise VocabularyError(
                f"{_SOURCE}: token {added.id} is {by_id[added.id]!r} in the vocabulary and {added.content!r} among the "
                "added tokens: one of them belongs to another model"
            )
    n_tokens = files.n_tokens or min(max(by_id, default=-1) + 1, MAX_TOKENS)
    if n_base > n_tokens:
        raise VocabularyError(
            f"{_SOURCE} has {n_base} tokens (the last is {by_id[n_base - 1]!r}), but config.json says "
            f"vocab_size={n_tokens}: the embedding has too few rows, so the tokenizer belongs to another model"
        )
    for token_id in sorted(i for i in by_id if i >= n_tokens):
        warn(
            "%s: token %d (%r) has no row in an embedding of %d: left out", _SOURCE, token_id, by_id[token_id], n_tokens
        )
    return [by_id.get(token_id) for token_id in range(n_tokens)]


def _merges(tokenizer: dict[str, Any]) -> list[str]:
    """Return the merges, best first, as ``"left right"``; a space inside a part becomes ``Ġ``."""
    merges = tokenizer["model"].get("merges") or []
    if not isinstance(merges, list):
        raise VocabularyError(f"{_SOURCE}: 'model.merges' is not a list")
    # Llama 3 has 280,147 of them, so those already in this form are left as they are.
    return [
        merge if isinstance(merge, str) and merge.count(" ") == 1 else _joined(merge, rank)
        for rank, merge in enumerate(merges)
    ]


def _joined(merge: Any, rank: int) -> str:
    if not isinstance(merge, list) or len(merge) != 2 or not all(isinstance(part, str) and part for part in merge):
        raise VocabularyError(f"{_SOURCE}: merge {rank} is {merge!r}, expected two tokens")
    return " ".join(part.replace(" ", "Ġ") for part in merge)


def _added_type(token: AddedToken, text: str) -> TokenType:
    return TokenType.CONTROL if token.special or looks_special(text) else TokenType.USER_DEFINED


_BYTE_OF_LETTER = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def _decoded(text: str) -> str:
    """Return an added token as it appears in texts: one spelled in GPT-2's alphabet is decoded.

    llama.cpp looks for added tokens in the text itself, so its converter decodes them first, as the tokenizer's
    ByteLevel decoder would (TextModel.get_vocab_base, conversion/base.py).
    """
    if all(letter in _BYTE_OF_LETTER for letter in text):
        return bytes(_BYTE_OF_LETTER[letter] for letter in text).decode("utf-8", "replace")
    return text
