"""The probe: the same texts give the same ids in the original and in the finished file, or differences are reported."""

from __future__ import annotations

import dataclasses
import json
import threading
import unicodedata
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import families
import gguf
import pytest
import tokenizer_toys as toys
import vocabulary_cases as cases
from sentencepiece import SentencePieceProcessor

from llamalite.converters.vocabulary import Vocabulary, probe, probe_texts, read_vocabulary
from llamalite.converters.vocabulary.tokens import TokenType
from llamalite.errors import VocabularyError
from llamalite.native.model import NativeModel

UPPER, LOWER = families.UPPER, families.LOWER
DEEPSEEK_V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)

# The steps as the families' own tokenizer.json files spell them.
PRE_TOKENIZERS: dict[str, tuple[dict[str, Any], bool]] = {
    "llama-bpe": (toys.LLAMA3, True),
    "smaug-bpe": (toys.sequence(toys.split(toys.LLAMA3_REGEX, "Removed", invert=True), toys.BYTES), False),
    "gpt-2": (toys.GPT2, False),
    "smollm": (toys.SMOLLM, False),
    "qwen2": (toys.sequence(toys.split(toys.QWEN2_REGEX), toys.BYTES), False),
    "tekken": (families.TEKKEN, False),
    "gpt-4o": (
        toys.sequence(
            toys.split(
                families.TEKKEN_REGEX.replace(f"{LOWER}+|", f"{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|")
                .replace(f"{LOWER}*|", f"{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|")
                .replace(r"\p{N}| ", r"\p{N}{1,3}| ")
            ),
            toys.BYTES,
        ),
        False,
    ),
    "deepseek-coder": (families.DEEPSEEK_CODER, False),
    "deepseek-llm": (families.DEEPSEEK_LLM, False),
    "deepseek-v3": (
        toys.sequence(toys.split(r"\p{N}{1,3}"), toys.split("[一-龥぀-ゟ゠-ヿ]+"), toys.split(DEEPSEEK_V3), toys.BYTES),
        False,
    ),
    "seed-coder": (
        toys.sequence(
            toys.split(
                "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}"
                "| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
            ),
            toys.BYTES,
        ),
        False,
    ),
    "bailingmoe": (
        toys.sequence(
            toys.split(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
            ),
            toys.BYTES,
        ),
        False,
    ),
    "minicpm5": (
        toys.sequence(
            toys.split(r"\p{N}{1,3}"), toys.split(toys.LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}+")), toys.BYTES
        ),
        True,
    ),
    "qwen35": (
        toys.sequence(
            toys.split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
                r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            toys.BYTES,
        ),
        False,
    ),
}

APPROXIMATE = {"tekken": {probe.NO_CASE}, "gpt-4o": {probe.NO_CASE}, "deepseek-llm": {probe.NO_DIGITS}}


def write_vocab(vocabulary: Vocabulary, path: Path) -> Path:
    """Write a GGUF file that holds a vocabulary and nothing else."""
    writer = gguf.GGUFWriter(path, "llama")
    vocabulary.write_keys(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def proved(folder: Path, config: dict[str, Any], **changes: Any) -> probe.ProbeReport:
    """Convert the vocabulary in `folder` with `changes` and compare it with its original, on a third of the texts."""
    vocabulary = dataclasses.replace(read_vocabulary(folder, config), **changes)
    return probe.compare(folder, config, write_vocab(vocabulary, folder / "vocab.gguf"), probe_texts.texts()[::3])


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_each_pre_tokenizer_gets_the_name_under_which_llama_cpp_cuts_the_same_way(name: str, tmp_path: Path) -> None:
    steps, ignore_merges = PRE_TOKENIZERS[name]
    config = toys.write_byte_level(tmp_path, steps, ignore_merges=ignore_merges)
    vocabulary = read_vocabulary(tmp_path, config)
    assert vocabulary.pre == name
    # Most names are a std::regex in llama.cpp, which takes up to two milliseconds a text.
    sample = probe_texts.texts()[::15]
    report = probe.compare(tmp_path, config, write_vocab(vocabulary, tmp_path / "v.gguf"), sample)
    assert [str(difference) for difference in report.differences] == []
    assert report.n_texts > len(sample) > 250
    assert {difference.reason for difference in report.known} <= APPROXIMATE.get(name, set())


def test_a_wrong_name_is_caught_and_shown_by_the_shortest_text(tmp_path: Path) -> None:
    config = toys.write_byte_level(tmp_path, toys.SMOLLM)
    report = proved(tmp_path, config, pre="gpt-2")  # gpt-2 does not cut digits apart
    assert report.differences
    shortest = report.differences[0]
    assert len(shortest.text) <= 3
    assert any(character.isnumeric() for character in shortest.text)
    assert shortest.original != shortest.finished
    with pytest.raises(VocabularyError) as caught:
        report.raise_for_differences()
    assert f"{shortest.text!r} is {shortest.original} in the original and {shortest.finished} in the GGUF" in str(
        caught.value
    )
    assert "--allow-token-mismatch" in str(caught.value)


@pytest.mark.parametrize("wrong", ["smaug-bpe", "qwen2", "default"])
def test_every_other_name_for_llama_3_is_caught(wrong: str, tmp_path: Path) -> None:
    tokenizer = toys.byte_level_json(toys.LLAMA3, ignore_merges=True)
    n = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] |= {"333": n, "Hello": n + 1}  # whole words that no merge makes
    tokenizer["added_tokens"] = [entry | {"id": entry["id"] + 2} for entry in tokenizer["added_tokens"]]
    tokenizer["post_processor"] = None
    config = toys.write_tokenizer(tmp_path, tokenizer)
    assert proved(tmp_path, config).differences == []
    assert proved(tmp_path, config, pre=wrong).differences


