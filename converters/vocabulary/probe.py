"""Proof that a finished GGUF file tokenizes as the original tokenizer does.

    report = compare(Path("Llama-3.2-1B"), config, Path("model.gguf.part"))
    report.n_texts, len(report.differences)     # (4609, 0)
    report.known                                # llama.cpp's own ways, which no converter can change

A few thousand texts (`probe_texts`) go through the original, by the library `tokenizers` or `sentencepiece`, and
through the file's vocabulary as llama.cpp loads it. Nothing else could tell that a name in ``tokenizer.ggml.pre`` cuts
texts as tokenizer.json does.
"""

from __future__ import annotations

import json
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
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

# What llama.cpp does its own way, whatever a converter writes.
SPACE_PREFIX = "llama.cpp puts a space before text that follows a special token or begins with a space"
HIDDEN_TOKEN = "llama.cpp finds added tokens anywhere, the original only where its normalizer leaves them"
NOT_NORMALIZED = "llama.cpp does not normalize Unicode"
NO_CASE = "llama.cpp cuts words otherwise at combining marks and at capitals outside ASCII"
NO_DIGITS = "llama.cpp does not part digits outside ASCII"


def _without_case(text: str) -> str:
    return "".join(c if c.isascii() else c.lower() for c in text if not unicodedata.category(c).startswith("M"))


def _without_digits(text: str) -> str:
    return "".join(c for c in text if c.isascii() or not c.isnumeric())


# Names whose regular expressions in llama.cpp only approximate the originals' (llm_tokenizer_bpe, llama-vocab.cpp), and
# what makes a text one that both cut alike.
_APPROXIMATE: dict[str, tuple[str, Callable[[str], str]]] = {
    "tekken": (NO_CASE, _without_case),
    "gpt-4o": (NO_CASE, _without_case),
    "deepseek-llm": (NO_DIGITS, _without_digits),
}

Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Difference:
    """A text that the two tokenize differently, with the ids of each; `why` is set where the cause is known."""

    text: str
    original: list[int]
    finished: list[int]
    why: str | None = None

    def __str__(self) -> str:
        return f"{self.text!r} is {self.original} in the original and {self.finished} in the GGUF file"


