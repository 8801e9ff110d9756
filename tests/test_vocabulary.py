"""A checkpoint's vocabulary becomes the keys that llama.cpp's converter writes, or one clear error."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizer_toys as toys
import vocabulary_cases as cases
from sentencepiece import SentencePieceProcessor

from llamalite.converters.vocabulary import Vocabulary, probe, read_vocabulary
from llamalite.errors import CheckpointError, VocabularyError
from llamalite.native.model import NativeModel

RECORDED: dict[str, list[list[Any]]] = json.loads(cases.KEYS.read_text(encoding="utf-8"))
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6


def write_vocab(vocabulary: Vocabulary, path: Path) -> Path:
    """Write a GGUF file that holds a vocabulary and nothing else."""
    writer = gguf.GGUFWriter(path, "llama")
    vocabulary.write_keys(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# ── the same keys as llama.cpp's converter ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [name for name in cases.CASES if name != "fast_only"])
def test_keys_are_those_of_llama_cpps_converter(name: str, tmp_path: Path) -> None:
    config = cases.CASES[name](tmp_path / "checkpoint")
    vocabulary = read_vocabulary(tmp_path / "checkpoint", config)
    assert cases.keys_of(write_vocab(vocabulary, tmp_path / "v.gguf")) == RECORDED[name]


def test_a_lone_tokenizer_json_with_byte_fallback_differs_in_its_scores_only(tmp_path: Path) -> None:
    config = cases.fast_only(tmp_path / "checkpoint")
    vocabulary = read_vocabulary(tmp_path / "checkpoint", config)
    keys = cases.keys_of(write_vocab(vocabulary, tmp_path / "v.gguf"))
    assert [key for key in keys if key not in RECORDED["fast_only"]] == [key for key in keys if "scores" in key[0]]
    assert [key[0] for key in keys] == [key[0] for key in RECORDED["fast_only"]]


@pytest.mark.parametrize("template", [3, ["a"], [{"name": "default"}], "half \ud83d"])
def test_an_invalid_chat_template_is_named(template: Any, tmp_path: Path) -> None:
    config = toys.write_sentencepiece(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    with pytest.raises(VocabularyError, match=r"tokenizer_config\.json: 'chat_template' is neither a text nor a list"):
        read_vocabulary(tmp_path, config)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["llama3", "deepseek", "smollm", "fast_only"])
def test_transformers_sees_the_same_added_tokens(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = cases.CASES[name](tmp_path)
    vocabulary = read_vocabulary(tmp_path, config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, token_id in tokenizer.get_added_vocab().items():
        spelled = tokenizer.decode([token_id]) if vocabulary.kind == "gpt2" else text
        assert vocabulary.tokens[token_id].decode() in (text, spelled)
        is_special = tokenizer.added_tokens_decoder[token_id].special or text.startswith("<｜")
        assert (vocabulary.token_types[token_id] == CONTROL) == is_special


# ── SentencePiece ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_pieces_keep_their_ids_scores_and_types(tmp_path: Path) -> None:
    config = toys.write_sentencepiece(tmp_path)
    vocabulary = read_vocabulary(tmp_path, config)
    pieces = toys.sentencepiece_pieces()
    assert (vocabulary.kind, vocabulary.pre, vocabulary.n_tokens) == ("llama", "default", len(pieces))
    assert [token.decode() for token in vocabulary.tokens] == [text for text, _, _ in pieces]
    assert vocabulary.scores == [score for _, score, _ in pieces]
    assert vocabulary.token_types == [kind for _, _, kind in pieces]


def test_rows_beyond_the_tokenizer_become_unused_padding(tmp_path: Path) -> None:
    n = len(toys.sentencepiece_pieces())
    vocabulary = read_vocabulary(tmp_path, toys.write_sentencepiece(tmp_path, vocab_size=n + 2))
    assert vocabulary.tokens[n:] == [b"[PAD%d]" % n, b"[PAD%d]" % (n + 1)]
    assert vocabulary.token_types[n:] == [UNUSED, UNUSED]
    level = read_vocabulary(tmp_path / "bpe", toys.write_byte_level(tmp_path / "bpe", toys.LLAMA3, ignore_merges=True,
                                                                    config={"vocab_size": 700}))  # fmt: skip
    assert (level.n_tokens, level.tokens[699], level.token_types[699]) == (700, b"[PAD699]", UNUSED)


def test_pieces_beyond_the_embedding_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    n = len(toys.sentencepiece_pieces())
    toys.write_json(tmp_path / "added_tokens.json", {"<far>": n + 9})
    with caplog.at_level(logging.WARNING, "llamalite"):
        vocabulary = read_vocabulary(tmp_path, toys.write_sentencepiece(tmp_path, vocab_size=n - 1))
    assert vocabulary.n_tokens == n - 1
    assert any(f"token {n + 9} ('<far>')" in message for message in caplog.messages)


def test_a_token_that_only_tokenizer_json_adds_gets_its_padding_row(tmp_path: Path) -> None:
    n = len(toys.sentencepiece_pieces())
    toys.write_tokenizer(tmp_path, toys.byte_fallback_json(added_tokens=[toys.added(n, "<|tool|>")]))
    vocabulary = read_vocabulary(tmp_path, toys.write_sentencepiece(tmp_path, vocab_size=n + 1))
    assert (vocabulary.tokens[n], vocabulary.token_types[n]) == (b"<|tool|>", CONTROL)


def test_a_model_without_dummy_prefix_gets_no_space_before_a_text(tmp_path: Path) -> None:
    config = toys.write_sentencepiece(tmp_path, add_dummy_prefix=False)
    vocabulary = read_vocabulary(tmp_path, config)
    assert vocabulary.add_space_prefix is False
    with NativeModel(write_vocab(vocabulary, tmp_path / "v.gguf"), vocab_only=True) as model:
        first = model.tokenize("time", add_special=False, parse_special=False)[0]
        assert not vocabulary.tokens[first].startswith("▁".encode())
    toys.write_json(tmp_path / "tokenizer_config.json", {"add_prefix_space": True})  # what a file says comes first
    assert read_vocabulary(tmp_path, config).add_space_prefix is True


def test_a_file_that_is_not_a_sentencepiece_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x80 not a model")
    with pytest.raises(VocabularyError, match=r"tokenizer\.model is not a SentencePiece model"):
        read_vocabulary(tmp_path, {"vocab_size": 10})


def test_missing_byte_tokens_are_an_error_not_an_abort(tmp_path: Path) -> None:
    pieces = [piece for piece in toys.sentencepiece_pieces() if piece[2] != BYTE]
    (tmp_path / "tokenizer.model").write_bytes(toys.sentencepiece_model(pieces, byte_fallback=False))
    with pytest.raises(VocabularyError, match=r"byte tokens are missing, the first is <0x00>"):
        read_vocabulary(tmp_path, {})


# ── byte-level BPE ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_merges_given_as_pairs_or_as_texts_are_the_same(tmp_path: Path) -> None:
    merges = []
    for as_pairs in (False, True):
        folder = tmp_path / str(as_pairs)
        config = toys.write_byte_level(folder, toys.LLAMA3, ignore_merges=True, merges_as_pairs=as_pairs)
        merges.append(read_vocabulary(folder, config).merges)
    assert merges[0] == merges[1]
    assert len(merges[0]) > 300


def test_a_space_inside_a_merge_is_spelled_in_the_byte_alphabet(tmp_path: Path) -> None:
    tokenizer = toys.byte_level_json(toys.LLAMA3, ignore_merges=True)
    tokenizer["model"]["merges"] = [["a b", "c"]]
    config = toys.write_tokenizer(tmp_path, tokenizer)
    assert read_vocabulary(tmp_path, config).merges == ["aĠb c"]


def test_a_padded_vocabulary_with_byte_fallback_loads(tmp_path: Path) -> None:
    n = len(toys.sentencepiece_pieces())
    config = toys.write_tokenizer(tmp_path, toys.byte_fallback_json(), config={"vocab_size": n + 3})
    vocabulary = read_vocabulary(tmp_path, config)
    assert vocabulary.tokens[n:] == [b"[PAD%d]" % (n + i) for i in range(3)]
    with NativeModel(write_vocab(vocabulary, tmp_path / "v.gguf"), vocab_only=True) as model:
        assert model.n_vocab == n + 3


def test_an_underline_in_an_added_token_of_byte_level_bpe_stays(tmp_path: Path) -> None:
    tokenizer = toys.byte_level_json(toys.LLAMA3, ignore_merges=True)
    n = len(tokenizer["model"]["vocab"]) + 3
    tokenizer["added_tokens"].append(toys.added(n, "▁x", special=False))
    config = toys.write_tokenizer(tmp_path, tokenizer)
    assert read_vocabulary(tmp_path, config).tokens[n].decode() == "▁x"


def test_flags_of_tokenizer_config_win_and_named_tokens_are_special(tmp_path: Path) -> None:
    tokenizer = toys.byte_level_json(toys.LLAMA3, ignore_merges=True, bos=None)
    n = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append(toys.added(n + 3, "<call>", special=False))
    config = toys.write_tokenizer(tmp_path, tokenizer)
    named = {"eos_token": "he", "added_tokens_decoder": {str(n + 3): toys.added(n + 3, "<call>")}}
    toys.write_json(tmp_path / "tokenizer_config.json", named)
    vocabulary = read_vocabulary(tmp_path, config)
    assert vocabulary.token_types[n + 3] == CONTROL
    assert vocabulary.token_types[tokenizer["model"]["vocab"]["he"]] == CONTROL


# ── special tokens and templates ────────────────────────────────────────────────────────────────────────────────────


def _llama3(tmp_path: Path, config: dict[str, Any], tokenizer_config: dict[str, Any] | None = None, **options: Any) -> Vocabulary:  # fmt: skip  # noqa: E501
    toys.write_byte_level(tmp_path, toys.LLAMA3, ignore_merges=True, **options)
    (tmp_path / "tokenizer_config.json").unlink()
    if tokenizer_config is not None:
        toys.write_json(tmp_path / "tokenizer_config.json", tokenizer_config)
    return read_vocabulary(tmp_path, config)


def test_end_tokens_in_a_list_fill_eos_eot_and_eom(tmp_path: Path) -> None:
    n = 656
    specials = ("<|begin_of_text|>", "<|over|>", "<|done|>", "<|eot_id|>")
    config = {"vocab_size": n + 4, "eos_token_id": [n + 1, n + 3, n + 2], "pad_token_id": -1}
    vocabulary = _llama3(tmp_path, config, specials=specials)
    # <|eot_id|> is known to llama.cpp by its text, <|done|> would never stop a generation.
    assert vocabulary.special.ids == {"eos": n + 1, "eot": n + 2}
    with NativeModel(write_vocab(vocabulary, tmp_path / "v.gguf"), vocab_only=True) as model:
        assert [token for token in range(n, n + 4) if model.is_eog(token)] == [n + 1, n + 2, n + 3]


def test_ids_that_no_token_has_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 99999, "unk_token_id": -1}
    assert _llama3(tmp_path, config).special.ids == {"bos": 1, "eos": 2}
    assert "pad token 99999 is outside the vocabulary of 659 tokens: left out" in caplog.messages


def test_a_vocabulary_of_49152_keeps_the_bos_that_its_tokenizer_adds(tmp_path: Path) -> None:
    """llama.cpp's converter removes BOS from every vocabulary of this size."""
    config = {"vocab_size": 49152}
    assert _llama3(tmp_path / "a", config).special.add["bos"] is True
    without = _llama3(tmp_path / "b", config, bos=None)
    assert {**without.special.add, **without.last.add}["bos"] is False


