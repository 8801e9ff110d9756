"""A vocabulary ready for a GGUF file: tokens, types, scores, merges and special tokens, and the keys they become.

The keys, their order, types and values are those that llama.cpp's converter writes (LlamaModel.set_vocab in
conversion/llama.py, TextModel._set_vocab_* in conversion/base.py), so that the whole file can be the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from string import ascii_letters, digits
from typing import Any, Literal

from gguf import TokenType

from llamalite.converters.vocabulary.special import SpecialTokens, TemplateSource
from llamalite.errors import VocabularyError

__all__ = ["TokenType", "Vocabulary", "as_bytes", "check_tokens"]


@dataclass
class Vocabulary:
    """What a tokenizer becomes in a GGUF file.

    `kind` is llama.cpp's name of the algorithm: "llama" merges by `scores` (SentencePiece), "gpt2" by the order of
    `merges` (byte-level BPE). `pre` names how texts are cut beforehand. `tokens` and `token_types` have one entry for
    every row of the embedding; texts are UTF-8. `source` is the file they come from. `add_space_prefix` is written only
    where it is not ``None``.
    """

    kind: Literal["llama", "gpt2"]
    pre: str
    source: str
    tokens: list[bytes]
    token_types: list[int]
    scores: list[float] | None = None
    merges: list[str] = field(default_factory=list)
    special: SpecialTokens = field(default_factory=SpecialTokens)
    add_space_prefix: bool | None = None
    last: SpecialTokens = field(default_factory=SpecialTokens)  # what follows the chat template

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def chat_template(self) -> str | None:
        """The template used unless another is asked for; ``None`` for a base model."""
        template = self.special.chat_template
        if isinstance(template, list):
            return next((one["template"] for one in template if one["name"] == "default"), None)
        return template

    def write_keys(self, writer: Any) -> None:
        """Add the ``tokenizer.*`` keys to `writer`, a ``gguf.GGUFWriter``."""
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.token_types)
        if self.merges:
            writer.add_token_merges(self.merges)
        _write_special(writer, self.special)
        _write_special(writer, self.last)


def _write_special(writer: Any, special: SpecialTokens) -> None:
    for name, token_id in special.ids.items():
        if name != "cls":  # GGUF has no key for it
            getattr(writer, f"add_{name}_token_id")(token_id)
    for name, value in special.add.items():
        if name in ("bos", "eos", "sep"):
            getattr(writer, f"add_add_{name}_token")(value)
    _write_templates(writer, special.chat_template)
    if special.lowercase is not None:
        writer.add_bool("tokenizer.ggml.normalizer.lowercase", special.lowercase)
    if special.strip_accents is not None:
        writer.add_bool("tokenizer.ggml.normalizer.strip_accents", special.strip_accents)


def _write_templates(writer: Any, template: TemplateSource) -> None:
    """As ``GGUFWriter.add_chat_template``, but the list of names is sorted: there it is a set's random order."""
    if isinstance(template, list):
        names = []
        for one in template:
            name = "".join(c if c in ascii_letters + digits else "_" for c in one["name"])
            if name and name != "default":
                names.append(name)
                writer.add_string(f"tokenizer.chat_template.{name}", one["template"])
        if names:
            writer.add_array("tokenizer.chat_templates", sorted(set(names)))
        template = next((one["template"] for one in template if one["name"] == "default"), None)
    if template:
        writer.add_chat_template(template)


def as_bytes(text: str, token_id: int, source: str) -> bytes:
    """Return `text` in UTF-8; `VocabularyError` names a token that is half a character (a lone surrogate)."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise VocabularyError(f"{source}: token {token_id} is {text!r}, which is not valid Unicode") from None


def check_tokens(vocabulary: Vocabulary) -> None:
    """Raise `VocabularyError` for what makes llama.cpp abort the whole process: doubled texts, missing byte tokens.

    llama.cpp checks the first with an assertion (llama_vocab::impl::load) and looks byte tokens up without a check
    (llama_vocab::byte_to_token) as soon as a text has a character that no token spells. Also for what could not be
    written as it is: a token with a zero byte, a merge that is no Unicode.
    """
    seen: dict[bytes, int] = {}
    for token_id, text in enumerate(vocabulary.tokens):
        text = text or b"[EMPTY_%d]" % token_id  # the name that llama.cpp gives it
        if b"\0" in text:
            raise VocabularyError(
                f"{vocabulary.source}: token {token_id} is {text!r}, and llama.cpp would cut it at its zero byte: the "
                "file is damaged, or from a tokenizer that llama.cpp cannot run"
            )
        other = seen.setdefault(text, token_id)
        if other != token_id:
            raise VocabularyError(
                f"{vocabulary.source}: tokens {other} and {token_id} are both {text.decode('utf-8', 'replace')!r}, and "
                "llama.cpp accepts every text once: rename or remove one of them"
            )
    for rank, merge in enumerate(vocabulary.merges):
        if not merge.isascii():
            as_bytes(merge, rank, f"{vocabulary.source}, merges")
    if vocabulary.kind == "llama":
        missing = [b for b in range(256) if b"<0x%02X>" % b not in seen and not (b < 128 and bytes([b]) in seen)]
        if missing:
            raise VocabularyError(
                f"{vocabulary.source}: {len(missing)} of the 256 byte tokens are missing, the first is "
                f"<0x{missing[0]:02X}>: llama.cpp cannot spell a character that is no token without them, and aborts"
            )