@dataclass(frozen=True)
class ProbeReport:
    """What the probe found: `differences` that speak against the file, `known` ones that llama.cpp always has.

    Both lists have the shortest texts first.
    """

    n_texts: int
    differences: list[Difference]
    known: list[Difference]

    def describe(self) -> str:
        """Return one line for people: what differs, shown by the shortest text, or that nothing does."""
        if self.differences:
            return f"{len(self.differences)} of {self.n_texts} probe texts differ, the shortest: {self.differences[0]}"
        also = ""
        if self.known:
            reasons = ", ".join(sorted({str(one.why) for one in self.known}))
            also = f"; {len(self.known)} differ as known ({reasons}), the shortest: {self.known[0]}"
        return f"{self.n_texts - len(self.known)} of {self.n_texts} probe texts have the same token ids{also}"

    def raise_for_differences(self) -> None:
        """Raise `VocabularyError` if there are differences."""
        if self.differences:
            raise VocabularyError(
                f"{self.describe()}. A model fed with other ids than it was trained on gets worse: report the "
                "tokenizer, or convert all the same with --allow-token-mismatch"
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
    the vocabulary. tokenizer.json is the original where there is one, since transformers uses it; else tokenizer.model,
    in which no special token is ever found in a text, so that those are only tried alone. Takes two seconds for 128k
    tokens; once `stop` is set it ends with ``CancelledError``. Raises `ModelLoadError` if llama.cpp refuses the file,
    `VocabularyError` if the original cannot be loaded.
    """
    files = open_files(folder, config)
    with ThreadPoolExecutor(1) as pool:  # llama.cpp loads while Python reads: ctypes lets go of the interpreter
        loading = pool.submit(NativeModel, gguf_path, vocab_only=True)
        try:
            original = _Original(files)
        finally:
            model = loading.result()
    with model:
        finished = _finished(model, stop or threading.Event())
        corpus = [*texts(), *_tokens(model)] if plain is None else [*plain]
        if original.parses_specials:
            corpus += special_texts(original.specials)
        theirs = original.encode(corpus)
        ours = finished(corpus, special=original.parses_specials)
        if not original.parses_specials:
            corpus += original.specials
            theirs += [[original.ids[text]] for text in original.specials]
            ours += finished(original.specials)
        found = [Difference(t, a, b) for t, a, b in zip(corpus, theirs, ours, strict=True) if a != b]
        if original.adds is not None:
            found += _ends(original.adds, model)
        found.sort(key=lambda one: (len(one.text), one.text))
        pre = model.metadata.get("tokenizer.ggml.pre", "")
        named = [replace(one, why=_why(one, original, finished, pre)) for one in found]
        differences = [one for one in named if one.why is None]
        if differences:
            differences[0] = _shortened(differences[0], original, finished)
        return ProbeReport(len(corpus), differences, [one for one in named if one.why is not None])


class _Original:
    """The tokenizer of the checkpoint: `encode` never adds special tokens."""

    def __init__(self, files: TokenizerFiles) -> None:
        n_tokens = files.n_tokens or MAX_TOKENS
        added = [token for token in files.added_tokens.values() if token.id < n_tokens]
        self.ids = {token.content: token.id for token in added}
        self.adds: tuple[str, list[int]] | None = None
        self._normalize: Callable[[str], str] | None = None
        self.spaces = True  # a SentencePiece vocabulary, with ▁ for a space
        self.parses_specials = files.tokenizer_json is not None
        if files.tokenizer_json is not None:
            self._use_tokenizers(files.tokenizer_json, files)
        elif files.sentencepiece_model is not None:
            self._use_sentencepiece(files.sentencepiece_model, files, n_tokens)
        else:
            raise FileNotFoundError(f"{files.folder} has neither tokenizer.json nor tokenizer.model")
        self.specials = list(self.ids)
        self.normalized_specials = [token.content for token in added if token.normalized and token.content in self.ids]
        longest_first = sorted(self.specials, key=len, reverse=True)
        self.finder = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

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
        except BaseException as error:  # a bare Exception whatever is wrong, or a panic of the Rust code, which is none
            raise VocabularyError(
                f"{path} cannot be loaded by the installed tokenizers {tokenizers.__version__}: {error}. Upgrade it "
                "(pip install -U tokenizers), or save the tokenizer again"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.ids = {text: i for text, i in self.ids.items() if tokenizer.token_to_id(text) == i}
        config = files.tokenizer_config or {}
        # Some versions of transformers let tokenizer_config.json change what the post-processor adds, some do not.
        said = any(isinstance(config.get(name), bool) for name in ("add_bos_token", "add_eos_token"))
        if not said and "TemplateProcessing" in json.dumps(source.get("post_processor")):
            self.adds = ("a", tokenizer.encode("a").ids)
        normalizer = tokenizer.normalizer
        if normalizer is not None and not self.spaces:
            self._normalize = normalizer.normalize_str
        self.encode: Encode = lambda some: [
            encoding.ids for encoding in tokenizer.encode_batch(list(some), add_special_tokens=False)
        ]

    def _use_sentencepiece(self, path: Path, files: TokenizerFiles, n_tokens: int) -> None:
        model = sentencepiece.load_model(path)
        self.ids |= {text: i for text, i in files.added_tokens_json.items() if i < n_tokens}
        self.ids = {text: i for text, i in self.ids.items() if "▁" not in text}  # would be found as a space
        self.encode = lambda some: model.encode(list(some))
        self._normalize = lambda text: str(model.normalize(text)).replace("▁", " ").removeprefix(" ")

    def normalized(self, text: str) -> str:
        """Return what the normalizer makes of `text`, apart from the spelling of spaces."""
        return text if self._normalize is None else self._normalize(text)


def _tokens(model: NativeModel) -> list[str]:
    """Return the texts of a thousand tokens spread over the vocabulary, those that are no whole characters left out."""
    pieces = (model.token_to_piece(i) for i in range(0, model.n_vocab, max(1, model.n_vocab // 1000)))
    decoded = (piece.decode("utf-8", "replace") for piece in pieces)
    return [text for text in dict.fromkeys(decoded) if text and "\ufffd" not in text]


class _Finished(Protocol):
    """The file's vocabulary in llama.cpp; never adds special tokens, finds them in the text if `special`."""

    def __call__(self, some: Sequence[str], *, special: bool = True) -> list[list[int]]: ...


def _finished(model: NativeModel, stop: threading.Event) -> _Finished:
    """Return the tokenizer of `model`, on all cores: some of llama.cpp's regular expressions take a millisecond."""
    n_threads = os.cpu_count() or 1

    def encode(some: Sequence[str], *, special: bool = True) -> list[list[int]]:
        def one(text: str) -> list[int]:
            if stop.is_set():
                raise CancelledError
            ids: list[int] = model.tokenize(text, add_special=False, parse_special=special).tolist()
            return ids

        if len(some) < 100:
            return [one(text) for text in some]
        with ThreadPoolExecutor(n_threads) as pool:
            parts = pool.map(lambda k: [one(text) for text in some[k::n_threads]], range(n_threads))
        out: list[list[int]] = [[]] * len(some)
        for k, part in enumerate(parts):
            out[k::n_threads] = part
        return out

    return encode


def _without_prefix(source: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json that puts no space before a text, as transformers makes it for add_prefix_space=false."""

    def strip(node: Any) -> Any:
        if isinstance(node, list):
            return [strip(one) for one in node if not (isinstance(one, dict) and one.get("type") == "Prepend")]
        if not isinstance(node, dict):
            return node
        changed = {key: strip(value) for key, value in node.items()}
        return changed | {"prepend_scheme": "never"} if node.get("type") == "Metaspace" else changed

    parts = {name: strip(source.get(name)) for name in ("normalizer", "pre_tokenizer")}
    if isinstance(parts["normalizer"], dict) and parts["normalizer"].get("type") == "Prepend":
        parts["normalizer"] = None
    return source | parts


def _ends(adds: tuple[str, list[int]], model: NativeModel) -> list[Difference]:
    """Compare what is put around a text: BOS and EOS."""
    text, ids = adds
    ours = model.tokenize(text, add_special=True, parse_special=True).tolist()
    return [] if ours == ids else [Difference(text, ids, ours)]


def _why(one: Difference, original: _Original, finished: _Finished, pre: str) -> str | None:
    """Name the known cause of a difference, where it is proved by the same text without that cause."""
    normal = original.normalized(one.text)
    if normal != one.text and finished([normal]) == [one.original]:
        return NOT_NORMALIZED
    if pre in _APPROXIMATE:
        reason, simplify = _APPROXIMATE[pre]
        plain = simplify(one.text)
        if plain != one.text and original.encode([plain]) == finished([plain]):
            return reason
    if original.spaces:
        # With the special tokens out of the way, every piece of the text has to be the same in both.
        pieces = [piece for piece in original.finder.split(one.text) if piece]
        if all(_same_but_for_a_space(piece, original, finished) for piece in pieces):
            specials = set(original.ids.values())
            theirs, ours = ([i for i in ids if i in specials] for ids in (one.original, one.finished))
            if theirs == ours:
                return SPACE_PREFIX
            if any(text in one.text for text in original.normalized_specials):
                return HIDDEN_TOKEN
    return None


def _same_but_for_a_space(text: str, original: _Original, finished: _Finished) -> bool:
    """Tell whether both agree on `text`, or the original takes the space that it begins with for the prefix."""
    text = "  " if text == " " else text  # a space alone has no rest that would show the prefix
    ids = original.encode([text])
    return finished([text]) == ids or (text.startswith(" ") and finished([text[1:]]) == ids)


def _shortened(one: Difference, original: _Original, finished: _Finished) -> Difference:
    """Drop characters from both ends of a text for as long as the two still differ."""
    if one.finished != finished([one.text])[0] or one.original != original.encode([one.text])[0]:
        return one  # it differs in what is put around it, or in a special token alone
    text = one.text
    while len(text) > 1:
        shorter = [text[1:], text[:-1]]
        ours, theirs = finished(shorter), original.encode(shorter)
        left = [t for t, a, b in zip(shorter, theirs, ours, strict=True) if a != b]
        if not left:
            break
        text = left[0]
    return Difference(text, original.encode([text])[0], finished([text])[0])