def test_llama_cpps_default_of_adding_bos_is_turned_off_if_the_tokenizer_adds_none(tmp_path: Path) -> None:
    tokenizer = toys.byte_level_json(toys.LLAMA3, ignore_merges=True)
    tokenizer["post_processor"] = None
    config = toys.write_tokenizer(tmp_path, tokenizer)
    vocabulary = read_vocabulary(tmp_path, config)
    with NativeModel(write_vocab(vocabulary, tmp_path / "v.gguf"), vocab_only=True) as model:
        assert not model.add_bos


def test_a_template_that_lists_no_bos_turns_it_off(tmp_path: Path) -> None:
    tokenizer = toys.byte_fallback_json()
    tokenizer["post_processor"] = toys.template()
    config = toys.write_tokenizer(tmp_path, tokenizer)
    with NativeModel(write_vocab(read_vocabulary(tmp_path, config), tmp_path / "v.gguf"), vocab_only=True) as model:
        assert not model.add_bos


def test_the_chat_template_comes_from_each_of_its_files(tmp_path: Path) -> None:
    read = _llama3(tmp_path, {}, {"chat_template": "config"})
    assert read.chat_template == "config"
    toys.write_json(tmp_path / "tokenizer_config.json", {"chat_template": {"default": "a", "rag": "b"}})
    assert read_vocabulary(tmp_path, {}).special.chat_template == [
        {"name": "default", "template": "a"}, {"name": "rag", "template": "b"}
    ]  # fmt: skip
    (tmp_path / "tokenizer_config.json").unlink()
    toys.write_json(tmp_path / "chat_template.json", {"chat_template": "json"})
    assert read_vocabulary(tmp_path, {}).chat_template == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja", encoding="utf-8")
    assert read_vocabulary(tmp_path, {}).chat_template == "jinja"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool use.jinja").write_text("tools", encoding="utf-8")
    named = read_vocabulary(tmp_path, {})
    assert named.chat_template == "jinja"
    keys = {key: value for key, _, value in cases.keys_of(write_vocab(named, tmp_path / "v.gguf"))}
    assert keys["tokenizer.chat_template.tool_use"] == "tools"


