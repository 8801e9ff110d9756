"""The tokenizer's files in a Hugging Face folder, each read once, and the added tokens that they define together.

    files = TokenizerFiles(Path("Llama-3.2-1B"), config)
    files.tokenizer_json["model"]["type"]       # "BPE"
    files.added_tokens[128000].content          # "<|begin_of_text|>"

This module knows nothing of GGUF and llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llamalite.converters.checkpoints.folder import member
from llamalite.converters.checkpoints.json_file import read_object, whole_number
from llamalite.errors import VocabularyError

# The names of special tokens in tokenizer_config.json and config.json (bos_token, bos_token_id, ...), in llama.cpp's
# order (SpecialVocab, gguf-py/gguf/vocab.py), which is also that of the keys in a GGUF file.
SPECIAL_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MAX_TOKENS = 1 << 21  # the largest real vocabularies have 262,144


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before the text is cut.

    `special` tokens are control tokens (dropped when decoding); `normalized` ones are found in the normalized text.
    """

    id: int
    content: str
    special: bool
    normalized: bool


@dataclass(frozen=True)
class TokenizerFiles:
    """The parsed files of `folder`; `config` is its ``config.json``. A missing file is ``None`` or empty.

    Every property raises `CheckpointError` for a file that is not JSON, and `VocabularyError` for JSON that does not
    describe a tokenizer.
    """

    folder: Path
    config: Mapping[str, Any]

    def _object(self, name: str) -> dict[str, Any] | None:
        path = member(self.folder, name)
        return read_object(path) if path.is_file() else None

    @cached_property
    def tokenizer_json(self) -> dict[str, Any] | None:
        tokenizer = self._object("tokenizer.json")
        if tokenizer is not None and not isinstance(tokenizer.get("model"), dict):
            raise VocabularyError(
                f"{self.folder / 'tokenizer.json'} has no object 'model', which holds the vocabulary: "
                "save the tokenizer again with transformers' save_pretrained"
            )
        return tokenizer

    @cached_property
    def tokenizer_config(self) -> dict[str, Any] | None:
        return self._object("tokenizer_config.json")

    @cached_property
    def named_tokens(self) -> dict[str, Any]:
        """The settings that name special tokens (``eos_token``, ...): tokenizer_config.json, with those of
        ``special_tokens_map.json``, which come first unless tokenizer_config.json has an ``added_tokens_decoder``
        (transformers 5, ``PreTrainedTokenizerBase._from_pretrained``)."""
        config = self.tokenizer_config or {}
        return config if "added_tokens_decoder" in config else config | (self._object("special_tokens_map.json") or {})

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        return self._object("generation_config.json") or {}

    @cached_property
    def sentencepiece_model(self) -> Path | None:
        path = member(self.folder, "tokenizer.model")
        return path if path.is_file() else None

    @property
    def n_tokens(self) -> int | None:
        """The number of rows of the embedding according to config.json; ``None`` if it does not say."""
        if self.config.get("vocab_size") is None:
            return None
        return whole_number(self.config, "vocab_size", "config.json", maximum=MAX_TOKENS)

    def named_token(self, name: str) -> str | None:
        """Return the text of `name`_token in tokenizer_config.json or special_tokens_map.json; None without one."""
        return token_text(self.named_tokens.get(f"{name}_token"))

    @cached_property
    def added_tokens_json(self) -> dict[str, int]:
        """``added_tokens.json``, which older versions of transformers write beside a ``tokenizer.model``."""
        added = self._object("added_tokens.json") or {}
        for text, token_id in added.items():
            _check_id(token_id, text, "added_tokens.json")
        return added

    @cached_property
    def listed_tokens(self) -> list[AddedToken]:
        """``added_tokens`` of tokenizer.json, in its order."""
        listed = (self.tokenizer_json or {}).get("added_tokens") or []
        return [_added_token(entry.get("id"), entry, "tokenizer.json") for entry in _objects(listed, "tokenizer.json")]

    @cached_property
    def configured_tokens(self) -> list[AddedToken]:
        """``added_tokens_decoder`` of tokenizer_config.json, in its order."""
        decoder = (self.tokenizer_config or {}).get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise VocabularyError("tokenizer_config.json: 'added_tokens_decoder' is not an object of id → token")
        where = "tokenizer_config.json"
        return [
            _added_token(int(key) if key.isdecimal() else key, entry, where)
            for key, entry in zip(decoder, _objects(list(decoder.values()), where), strict=True)
        ]

    @cached_property
    def added_tokens(self) -> dict[int, AddedToken]:
        """Added tokens by id, as transformers combines those of tokenizer.json and tokenizer_config.json.

        The flags of tokenizer_config.json win, and a token of the vocabulary that is named there (bos_token, ...) is
        special even if no list has it (PreTrainedTokenizerFast.__init__, transformers).
        """
        added = {token.id: token for token in self.listed_tokens}
        ids = {token.content: token.id for token in self.listed_tokens}
        for token in self.configured_tokens:
            known = ids.get(token.content)
            if known is not None and known != token.id:
                raise VocabularyError(
                    f"token {token.content!r} is {known} in tokenizer.json and {token.id} in tokenizer_config.json: "
                    "one of the two files belongs to another model"
                )
            if token.id in added and added[token.id].content != token.content:
                raise VocabularyError(
                    f"token {token.id} is {added[token.id].content!r} in tokenizer.json and {token.content!r} in "
                    "tokenizer_config.json: one of the two files belongs to another model"
                )
            added[token.id] = token
            ids[token.content] = token.id
        vocabulary = (self.tokenizer_json or {"model": {}})["model"].get("vocab")
        for text in self.special_texts():
            token_id = vocabulary.get(text) if isinstance(vocabulary, dict) else None
            if text not in ids and isinstance(token_id, int):
                added[token_id] = AddedToken(token_id, text, special=True, normalized=False)
        return added

    def id_of(self, text: str) -> int | None:
        """Return the id of the token `text`, added or in the vocabulary itself; None if there is none."""
        for token in (*self.listed_tokens, *self.configured_tokens):
            if token.content == text:
                return token.id
        if text in self.added_tokens_json:
            return self.added_tokens_json[text]
        vocabulary = (self.tokenizer_json or {"model": {}})["model"].get("vocab")
        token_id = vocabulary.get(text) if isinstance(vocabulary, dict) else None
        return token_id if isinstance(token_id, int) else None

    def special_texts(self) -> list[str]:
        """Return the texts of all tokens that are named as special."""
        config = self.named_tokens
        listed = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
        named = [self.named_token(name) for name in SPECIAL_NAMES]
        extra = [token_text(entry) for entry in listed] if isinstance(listed, list) else []
        return [text for text in named + extra if text]


def entries(parent: dict[str, Any], name: str) -> list[Any]:
    """Return the list `name` of a part of tokenizer.json, empty if it is missing."""
    listed = parent.get(name)
    if listed is not None and not isinstance(listed, list):
        raise VocabularyError(f"tokenizer.json: {name!r} is {listed!r:.60}, expected a list: save the tokenizer again")
    return listed or []


def token_text(entry: Any) -> str | None:
    """Return the text of a token, which a config holds as a string or as an object with ``content``."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _objects(entries: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise VocabularyError(f"{where}: the added tokens are not a list of objects: save the tokenizer again")
    return entries


def _added_token(token_id: Any, entry: dict[str, Any], where: str) -> AddedToken:
    content = entry.get("content")
    if not isinstance(content, str):
        raise VocabularyError(f"{where}: the added token {token_id!r} has no text 'content': {entry}")
    return AddedToken(
        id=_check_id(token_id, content, where),
        content=content,
        special=bool(entry.get("special")),
        normalized=bool(entry.get("normalized", not entry.get("special"))),
    )


def _check_id(token_id: Any, text: str, where: str) -> int:
    if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
        raise VocabularyError(f"{where}: token {text!r} has the id {token_id!r}, expected a whole number of 0 or more")
    return token_id
