"""A vocabulary ready for a GGUF file: tokens, types, scores, merges and special tokens, and the keys they become.

The keys, their order, types and values are those of llama.cpp's converter (LlamaModel.set_vocab in
conversion/llama.py, TextModel._set_vocab_* in conversion/base.py), so that the whole file can be the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from string import ascii_letters, digits
from typing import Any, Literal

from gguf import TokenType

from llamalite.converters.vocabulary.special import SpecialTokens, TemplateSource
from llamalite.errors import VocabularyError

__all__ = ["BYTE_LETTERS", "TokenType", "Vocabulary", "as_bytes", "check_tokens"]


def _byte_letters() -> tuple[str, ...]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


BYTE_LETTERS = _byte_letters()
"""GPT-2's letter for each byte: printable Latin-1 characters are themselves, other bytes become U+0100 and on."""


@dataclass
class Vocabulary:
    """What a tokenizer becomes in a GGUF file.

    `kind` is llama.cpp's name of the algorithm: "llama" merges by `scores` (SentencePiece), "gpt2" by the order of
    `merges` (byte-level BPE). `pre` is llama.cpp's name of the pre-tokenizer. `tokens` (in UTF-8) and `token_types`
    have one entry for every row of the embedding. `source` is the name of the file that they come from.
    `add_space_prefix` is written unless it is ``None``.
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
    last: SpecialTokens = field(default_factory=SpecialTokens)  # written after the chat template

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def chat_template(self) -> str | None:
        """The default template; ``None`` for a base model."""
        template = self.special.chat_template
        if isinstance(template, list):
            return _default_template(template)
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
    """Like ``GGUFWriter.add_chat_template``, but with sorted names; there they have the random order of a set."""
    if isinstance(template, list):
        names = []
        for entry in template:
            name = "".join(c if c in ascii_letters + digits else "_" for c in entry["name"])
            if name and name != "default":
                names.append(name)
                writer.add_string(f"tokenizer.chat_template.{name}", entry["template"])
        if names:
            writer.add_array("tokenizer.chat_templates", sorted(set(names)))
        template = _default_template(template)
    if template:
        writer.add_chat_template(template)


def _default_template(templates: list[dict[str, str]]) -> str | None:
    return next((entry["template"] for entry in templates if entry["name"] == "default"), None)


def as_bytes(text: str, token_id: int, source: str) -> bytes:
    """Return `text` in UTF-8; `VocabularyError` for half a character (a lone surrogate), naming the token."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise VocabularyError(f"{source}: token {token_id} is {text!r}, which is not valid Unicode") from None


def check_tokens(vocabulary: Vocabulary) -> None:
    """Raise `VocabularyError` for a vocabulary on which llama.cpp would abort, or that cannot be written as it is.

    llama.cpp asserts that no token occurs twice (llama_vocab::impl::load), and looks up a byte token, without a check,
    for each character of a text that has no token (llama_vocab::byte_to_token). A token with a zero byte or a merge
    that is not valid Unicode could not be written as it is.
    """
    seen: dict[bytes, int] = {}
    for token_id, text in enumerate(vocabulary.tokens):
        text = text or b"[EMPTY_%d]" % token_id  # llama.cpp's name for it
        if b"\0" in text:
            raise VocabularyError(
                f"{vocabulary.source}: token {token_id} is {text!r}, which llama.cpp would cut at its zero byte: the "
                "file is damaged, or from a tokenizer that llama.cpp cannot run"
            )
        other = seen.setdefault(text, token_id)
        if other != token_id:
            raise VocabularyError(
                f"{vocabulary.source}: tokens {other} and {token_id} are both {text.decode('utf-8', 'replace')!r}, but "
                "llama.cpp accepts every text only once: rename or remove one of them"
            )
    for rank, merge in enumerate(vocabulary.merges):
        if not merge.isascii():
            as_bytes(merge, rank, f"{vocabulary.source}, merges")
    if vocabulary.kind == "llama":
        missing = [b for b in range(256) if b"<0x%02X>" % b not in seen and not (b < 128 and bytes([b]) in seen)]
        if missing:
            raise VocabularyError(
                f"{vocabulary.source}: {len(missing)} of the 256 byte tokens are missing, the first is "
                f"<0x{missing[0]:02X}>: llama.cpp needs them for characters that are not tokens, and aborts"
            )
