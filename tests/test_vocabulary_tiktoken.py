"""tiktoken's form of Llama 3's tokenizer gives the same vocabulary as its tokenizer.json."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import gguf
import pytest
import tokenizers
from checkpoint_files import ranks_of, write_ranks
from tokenizer_toys import CORPUS, LLAMA3, byte_level_json

from llamalite.converters.vocabulary import Vocabulary, probe, read_vocabulary, tiktoken
from llamalite.errors import VocabularyError

BYTES = {bytes([byte]): byte for byte in range(256)}
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": None, "eos_token_id": None}


def same(one: Vocabulary, other: Vocabulary) -> None:
    assert (one.kind, one.pre, one.n_tokens) == (other.kind, other.pre, other.n_tokens)
    assert one.tokens == other.tokens
    assert one.token_types == other.token_types
    assert one.merges == other.merges
    assert (one.special.ids["bos"], one.special.add, one.last) == (
        other.special.ids["bos"],
        other.special.add,
        other.last,
    )


@pytest.mark.reference
def test_llama_3s_ranks_give_the_vocabulary_of_its_tokenizer_json(tmp_path: Path, shared: Path) -> None:
    tokenizer = json.loads((shared / "llama3" / "tokenizer.json").read_text(encoding="utf-8"))
    folder = write_ranks(tmp_path / "meta", ranks_of(tokenizer))
    config = CONFIG | {"vocab_size": 128256}
    vocabulary = read_vocabulary(folder, config)
    assert (vocabulary.pre, len(vocabulary.merges)) == ("llama-bpe", 280147)
    same(vocabulary, read_vocabulary(shared / "llama3", config))
    assert vocabulary.special.ids["eos"] == 128001  # Meta's files do not say whether they are an instruct model's


def test_ids_are_those_of_tiktokens_rule(tmp_path: Path) -> None:
    toy = byte_level_json(LLAMA3, ignore_merges=True)
    ranks = ranks_of(toy)
    folder = write_ranks(tmp_path, ranks)
    files = tiktoken.TiktokenFiles(folder, CONFIG)
    fast = tokenizers.Tokenizer.from_str(json.dumps(files.tokenizer_json))
    splitter = tokenizers.pre_tokenizers.Split(tokenizers.Regex(tiktoken._SPLIT), "isolated")
    for line in CORPUS.split("\n"):
        words = [word for word, _ in splitter.pre_tokenize_str(line)]
        expected = [token for word in words for token in by_rank(word.encode(), ranks)]
        assert fast.encode(line, add_special_tokens=False).ids == expected


def by_rank(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's rule, written plainly: a word that is a token is that token, else the pair of lowest rank is
    joined."""
    if word in ranks:
        return [ranks[word]]
    parts = [bytes([byte]) for byte in word]
    while True:
        pairs = [(ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1)]
        rank, i = min(pairs, default=(1 << 30, 0))
        if rank == 1 << 30:
            return [ranks[part] for part in parts]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.mark.parametrize(
    ("is_31", "expected"),
    [
        (False, {4: "reserved_special_token_2", 8: "reserved_special_token_4", 9: "eot_id",
                 255: "reserved_special_token_250"}),
        (True, {4: "finetune_right_pad_id", 8: "eom_id", 9: "eot_id", 10: "python_tag", 11: "reserved_special_token_3",
                255: "reserved_special_token_247"}),
    ],
)  # fmt: skip
def test_special_tokens_are_those_of_the_release(is_31: bool, expected: dict[int, str]) -> None:
    tokens = tiktoken.special_tokens(256, is_31=is_31)
    assert (len(tokens), len(set(tokens)), tokens[0]) == (256, 256, "<|begin_of_text|>")
    assert {i: tokens[i] for i in expected} == {i: f"<|{name}|>" for i, name in expected.items()}


def test_the_release_is_recognized_by_the_rotary_scaling(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path, BYTES | {b"ab": 256})
    old = read_vocabulary(folder, CONFIG | {"vocab_size": 257 + 256})
    new = read_vocabulary(folder, CONFIG | {"vocab_size": 257 + 256, "rope_scaling": {"rope_type": "llama3"}})
    assert old.tokens[257 + 8] == b"<|reserved_special_token_4|>"
    assert new.tokens[257 + 8] == b"<|eom_id|>"
    assert old.special.ids["bos"] == 257
    assert old.special.add.get("bos") is True


def test_a_tokenizer_json_in_the_folder_is_preferred(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path, BYTES)
    toy = byte_level_json(LLAMA3, ignore_merges=True)
    (folder / "tokenizer.json").write_text(json.dumps(toy), encoding="utf-8")
    assert len(read_vocabulary(folder, {}).merges) == len(toy["model"]["merges"])


def test_the_vocabulary_made_from_the_ranks_passes_the_probe(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path, ranks_of(byte_level_json(LLAMA3, ignore_merges=True)))
    config = CONFIG | {"vocab_size": 656 + 256}
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "llama")
    read_vocabulary(folder, config).write_keys(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert probe.compare(folder, config, tmp_path / "v.gguf").differences == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"IQ== 0\nIQ== 1\n", r"line 2 repeats the token b'!' of line 1"),
        (b"IQ== 0\nIg== 7\n", r"line 2 is b'Ig== 7', expected a token in base64 and the rank 1"),
        (b"IQ== 0\n", r"lacks 255 of the 256 single bytes, the first is 0x00"),
        (b"IQ== 0\nI*== 1\n", r"line 2 is b'I\*== 1'"),
        (b"IQ== 0\n 1\n", r"line 2 is b' 1'"),
        (b"IQ== 0\n" + base64.b64encode(bytes(2000)) + b" 1\n", r"line 2 is b'AAAA"),
    ],
)
def test_a_damaged_list_of_ranks_is_reported_with_its_line(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(text)
    with pytest.raises(VocabularyError, match=message):
        read_vocabulary(tmp_path, CONFIG | {"vocab_size": 512})


def test_an_embedding_without_room_for_the_special_tokens_is_refused(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path, BYTES)
    with pytest.raises(VocabularyError, match="has 4 rows beyond the ranks"):
        read_vocabulary(folder, CONFIG | {"vocab_size": 260})
