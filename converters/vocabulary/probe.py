"""Tests whether a finished GGUF file tokenizes as the original tokenizer does.

    report = compare(Path("Llama-3.2-1B"), config, Path("model.gguf.part"))
    report.n_texts, len(report.differences)     # (4609, 0)
    report.known                                # peculiarities of llama.cpp, which no converter can change

A few thousand texts (`probe_texts`) go through the original tokenizer, run by the library `tokenizers` or
`sentencepiece`, and through the file's vocabulary in llama.cpp. Nothing else shows whether the pre-tokenizer named in
``tokenizer.ggml.pre`` cuts texts as tokenizer.json does.
"""

from __future__ import annotations

import json
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from llamalite.converters.vocabulary import bpe, sentencepiece
from llamalite.converters.vocabulary.files import MAX_TOKENS, TokenizerFiles
from llamalite.converters.vocabulary.probe_texts import special_texts, texts
from llamalite.converters.vocabulary.tiktoken import open_files
from llamalite.errors import VocabularyError
from llamalite.native.model import NativeModel

# Peculiarities of llama.cpp, whatever a converter writes.
SPACE_PREFIX = "llama.cpp puts a space before text that follows a special token or begins with a space"
HIDDEN_TOKEN = "llama.cpp finds added tokens anywhere, the original only where its normalizer keeps them"
NOT_NORMALIZED = "llama.cpp does not normalize Unicode"
NO_CASE = "llama.cpp cuts words differently at combining marks and at capitals outside ASCII"
NO_DIGITS = "llama.cpp does not separate digits outside ASCII"


def _without_case(text: str) -> str:
    return "".join(c if c.isascii() else c.lower() for c in text if not unicodedata.category(c).startswith("M"))


def _without_digits(text: str) -> str:
    return "".join(c for c in text if c.isascii() or not c.isnumeric())


# Pre-tokenizers whose regular expressions in llama.cpp only approximate the original's (llm_tokenizer_bpe,
# llama-vocab.cpp), and a function that removes from a text what they cut differently.
_APPROXIMATE: dict[str, tuple[str, Callable[[str], str]]] = {
    "tekken": (NO_CASE, _without_case),
    "gpt-4o": (NO_CASE, _without_case),
    "deepseek-llm": (NO_DIGITS, _without_digits),
}

Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Difference:
    """A text to which the two tokenizers give different ids, with both lists; `reason` is the cause, if known."""

    text: str
    original: list[int]
    finished: list[int]
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.text!r} is {self.original} in the original and {self.finished} in the GGUF file"


@dataclass(frozen=True)
class ProbeReport:
    """The result of the probe: unexpected `differences`, and `known` ones that llama.cpp always has.

    Both lists have the shortest texts first.
    """

    n_texts: int
    differences: list[Difference]
    known: list[Difference]

    def describe(self) -> str:
        """Return one line for people: how many texts differ, and the shortest of them."""
        if self.differences:
            return f"{len(self.differences)} of {self.n_texts} probe texts differ, the shortest: {self.differences[0]}"
        known_part = ""
        if self.known:
            reasons = ", ".join(sorted({str(difference.reason) for difference in self.known}))
            known_part = f"; {len(self.known)} differ for known reasons ({reasons}), the shortest: {self.known[0]}"
        return f"{self.n_texts - len(self.known)} of {self.n_texts} probe texts have the same token ids{known_part}"

    def raise_for_differences(self) -> None:
        """Raise `VocabularyError` if there are differences."""
        if self.differences:
            raise VocabularyError(
                f"{self.describe()}. A model does worse with ids that it was not trained on: report the tokenizer, "
                "or convert anyway with --allow-token-mismatch"
            )


def compare(
    folder: Path,
    config: Mapping[str, Any],
    gguf_path: Path,
    plain: Sequence[str] | None = None,
    stop: threading.Event | None = None,
) -> ProbeReport:
    """Compare the tokenizer in `folder` with the vocabulary of the GGUF file at `gguf_path`.

    `plain` are the texts without special tokens to try, by default all of `probe_texts.texts` and a thousand tokens of
    the vocabulary. The original is tokenizer.json if there is one, as in transformers, else tokenizer.model.
    Takes two seconds for 128k tokens; once `stop` is set it ends with ``CancelledError``. Raises `ModelLoadError` if
    llama.cpp refuses the file, `VocabularyError` if the original cannot be loaded.
    """
    files = open_files(folder, config)
    with ThreadPoolExecutor(1) as pool:  # llama.cpp loads while Python reads: ctypes releases the GIL
        loading = pool.submit(NativeModel, gguf_path, vocab_only=True)
        try:
            original = _Original(files)
        finally:
            model = loading.result()
    with model:
        finished = _finished(model, stop or threading.Event())
        corpus = [*texts(), *_tokens(model)] if plain is None else [*plain]
        corpus += special_texts(original.specials)
        original_ids, file_ids = original.encode(corpus), finished(corpus)
        differing = [Difference(t, a, b) for t, a, b in zip(corpus, original_ids, file_ids, strict=True) if a != b]
        if original.adds is not None:
            differing += _ends(original.adds, model)
        differing.sort(key=lambda difference: (len(difference.text), difference.text))
        pre = model.metadata.get("tokenizer.ggml.pre", "")
        explained = [replace(d, reason=_known_reason(d, original, finished, pre)) for d in differing]
        differences = [difference for difference in explained if difference.reason is None]
        if differences:
            differences[0] = _shortened(differences[0], original, finished)
        return ProbeReport(len(corpus), differences, [d for d in explained if d.reason is not None])


