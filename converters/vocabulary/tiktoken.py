"""Meta's own ``tokenizer.model`` of Llama 3: tiktoken's list of byte strings and ranks, in base64.

    IQ== 0              "!" has rank 0
    Ig== 1
    ...
    IOKWhA== 127999     the 256 special tokens that follow are in Meta's program, not in the file

It is turned into a parsed tokenizer.json, as by transformers (``TikTokenConverter``, convert_slow_tokenizer.py), so
that the rest of the code deals with one form only. tiktoken has no list of merges: it joins the pair that makes the
token of the lowest rank. So every way to cut a token into two tokens is a merge, and merges are ordered by the rank of
the token that they make, then by the ranks of their parts.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from llamalite.converters.checkpoints.folder import member
from llamalite.converters.vocabulary.files import TokenizerFiles
from llamalite.converters.vocabulary.tokens import BYTE_LETTERS
from llamalite.errors import VocabularyError

MAX_BYTES = 64 << 20  # Llama 3's has 2.2 MB
_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_MAX_TOKEN_BYTES = 1024  # the longest of Llama 3 is 128 spaces

# ``Tokenizer.pat_str`` (meta-llama/llama3, llama/tokenizer.py).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BOS, _EOS = "<|begin_of_text|>", "<|end_of_text|>"
# The special tokens in order; None is the next <|reserved_special_token_N|>, as is every token after the list.
_LLAMA3 = (_BOS, _EOS, None, None, None, None, "<|start_header_id|>", "<|end_header_id|>", None, "<|eot_id|>")
_LLAMA31 = (
    *(_BOS, _EOS, None, None, "<|finetune_right_pad_id|>", None, "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
)


def open_files(folder: Path, config: Mapping[str, Any]) -> TokenizerFiles:
    """Return the tokenizer's files in `folder`: a ``tokenizer.model`` in tiktoken's form becomes a tokenizer.json.

    If the folder has a tokenizer.json as well, that one is used.
    """
    if not _is_tiktoken(member(folder, "tokenizer.model")):
        return TokenizerFiles(folder, config)
    if member(folder, "tokenizer.json").is_file():
        return _WithoutModel(folder, config)
    return TiktokenFiles(folder, config)


def _is_tiktoken(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _FIRST_LINE.match(file.read(2 * _MAX_TOKEN_BYTES)) is not None


class _WithoutModel(TokenizerFiles):
    """The folder's files without ``tokenizer.model``, which is not a SentencePiece model."""

    @cached_property
    def sentencepiece_model(self) -> Path | None:
        return None


class TiktokenFiles(_WithoutModel):
    """The folder's files, with a tokenizer.json made from tiktoken's ``tokenizer.model``."""

    @cached_property
    def tokenizer_json(self) -> dict[str, Any] | None:
        ranks = read_ranks(self.folder / "tokenizer.model")
        n_special = (self.n_tokens or len(ranks) + 256) - len(ranks)
        is_31 = bool(self.config.get("rope_scaling"))  # the scaling and the new names came with the same release
        return tokenizer_json(ranks, special_tokens(n_special, is_31=is_31))

    @cached_property
    def tokenizer_config(self) -> dict[str, Any] | None:
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": _BOS,
            "eos_token": _EOS,
            "clean_up_tokenization_spaces": True,
        }


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return the byte strings of the file at `path` with their ranks, from 0 on; all 256 single bytes must be there."""
    if path.stat().st_size > MAX_BYTES:
        raise VocabularyError(f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_BYTES:,}")
    ranks: dict[bytes, int] = {}
    for i, line in enumerate(path.read_bytes().splitlines()):
        text, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(text, validate=True)
        except binascii.Error:
            token = b""
        if not 0 < len(token) <= _MAX_TOKEN_BYTES or rank != b"%d" % i:
            raise VocabularyError(f"{path}: line {i + 1} is {line[:60]!r}, expected a token in base64 and the rank {i}")
        if token in ranks:
            raise VocabularyError(f"{path}: line {i + 1} repeats the token {token[:40]!r} of line {ranks[token] + 1}")
        ranks[token] = i
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise VocabularyError(f"{path} lacks {len(missing)} of the 256 single bytes, the first is 0x{missing[0]:02X}")
    return ranks


def special_tokens(n: int, *, is_31: bool) -> list[str]:
    """Return the `n` special tokens that follow the ranks, in the order of Llama 3, or of 3.1 and later with `is_31`.

    ``Tokenizer.__init__``, meta-llama/llama3 and meta-llama/llama-models.
    """
    named = _LLAMA31 if is_31 else _LLAMA3
    if not len(named) <= n <= 1 << 16:
        raise VocabularyError(
            f"the embedding has {n} rows beyond the ranks of tokenizer.model, expected at least {len(named)} for "
            "Llama 3's special tokens: the tokenizer belongs to another model"
        )
    tokens: list[str] = []
    n_reserved = 0
    for i in range(n):
        name = named[i] if i < len(named) else None
        if name is None:
            name = f"<|reserved_special_token_{n_reserved}|>"
            n_reserved += 1
        tokens.append(name)
    return tokens


def merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return every pair of tokens that makes a token, in the order in which tiktoken joins them.

    >>> merges({b"a": 0, b"b": 1, b"ab": 2, b"aa": 3, b"aab": 4})
    [(b'a', b'b'), (b'a', b'a'), (b'a', b'ab'), (b'aa', b'b')]
    """
    pairs: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        valid = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        pairs += sorted(valid, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return pairs


def tokenizer_json(ranks: Mapping[bytes, int], special: list[str]) -> dict[str, Any]:
    """Return the parsed tokenizer.json of Llama 3 for these tokens."""

    def spelled(token: bytes) -> str:
        return "".join(BYTE_LETTERS[byte] for byte in token)

    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos_step = {"SpecialToken": {"id": _BOS, "type_id": 0}}
    return {
        "version": "1.0",
        "added_tokens": [{"id": len(ranks) + i, "content": text, **flags} for i, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                {
                    "type": "TemplateProcessing",
                    "single": [bos_step, {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [
                        bos_step,
                        {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": _BOS, "type_id": 1}},
                        {"Sequence": {"id": "B", "type_id": 1}},
                    ],
                    "special_tokens": {
                        _BOS: {"id": _BOS, "ids": [len(ranks) + special.index(_BOS)], "tokens": [_BOS]},
                    },
                },
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelled(token): rank for token, rank in ranks.items()},
            "merges": [f"{spelled(left)} {spelled(right)}" for left, right in merges(ranks)],
        },
    }
