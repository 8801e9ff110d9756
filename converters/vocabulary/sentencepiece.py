"""``tokenizer.model``: the SentencePiece vocabulary of LLaMA 1 and 2, CodeLlama, Mistral 7B, TinyLlama, Yi, ...

Pieces keep their ids and scores. The tokens of ``added_tokens.json`` and of ``added_tokens_decoder`` in
tokenizer_config.json follow, which may also rename pieces, and then those that only tokenizer.json adds. Ids that are
left below ``vocab_size`` become unused tokens ``[PAD7]`` (TextModel._create_vocab_sentencepiece, conversion/base.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece

from llamalite.converters.vocabulary.files import AddedToken, TokenizerFiles
from llamalite.converters.vocabulary.tokens import TokenType, Vocabulary, as_bytes
from llamalite.converters.warning_log import warn
from llamalite.errors import VocabularyError

PAD_SCORE = -10000.0
ADDED_SCORE = -1000.0
# Control tokens that some checkpoints do not flag as special (TextModel.does_token_look_special, conversion/base.py).
_SPECIAL_LOOKS = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})


def looks_special(text: str) -> bool:
    """Tell whether a token looks like a control token, whatever its flags say: ``<|im_end|>``, ``<pad>``."""
    brackets = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return text in _SPECIAL_LOOKS or any(text.startswith(a) and text.endswith(b) for a, b in brackets)


def load_model(path: Path) -> Any:
    """Return the ``SentencePieceProcessor`` of `path`; `VocabularyError` for any other file."""
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError, UnicodeDecodeError) as error:  # the last if its message quotes bytes of the file
        raise VocabularyError(f"{path} is not a SentencePiece model: {error}") from error


def read_sentencepiece(files: TokenizerFiles, path: Path) -> Vocabulary:
    """Return the vocabulary of the SentencePiece model at `path`, without special tokens.

    Pieces and added tokens beyond the embedding's ``vocab_size`` rows are left out with a warning.
    """
    model = load_model(path)
    n_pieces = model.vocab_size()
    n_tokens = files.n_tokens or n_pieces
    tokens = [b"[PAD%d]" % i for i in range(n_tokens)]
    scores = [PAD_SCORE] * n_tokens
    types = [int(TokenType.UNUSED)] * n_tokens
    if n_pieces > n_tokens:
        warn("%s has %d pieces for an embedding of %d rows: the last are left out", path, n_pieces, n_tokens)

    for token_id in range(min(n_pieces, n_tokens)):
        tokens[token_id] = as_bytes(_piece(model, token_id, path), token_id, path.name)
        scores[token_id] = model.get_score(token_id)
        types[token_id] = _piece_type(model, token_id)

    def put(token_id: int, text: str, token_type: TokenType, where: str) -> None:
        if token_id >= n_tokens:
            warn("%s: token %d (%r) has no row in an embedding of %d: left out", where, token_id, text, n_tokens)
            return
        tokens[token_id] = as_bytes(text, token_id, where)
        scores[token_id] = ADDED_SCORE
        types[token_id] = int(token_type)

    def add(token: AddedToken, where: str) -> None:
        if token.special or looks_special(token.content):
            put(token.id, token.content, TokenType.CONTROL, where)
        else:
            # llama.cpp finds these in the text itself, where a space is still a space.
            put(token.id, token.content.replace("▁", " "), TokenType.USER_DEFINED, where)

    named = set(files.special_texts())
    for text, token_id in files.added_tokens_json.items():
        # On purpose: llama.cpp's converter calls none of these a control token. transformers calls the named ones so.
        put(token_id, text, TokenType.CONTROL if text in named else TokenType.USER_DEFINED, "added_tokens.json")
    for token in files.configured_tokens:
        add(token, "tokenizer_config.json")
    for token in files.listed_tokens:
        # On purpose: llama.cpp's converter ignores this list, the only one in which transformers 5 has added tokens.
        if token.id >= n_tokens or types[token.id] == TokenType.UNUSED:
            add(token, "tokenizer.json")
    return Vocabulary("llama", "default", path.name, tokens, types, scores)


def _piece(model: Any, token_id: int, path: Path) -> str:
    try:
        return str(model.id_to_piece(token_id))
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path}: piece {token_id} is not UTF-8, so the file is damaged: {error}") from None


def _piece_type(model: Any, token_id: int) -> int:
    if model.is_unknown(token_id):
        return int(TokenType.UNKNOWN)
    if model.is_control(token_id):
        return int(TokenType.CONTROL)
    if model.is_unused(token_id):
        return int(TokenType.UNUSED)
    return int(TokenType.BYTE if model.is_byte(token_id) else TokenType.NORMAL)


def adds_prefix(path: Path) -> bool:
    """Tell whether the model puts a space before a text (``add_dummy_prefix``)."""
    model = load_model(path)
    ids = model.encode("a", out_type=int)
    return bool(ids) and _piece(model, ids[0], path).startswith("▁")