def test_transformers_order_of_template_files(tmp_path: Path) -> None:
    """chat_template.jinja, with additional_chat_templates, before tokenizer_config.json, before chat_template.json."""
    _llama3(tmp_path, {}, {"chat_template": "config"})
    toys.write_json(tmp_path / "chat_template.json", {"chat_template": "json"})
    assert read_vocabulary(tmp_path, {}).chat_template == "config"
    (tmp_path / "chat_template.jinja").write_text("jinja", encoding="utf-8")
    assert read_vocabulary(tmp_path, {}).special.chat_template == "jinja"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag", encoding="utf-8")
    both = [{"name": "default", "template": "jinja"}, {"name": "rag", "template": "rag"}]
    assert read_vocabulary(tmp_path, {}).special.chat_template == both


def test_named_templates_without_a_default_replace_the_configured_one_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _llama3(tmp_path, {}, {"chat_template": "config"})
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag", encoding="utf-8")
    assert read_vocabulary(tmp_path, {}).chat_template is None
    assert "have no default" in caplog.text


@pytest.mark.parity
@pytest.mark.parametrize("jinja", [True, False])
@pytest.mark.parametrize("extra", ["default", "rag", None])
@pytest.mark.parametrize("configured", [None, "config", [{"name": "default", "template": "listed"}]])
def test_transformers_takes_the_same_template(tmp_path: Path, jinja: bool, extra: str | None, configured: Any) -> None:
    transformers = pytest.importorskip("transformers")
    _llama3(
        tmp_path, {}, {"chat_template": configured} if configured else {"tokenizer_class": "PreTrainedTokenizerFast"}
    )
    if jinja:
        (tmp_path / "chat_template.jinja").write_text("jinja\n", encoding="utf-8")
    if extra:
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / f"{extra}.jinja").write_text("extra", encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template
    ours = read_vocabulary(tmp_path, {}).special.chat_template
    assert ({entry["name"]: entry["template"] for entry in ours} if isinstance(ours, list) else ours) == theirs


# ── which file names the special tokens ─────────────────────────────────────────────────────────────────────────────

NAMING = {"eos_token": "<|eot_id|>", "bos_token": {"content": "<|begin_of_text|>", "special": True}}


def _eos_of(tmp_path: Path, tokenizer_config: dict[str, Any] | None, special_map: Any, **configs: Any) -> str | None:
    """The text of EOS in a toy of Llama 3's kind with these files."""
    config = toys.write_byte_level(tmp_path, toys.LLAMA3, ignore_merges=True, specials=SPECIALS, config=configs)
    if tokenizer_config is not None:
        toys.write_json(tmp_path / "tokenizer_config.json", tokenizer_config)
    if special_map is not None:
        toys.write_json(tmp_path / "special_tokens_map.json", special_map)
    read = read_vocabulary(tmp_path, config)
    return read.tokens[read.special.ids["eos"]].decode() if "eos" in read.special.ids else None


SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<END>")


@pytest.mark.parametrize(
    ("tokenizer_config", "special_map", "eos"),
    [
        ({}, NAMING, "<|eot_id|>"),
        (None, {"eos_token": "<END>"}, "<END>"),
        ({"eos_token": "<|end_of_text|>"}, NAMING, "<|eot_id|>"),
        ({"eos_token": "<|end_of_text|>", "added_tokens_decoder": {}}, NAMING, "<|end_of_text|>"),
        ({"eos_token": "<|end_of_text|>"}, None, "<|end_of_text|>"),
        ({"eos_token": "e"}, None, "e"),  # a token of the vocabulary itself
    ],
)
def test_special_tokens_are_named_where_transformers_reads_them(
    tmp_path: Path, tokenizer_config: dict[str, Any] | None, special_map: Any, eos: str
) -> None:
    assert _eos_of(tmp_path, tokenizer_config, special_map, bos_token_id=None, eos_token_id=None) == eos


@pytest.mark.parity
@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("in_map", [True, False])
@pytest.mark.parametrize("in_config", [True, False])
def test_transformers_names_the_same_special_tokens(
    tmp_path: Path, decoder: bool, in_map: bool, in_config: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {"eos_token": "<|end_of_text|>"} if in_config else {}
    settings |= {"added_tokens_decoder": {}} if decoder else {}
    eos = _eos_of(tmp_path, settings, NAMING if in_map else None, bos_token_id=None, eos_token_id=None)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).eos_token == eos


def test_eos_of_config_json_and_of_generation_config_come_after_the_tokenizer(tmp_path: Path) -> None:
    n = _eos_of(tmp_path, {}, None, bos_token_id=None, eos_token_id=None)
    assert n is None
    toys.write_json(tmp_path / "generation_config.json", {"eos_token_id": 3})
    assert read_vocabulary(tmp_path, {}).special.ids["eos"] == 3
    assert read_vocabulary(tmp_path, {"eos_token_id": 5}).special.ids["eos"] == 5
    assert read_vocabulary(tmp_path, {"eos_token_id": 5}).special.ids["eot"] == 3
    toys.write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<END>"})
    ids = read_vocabulary(tmp_path, {"eos_token_id": 5}).special.ids
    assert read_vocabulary(tmp_path, {}).tokens[ids["eos"]] == b"<END>"


def test_a_file_without_an_end_token_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _eos_of(tmp_path, {}, None, bos_token_id=None, eos_token_id=None)
    assert "no file names an end token (eos_token): llama.cpp takes token 11 for it" in caplog.text
    caplog.clear()
    _eos_of(tmp_path, {}, NAMING, bos_token_id=None, eos_token_id=None)
    assert caplog.text == ""


# ── one clear error ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_ids_with_one_text_are_both_named(tmp_path: Path) -> None:
    n = len(toys.sentencepiece_pieces())
    config = toys.write_sentencepiece(tmp_path, vocab_size=n + 1)
    toys.write_json(tmp_path / "added_tokens.json", {"▁": n})
    first = next(i for i, (text, _, _) in enumerate(toys.sentencepiece_pieces()) if text == "▁")
    with pytest.raises(VocabularyError, match=rf"tokenizer\.model: tokens {first} and {n} are both '▁'"):
        read_vocabulary(tmp_path, config)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model"), "has no object 'model'"),
        (lambda t: t["model"].update(type="Unigram"), "holds a Unigram model, expected BPE"),
        (lambda t: t["model"].update(merges=[]), "has no merges"),
        (lambda t: t["model"].update(merges=["a b", "c"]), "merge 1 is 'c', expected two tokens"),
        (
            lambda t: t["model"].update(merges=["a \ud83d"]),
            r"merges: token 0 is 'a \\ud83d', which is not valid Unicode",
        ),
        (lambda t: t["model"]["vocab"].update({"a": "x"}), "token 'a' has the id 'x'"),
        (lambda t: t["model"]["vocab"].update({"new": 5}), "token 5 is both"),
        (lambda t: t["added_tokens"][0].update(id=7), "token 7 is '.' in the vocabulary and '<|begin_of_text|>' among"),
        (lambda t: t["added_tokens"][0].update(content=None), "has no text 'content'"),
        (lambda t: t["added_tokens"][0].update(content="\ud83d"), r"is '\\ud83d', which is not valid Unicode"),
        (lambda t: t["added_tokens"][0].update(content="a\0b"), r"token 656 is b'a\\x00b', which llama.cpp would cut"),
        (lambda t: t.update(added_tokens={"a": 1}), "are not a list of objects"),
        (lambda t: t["post_processor"].update(processors=3), "'post_processor' is not a list of steps"),
        (lambda t: t["post_processor"]["processors"][1].update(pair=True), "'pair' is True, expected a list"),
        (
            lambda t: t.update(normalizer={"type": "Sequence", "normalizers": "x"}),
            "'normalizers' is 'x', expected a list",
        ),
        (lambda t: t["model"]["vocab"].update({f"t{i}": 1000 + i for i in range(9)}), "belongs to another model"),
    ],
)
def test_a_broken_tokenizer_json_is_one_clear_error(change: Change, message: str, tmp_path: Path) -> None:
    tokenizer = toys.byte_level_json(toys.LLAMA3, ignore_merges=True)
    change(tokenizer)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(VocabularyError, match=message) as caught:
        read_vocabulary(tmp_path, {"vocab_size": 700})
    assert "\n" not in str(caught.value)