class _Original:
    """The checkpoint's own tokenizer; `encode` never adds special tokens."""

    def __init__(self, files: TokenizerFiles) -> None:
        n_tokens = files.n_tokens or MAX_TOKENS
        added = [token for token in files.added_tokens.values() if token.id < n_tokens]
        self.ids = {token.content: token.id for token in added}
        self.adds: tuple[str, list[int]] | None = None
        self._normalize: Callable[[str], str] | None = None
        self.spaces = True  # a SentencePiece vocabulary, with ▁ for a space
        if files.tokenizer_json is not None:
            self._use_tokenizers(files.tokenizer_json, files)
        elif files.sentencepiece_model is not None:
            self._use_sentencepiece(files.sentencepiece_model, files, n_tokens)
        else:
            raise FileNotFoundError(f"{files.folder} has neither tokenizer.json nor tokenizer.model")
        self.specials = list(self.ids)
        self.normalized_specials = [token.content for token in added if token.normalized and token.content in self.ids]
        self.finder = _finder(self.specials)

    def _use_tokenizers(self, source: dict[str, Any], files: TokenizerFiles) -> None:
        path = files.folder / "tokenizer.json"
        self.spaces = bpe.has_byte_fallback(source)
        try:
            if self.spaces and (files.tokenizer_config or {}).get("add_prefix_space") is False:
                tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_without_prefix(source)))
            elif path.is_file():
                tokenizer = tokenizers.Tokenizer.from_file(str(path))
            else:  # Meta's own form, made into a tokenizer.json in memory
                tokenizer = tokenizers.Tokenizer.from_str(json.dumps(source))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the Rust code is not an Exception
            raise VocabularyError(
                f"{path} cannot be loaded by the installed tokenizers {tokenizers.__version__}: {error}. Upgrade it "
                "(pip install -U tokenizers), or save the tokenizer again"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.ids = {text: i for text, i in self.ids.items() if tokenizer.token_to_id(text) == i}
        config = files.tokenizer_config or {}
        # Only in some versions of transformers can tokenizer_config.json change what the post-processor adds.
        configured = any(isinstance(config.get(name), bool) for name in ("add_bos_token", "add_eos_token"))
        if not configured and "TemplateProcessing" in json.dumps(source.get("post_processor")):
            self.adds = ("a", tokenizer.encode("a").ids)
        normalizer = tokenizer.normalizer
        if normalizer is not None and not self.spaces:
            self._normalize = normalizer.normalize_str
        self.encode: Encode = lambda texts: [
            encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    def _use_sentencepiece(self, path: Path, files: TokenizerFiles, n_tokens: int) -> None:
        model = sentencepiece.load_model(path)
        self.ids |= {text: i for text, i in files.added_tokens_json.items() if i < n_tokens}
        self.ids = {text: i for text, i in self.ids.items() if "▁" not in text}  # would be found as a space
        finder = _finder(self.ids)

        def encode_text(text: str) -> list[int]:
            """Find the added tokens first, as transformers does, and let SentencePiece encode what is between them."""
            encoded: list[int] = []
            at = 0
            for found in finder.finditer(text):
                encoded += [*model.encode(text[at : found.start()]), self.ids[found[0]]]
                at = found.end()
            return [*encoded, *model.encode(text[at:])]

        self.encode = lambda texts: [encode_text(text) for text in texts]
        self._normalize = lambda text: str(model.normalize(text)).replace("▁", " ").removeprefix(" ")

    def normalized(self, text: str) -> str:
        """Return `text` normalized, apart from the spelling of spaces."""
        return text if self._normalize is None else self._normalize(text)


def _finder(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds the longest of `texts` first, and nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _tokens(model: NativeModel) -> list[str]:
    """Return the texts of a thousand tokens spread over the vocabulary, without those that end inside a character."""
    pieces = (model.token_to_piece(i) for i in range(0, model.n_vocab, max(1, model.n_vocab // 1000)))
    decoded = (piece.decode("utf-8", "replace") for piece in pieces)
    return [text for text in dict.fromkeys(decoded) if text and "\ufffd" not in text]


class _Finished(Protocol):
    """The file's tokenizer in llama.cpp; it never adds special tokens, and finds them in texts."""

    def __call__(self, texts: Sequence[str]) -> list[list[int]]: ...


def _finished(model: NativeModel, stop: threading.Event) -> _Finished:
    """Return the tokenizer of `model`, on all cores: some of llama.cpp's regular expressions take a millisecond."""
    n_threads = os.cpu_count() or 1

    def encode(texts: Sequence[str]) -> list[list[int]]:
        def encode_text(text: str) -> list[int]:
            if stop.is_set():
                raise CancelledError
            ids: list[int] = model.tokenize(text, add_special=False, parse_special=True).tolist()
            return ids

        if len(texts) < 100:
            return [encode_text(text) for text in texts]
        with ThreadPoolExecutor(n_threads) as pool:
            parts = pool.map(lambda k: [encode_text(text) for text in texts[k::n_threads]], range(n_threads))
        out: list[list[int]] = [[]] * len(texts)
        for k, part in enumerate(parts):
            out[k::n_threads] = part
        return out

    return encode


def _without_prefix(source: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json that adds no space before a text, as transformers does for add_prefix_space=false."""

    def strip(node: Any) -> Any:
        if isinstance(node, list):
            return [strip(step) for step in node if not (isinstance(step, dict) and step.get("type") == "Prepend")]
        if not isinstance(node, dict):
            return node
        changed = {key: strip(value) for key, value in node.items()}
        return changed | {"prepend_scheme": "never"} if node.get("type") == "Metaspace" else changed

    parts = {name: strip(source.get(name)) for name in ("normalizer", "pre_tokenizer")}
    if isinstance(parts["normalizer"], dict) and parts["normalizer"].get("type") == "Prepend":
        parts["normalizer"] = None
    return source | parts


def _ends(adds: tuple[str, list[int]], model: NativeModel) -> list[Difference]:
    """Compare the tokens that the tokenizers add around a text: BOS and EOS."""
    text, ids = adds
    file_ids = model.tokenize(text, add_special=True, parse_special=True).tolist()
    return [] if file_ids == ids else [Difference(text, ids, file_ids)]


def _known_reason(difference: Difference, original: _Original, finished: _Finished, pre: str) -> str | None:
    """Return the known cause of a difference if the text without that cause does not differ; else None."""
    text = difference.text
    normal = original.normalized(text)
    if normal != text and finished([normal]) == [difference.original]:
        return NOT_NORMALIZED
    if pre in _APPROXIMATE:
        reason, simplify = _APPROXIMATE[pre]
        plain = simplify(text)
        if plain != text and original.encode([plain]) == finished([plain]):
            return reason
    if original.spaces:
        # Without the special tokens, every piece of the text must be the same in both.
        pieces = [piece for piece in original.finder.split(text) if piece]
        odd = [piece for piece in pieces if not _same_but_for_a_space(piece, original, finished)]
        if all(finished([original.normalized(piece)]) == original.encode([piece]) for piece in odd):
            specials = set(original.ids.values())
            original_ids, file_ids = (
                [i for i in ids if i in specials] for ids in (difference.original, difference.finished)
            )
            if original_ids == file_ids:
                return NOT_NORMALIZED if odd else SPACE_PREFIX
            if any(special in text for special in original.normalized_specials):
                return HIDDEN_TOKEN
    return None


def _same_but_for_a_space(text: str, original: _Original, finished: _Finished) -> bool:
    """Tell whether both agree on `text`, or the original takes the space at its start for the prefix."""
    text = "  " if text == " " else text  # a single space has no rest that would show the prefix
    ids = original.encode([text])
    return finished([text]) == ids or (text.startswith(" ") and finished([text[1:]]) == ids)


def _shortened(difference: Difference, original: _Original, finished: _Finished) -> Difference:
    """Drop characters from both ends of the text as long as the two tokenizers differ on the rest."""
    text = difference.text
    if difference.finished != finished([text])[0] or difference.original != original.encode([text])[0]:
        return difference  # the difference is in the tokens added around the text, or in a special token alone
    while len(text) > 1:
        shorter = [text[1:], text[:-1]]
        file_ids, original_ids = finished(shorter), original.encode(shorter)
        still_differing = [t for t, a, b in zip(shorter, original_ids, file_ids, strict=True) if a != b]
        if not still_differing:
            break
        text = still_differing[0]
    return Difference(text, original.encode([text])[0], finished([text])[0])