def test_scores_without_the_order_of_the_merges_are_caught(tmp_path: Path) -> None:
    """llama.cpp's own converter gives every token of such a file the score -1000."""
    config = cases.fast_only(tmp_path)
    n = read_vocabulary(tmp_path, config).n_tokens
    assert proved(tmp_path, config).differences == []
    assert len(proved(tmp_path, config, scores=[-1000.0] * n).differences) > 20


def test_a_missing_special_token_is_caught(tmp_path: Path) -> None:
    config = toys.write_byte_level(tmp_path, toys.LLAMA3, ignore_merges=True)
    vocabulary = read_vocabulary(tmp_path, config)
    types = [1 if text == b"<|eot_id|>" else kind for text, kind in zip(vocabulary.tokens, vocabulary.token_types, strict=True)]  # fmt: skip  # noqa: E501
    tokens = [b"<|other|>" if text == b"<|eot_id|>" else text for text in vocabulary.tokens]
    report = proved(tmp_path, config, tokens=tokens, token_types=types)
    assert report.differences
    assert all("<|eot_id|>" in difference.text for difference in report.differences[1:])


def test_an_extra_bos_is_caught(tmp_path: Path) -> None:
    config = toys.write_byte_level(tmp_path, toys.LLAMA3, ignore_merges=True, bos="<|begin_of_text|>")
    vocabulary = read_vocabulary(tmp_path, config)
    vocabulary.special.add["bos"] = False
    report = probe.compare(tmp_path, config, write_vocab(vocabulary, tmp_path / "v.gguf"), plain=["a"])
    bos = config["vocab_size"] - 3
    assert [(difference.original[0], difference.finished[0] == bos) for difference in report.differences] == [
        (bos, False)
    ]


@pytest.mark.parametrize("name", ["llama2", "llama1", "both", "llama3", "smollm", "templates"])
def test_every_kind_of_vocabulary_passes_the_probe(name: str, tmp_path: Path) -> None:
    report = proved(tmp_path, cases.CASES[name](tmp_path))
    assert (report.differences, report.known) == ([], [])
    assert report.describe() == f"{report.n_texts} of {report.n_texts} probe texts have the same token ids"


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    ("text", "special"),
    [("<pad>", True), ("<|im_end|>", True), ("<tool_call>", False), ("the", False), ("\n\n", False)],
)
def test_added_tokens_beside_a_tokenizer_model_pass_the_probe(
    tmp_path: Path, listed: bool, text: str, special: bool
) -> None:
    """As fine-tunes of LLaMA 2, TinyLlama and Mistral have them: in added_tokens.json, or in tokenizer_config.json."""
    n = len(toys.sentencepiece_pieces())
    config = toys.write_sentencepiece(tmp_path, vocab_size=n + 1)
    toys.write_json(tmp_path / "added_tokens.json", {text: n} if listed else {})
    decoder = {} if listed else {"added_tokens_decoder": {str(n): {"content": text, "special": special}}}
    named = {"additional_special_tokens": [text]} if special else {}
    toys.write_json(tmp_path / "tokenizer_config.json", decoder | named)
    assert proved(tmp_path, config).differences == []
    read = read_vocabulary(tmp_path, config)
    assert read.tokens[n] == text.encode()
    assert (read.token_types[n] == TokenType.CONTROL) == special