def test_two_files_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    config = toys.write_byte_level(tmp_path, toys.LLAMA3, ignore_merges=True)
    decoder = {str(config["vocab_size"] - 1): toys.added(0, "<|other|>")}
    toys.write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    with pytest.raises(
        VocabularyError, match=r"'<\|eot_id\|>' in tokenizer.json and '<\|other\|>' in tokenizer_config"
    ):
        read_vocabulary(tmp_path, config)


def test_a_folder_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        read_vocabulary(tmp_path, {})


@pytest.mark.parametrize("name", ["tekken.json", "vocab.json"])
def test_a_tokenizer_in_another_form_says_how_to_get_the_one_that_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    (tmp_path / "merges.txt").touch()
    with pytest.raises(FileNotFoundError, match=rf"as {name} only.*AutoTokenizer.from_pretrained\(.*save_pretrained"):
        read_vocabulary(tmp_path, {})


def test_invalid_json_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not valid JSON"):
        read_vocabulary(tmp_path, {})


# ── the real tokenizers ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "n_tokens", "vectors"), [("llama2", 32000, "llama-spm"), ("llama3", 128256, "llama-bpe")]
)
def test_llama_cpps_vectors_come_out_exactly(name: str, n_tokens: int, vectors: str, shared: Path, tmp_path: Path) -> None:  # fmt: skip  # noqa: E501
    vocabulary = read_vocabulary(shared / name, {"vocab_size": n_tokens})
    inputs = (shared / "tokenizer-vectors" / f"{vectors}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    outputs = (shared / "tokenizer-vectors" / f"{vectors}.out").read_text().split("\n")
    with NativeModel(write_vocab(vocabulary, tmp_path / "v.gguf"), vocab_only=True) as model:
        ids = [model.tokenize(text, add_special=False, parse_special=False).tolist() for text in inputs]
    assert ids == [[int(token) for token in line.split()] for line in outputs[: len(inputs)]]
    assert len(ids) == 47


@pytest.mark.reference
def test_llama_2s_pieces_in_a_tokenizer_json_give_the_same_ids(shared: Path, tmp_path: Path) -> None:
    """The merges as transformers derives them from tokenizer.model: every pair of pieces that makes a piece."""
    model = SentencePieceProcessor(model_file=str(shared / "llama2" / "tokenizer.model"))
    ids = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    merges = [
        (-model.get_score(i), ids[text[:cut]], ids[text[cut:]], text[:cut], text[cut:])
        for text, i in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    tokenizer = toys.byte_fallback_json()
    tokenizer["model"] |= {"vocab": ids, "merges": [f"{left} {right}" for *_, left, right in sorted(merges)]}
    config = toys.write_tokenizer(tmp_path, tokenizer)
    vocabulary = read_vocabulary(tmp_path, config)
    original = read_vocabulary(shared / "llama2", config)
    assert vocabulary.tokens == original.tokens
    report = probe.compare(shared / "llama2", config, write_vocab(vocabulary, tmp_path / "v.gguf"))
    assert (report.differences, report.known) == ([], [])


@pytest.mark.reference
def test_llama_3_is_llama_bpe_with_all_its_tokens(shared: Path) -> None:
    vocabulary = read_vocabulary(shared / "llama3", {"vocab_size": 128256})
    assert (vocabulary.kind, vocabulary.pre, vocabulary.n_tokens) == ("gpt2", "llama-bpe", 128256)
    assert len(vocabulary.merges) == 280147
    assert vocabulary.special.ids == {"bos": 128000, "eos": 128009}
    assert vocabulary.special.add == {"bos": True, "eos": False, "sep": False}