@pytest.mark.parity
def test_added_tokens_beside_a_tokenizer_model_are_found_as_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    n = len(toys.sentencepiece_pieces())
    config = toys.write_sentencepiece(tmp_path, vocab_size=n + 2)
    toys.write_json(tmp_path / "added_tokens.json", {"<pad>": n, "<tool>": n + 1})
    toys.write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "pad_token": "<pad>"})
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    path = write_vocab(read_vocabulary(tmp_path, config), tmp_path / "v.gguf")
    with NativeModel(path, vocab_only=True) as model:
        for text in ("once<tool>", "<tool>", "<pad>", "a<pad><tool>", "once upon a time"):
            ids = model.tokenize(text, add_special=False, parse_special=True).tolist()
            assert ids == tokenizer.encode(text, add_special_tokens=False), text


def test_a_space_after_a_special_token_is_a_known_difference(tmp_path: Path) -> None:
    """As Mistral's tokenizer.json has it: the space comes before the first word of a text only."""
    tokenizer = toys.byte_fallback_json()
    tokenizer["normalizer"] = None
    tokenizer["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    config = toys.write_tokenizer(tmp_path, tokenizer)
    report = proved(tmp_path, config)
    assert [str(difference) for difference in report.differences] == []
    assert {difference.reason for difference in report.known} == {probe.SPACE_PREFIX}
    assert probe.SPACE_PREFIX in report.describe()
    report.raise_for_differences()


def test_text_that_llama_cpp_does_not_normalize_is_a_known_difference(tmp_path: Path) -> None:
    tokenizer = toys.byte_level_json(toys.LLAMA3, ignore_merges=True)
    tokenizer["normalizer"] = {"type": "NFC"}
    report = proved(tmp_path, toys.write_tokenizer(tmp_path, tokenizer))
    assert [str(difference) for difference in report.differences] == []
    assert {difference.reason for difference in report.known} == {probe.NOT_NORMALIZED}


def test_a_normalizer_that_changes_words_is_a_difference(tmp_path: Path) -> None:
    tokenizer = toys.byte_level_json(toys.LLAMA3, ignore_merges=True)
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": ""}
    report = proved(tmp_path, toys.write_tokenizer(tmp_path, tokenizer))
    assert report.differences or report.known


def test_a_tokenizer_that_the_library_cannot_load_is_named(tmp_path: Path) -> None:
    config = toys.write_byte_level(tmp_path, toys.LLAMA3, ignore_merges=True)
    finished = write_vocab(read_vocabulary(tmp_path, config), tmp_path / "v.gguf")
    toys.write_json(tmp_path / "tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}})
    with pytest.raises(VocabularyError, match=r"tokenizer\.json cannot be loaded by the installed tokenizers \d"):
        probe.compare(tmp_path, config, finished)


def test_an_unknown_pre_tokenizer_is_shown(tmp_path: Path) -> None:
    config = toys.write_byte_level(tmp_path, toys.sequence(toys.split(r"\w+"), toys.BYTES))
    with pytest.raises(
        VocabularyError, match=r"cuts texts by '\\\\w\+' then .* which llama.cpp has no name for"
    ) as caught:
        read_vocabulary(tmp_path, config)
    assert "llama-bpe" in str(caught.value)


def test_whole_words_that_llama_cpp_would_not_take_are_caught(tmp_path: Path) -> None:
    """llama.cpp has no name for GPT-2's cuts with ignore_merges: it matters only for a word that no merge makes."""
    tokenizer = toys.byte_level_json(toys.GPT2, ignore_merges=True, specials=(), bos=None)
    config = toys.write_tokenizer(tmp_path, tokenizer)
    vocabulary = read_vocabulary(tmp_path, config)
    assert vocabulary.pre == "gpt-2"
    assert probe.compare(tmp_path, config, write_vocab(vocabulary, tmp_path / "v.gguf")).differences == []
    tokenizer["model"]["vocab"]["Xylophone"] = len(tokenizer["model"]["vocab"])
    config = toys.write_tokenizer(tmp_path, tokenizer)
    finished = write_vocab(read_vocabulary(tmp_path, config), tmp_path / "v.gguf")
    report = probe.compare(tmp_path, config, finished)
    assert [difference.text for difference in report.differences] == ["Xylophone"]


def test_a_cancelled_conversion_does_not_wait_for_the_rest_of_the_texts(tmp_path: Path) -> None:
    config = toys.write_byte_level(tmp_path, toys.SMOLLM)
    finished = write_vocab(read_vocabulary(tmp_path, config), tmp_path / "v.gguf")
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        probe.compare(tmp_path, config, finished, stop=stop)


def test_the_corpus_is_the_same_everywhere_and_has_every_kind_of_text() -> None:
    corpus = probe_texts.texts()
    assert len(corpus) == len(set(corpus)) > 4000
    assert sum(map(len, corpus)) / len(corpus) < 20
    categories = {unicodedata.category(character) for text in corpus for character in text}
    assert {"Lu", "Ll", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl", "No", "Pd", "Sc", "So", "Zs", "Cc", "Cf"} <= categories


@pytest.mark.reference
@pytest.mark.parametrize(("name", "n_tokens"), [("stories260k", 512), ("llama2", 32000), ("llama3", 128256)])
def test_the_real_vocabularies_pass_the_probe(name: str, n_tokens: int, shared: Path, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(shared / name, {"vocab_size": n_tokens})
    report = probe.compare(shared / name, {"vocab_size": n_tokens}, write_vocab(vocabulary, tmp_path / "v.gguf"))
    assert ([str(difference) for difference in report.differences], report.known) == ([], [])


# Rows of the embedding, special tokens, whether those come first, and the steps, as the families publish them.
REAL_SIZES: dict[str, tuple[int, int, bool, dict[str, Any]]] = {
    "smollm": (49152, 17, True, toys.SMOLLM),
    "deepseek-llm": (102400, 15, False, families.DEEPSEEK_LLM),
    "deepseek-coder": (32256, 22, False, families.DEEPSEEK_CODER),
    "tekken": (131072, 1000, True, families.TEKKEN),
}


@pytest.mark.reference
@pytest.mark.parametrize("name", REAL_SIZES)
def test_vocabularies_of_real_sizes_pass_the_probe(name: str, shared: Path, tmp_path: Path) -> None:
    """Llama 3's tokens and merges that the family's steps leave whole, as many as the family has."""
    n_rows, n_special, first, steps = REAL_SIZES[name]
    tokenizer = json.loads((shared / "llama3" / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    cut, byte_of = toys.cutter(steps), {letter: i for i, letter in enumerate(toys.byte_alphabet())}

    def is_whole(token: str) -> bool:
        text = bytes(byte_of[letter] for letter in token).decode("utf-8", "replace")
        return len(token) == 1 or "\ufffd" in text or len(cut(text)) == 1

    texts = [token for token in sorted(model["vocab"], key=model["vocab"].__getitem__) if is_whole(token)]
    texts = texts[: n_rows - n_special]
    n_base, shift = len(texts), n_special if first else 0
    kept = {text: i + shift for i, text in enumerate(texts)}
    pairs = (merge.split(" ") for merge in model["merges"])
    merges = [[a, b] for a, b in pairs if a in kept and b in kept and a + b in kept]
    start = 0 if first else n_base
    tokenizer |= {
        "added_tokens": [toys.added(start + i, f"<|special_{i}|>") for i in range(n_special)],
        "pre_tokenizer": steps, "post_processor": None,
        "model": model | {"vocab": kept, "merges": merges, "ignore_merges": name == "tekken"},
    }  # fmt: skip
    # Llama 3 has words that no merge makes; Mistral's vocabulary has none, and llama.cpp takes words whole anyway.
    config = toys.write_tokenizer(tmp_path, tokenizer, config={"vocab_size": n_rows})
    vocabulary = read_vocabulary(tmp_path, config)
    assert (vocabulary.pre, vocabulary.n_tokens) == (name, n_rows)
    sample = probe_texts.texts()[::5]
    report = probe.compare(tmp_path, config, write_vocab(vocabulary, tmp_path / "v.gguf"), sample)
    assert [str(difference) for difference in report.differences] == []
    assert {difference.reason for difference in report.known} <= APPROXIMATE.get(name, set())


@pytest.mark.reference
def test_real_pieces_without_a_dummy_prefix_pass_the_probe(shared: Path, tmp_path: Path) -> None:
    """As in Yi, whose texts get neither BOS nor a space, with Llama 2's pieces."""
    real = SentencePieceProcessor(model_file=str(shared / "llama2" / "tokenizer.model"))
    kinds = [(real.is_unknown, 2), (real.is_control, 3), (real.is_byte, 6)]
    pieces = [
        (real.id_to_piece(i), real.get_score(i), next((kind for is_kind, kind in kinds if is_kind(i)), 1))
        for i in range(real.vocab_size())
    ]
    (tmp_path / "tokenizer.model").write_bytes(toys.sentencepiece_model(pieces, add_dummy_prefix=False))
    config = toys.write_config(tmp_path, 64000)
    toys.write_json(tmp_path / "tokenizer_config.json", {"add_bos_token": False, "tokenizer_class": "LlamaTokenizer"})
    vocabulary = read_vocabulary(tmp_path, config)
    report = probe.compare(tmp_path, config, write_vocab(vocabulary, tmp_path / "v.gguf"))
    assert vocabulary.add_space_prefix is False
    assert [str(difference) for difference in report.differences] == []
