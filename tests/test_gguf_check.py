"""A file that contradicts itself is refused with the name of the key or tensor, whatever llama.cpp would do with it."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import toy
from gguf_bytes import (
    ARRAY,
    BOOL,
    F16,
    FLOAT32,
    INT32,
    Q4_K,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Array,
    GgufBytes,
    Key,
    Tensor,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalite import Model, hardware
from llamalite.errors import GGUFError
from llamalite.gguf_check import checked_header, read_header
from llamalite.gguf_check.strings import packed_spans, packed_spans_slowly
from llamalite.gguf_check.vocabulary import first_duplicate

Edit = Callable[[GgufBytes], object]
TOKENS = "tokenizer.ggml.tokens"


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("gguf") / "toy.gguf", n_layer=1, n_ff=32)


@pytest.fixture
def good(toy_path: Path) -> GgufBytes:
    return GgufBytes.of(toy_path)


def test_reads_what_the_gguf_package_reads(toy_path: Path) -> None:
    header, reference = checked_header(toy_path), gguf.GGUFReader(toy_path)
    assert [
        (t.name, t.type.ggml_type, t.shape, t.offset, t.nbytes, t.n_params) for t in header.tensors
    ] == [
        (t.name, int(t.tensor_type), tuple(t.shape.tolist()), t.data_offset, t.n_bytes, t.n_elements)
        for t in reference.tensors
    ]  # fmt: skip
    fields = {name: field for name, field in reference.fields.items() if not name.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for name, field in fields.items():
        value = header.metadata[name]
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents(), name


def test_says_what_kind_of_model_it_is(toy_path: Path) -> None:
    header = checked_header(toy_path)
    assert (header.architecture, header.name, header.file_type, header.bits_per_weight) == ("llama", "toy", "F32", 32.0)
    assert (header.n_layer, header.n_embd, header.n_head, header.n_head_kv, header.n_ff) == (1, 64, 4, 2, 32)
    assert (header.n_embd_head_k, header.n_embd_head_v, header.n_ctx_train, header.chat_template) == (
        16,
        16,
        1024,
        None,
    )
    assert header.n_vocab == len(toy.vocabulary())
    assert header.n_params == sum(int(np.prod(t.shape)) for t in header.tensors)
    assert header.tensor_bytes == 4 * header.n_params
    assert header.metadata.type_of(TOKENS) == "array[string]"
    assert header.metadata[TOKENS] == [piece for piece, _, _ in toy.vocabulary()]


def tokens(file: GgufBytes) -> list[bytes]:
    values: list[bytes] = file.key(TOKENS).value.values
    return values


def shorten(name: str) -> Edit:
    return lambda file: file.key(name).value.values.pop()


def claim(name: str, n: int) -> Edit:
    return lambda file: setattr(file.key(name).value, "claimed", n)


def put(name: str, kind: int, value: object) -> Edit:
    return lambda file: file.set(name, kind, value)


def shape(name: str, *dimensions: int) -> Edit:
    return lambda file: setattr(file.tensor(name), "shape", list(dimensions))


def kind(name: str, number: int) -> Edit:
    return lambda file: setattr(file.tensor(name), "type", number)


def both(*edits: Edit) -> Edit:
    return lambda file: [edit(file) for edit in edits]


def token(i: int, text: bytes) -> Edit:
    return lambda file: tokens(file).__setitem__(i, text)


def extra(name: bytes, n: int = 8, number: int = 0) -> Edit:
    return lambda file: file.tensors.append(Tensor(name, [n], number, bytes(4 * n)))


def content(name: str, n: int) -> Edit:
    return lambda file: setattr(file.tensor(name), "content", bytes(n))


def rename(old: str, new: bytes) -> Edit:
    return lambda file: setattr(file.tensor(old), "name", new)


FAULTS: dict[str, tuple[Edit, str]] = {
    # the frame
    "version 1": (lambda f: setattr(f, "version", 1), "version 1, which llama.cpp no longer reads"),
    "version 4": (lambda f: setattr(f, "version", 4), "GGUF version 4, expected 2 or 3"),
    "big-endian": (lambda f: setattr(f, "version", 0x03000000), "big-endian; convert it with `gguf-convert-endian"),
    "too many keys": (lambda f: setattr(f, "n_keys", 1 << 40), "claims 1099511627776 keys in a file of"),
    "too many tensors": (lambda f: setattr(f, "n_tensors", 1 << 63), "claims 9223372036854775808 tensors"),
    "one key more": (lambda f: setattr(f, "n_keys", len(f.keys) + 1), "the name of tensor 0 is"),
    "one tensor more": (lambda f: setattr(f, "n_tensors", len(f.tensors) + 1), "the name of tensor 12 is"),
    # keys
    "key twice": (lambda f: f.keys.append(f.keys[3]), "key llama.embedding_length occurs twice"),
    "key without a name": (put("", UINT8, 0), "the name of key"),
    "key of bytes": (lambda f: f.keys.append(Key(b"\xff\xfe", UINT8, 0)), "is not valid UTF-8: b'\\xff\\xfe'"),
    "key with NUL": (lambda f: f.keys.append(Key(b"a\0b", UINT8, 0)), "expected a name of printable characters"),
    "key with an escape": (lambda f: f.keys.append(Key(b"\x1b[2J\n", UINT8, 0)), "is b'\\x1b[2J\\n', expected a name"),
    "key of unknown type": (put("x", 13, b""), "key x is of type 13, expected 0 to 12"),
    "array of arrays": (put("x", ARRAY, Array(ARRAY, [])), "key x is an array of type 9"),
    "array of nothing known": (put("x", ARRAY, Array(99, [])), "key x is an array of type 99"),
    "bool of 2": (put("x", BOOL, 2), "key x is a bool of value 2"),
    "array with a bool of 2": (put("x", ARRAY, Array(BOOL, [1, 2])), "key x is an array of bools with a value other"),
    "array past the end": (claim("tokenizer.ggml.scores", 1 << 60), "key tokenizer.ggml.scores claims 11529215046068"),
    "strings past the end": (claim(TOKENS, 1 << 62), f"key {TOKENS} claims 4611686018427387904 strings"),
    "alignment 0": (put("general.alignment", UINT32, 0), "general.alignment is 0 (uint32)"),
    "alignment 48": (put("general.alignment", UINT32, 48), "general.alignment is 48"),
    "alignment too small for llama.cpp": (put("general.alignment", UINT32, 8), "power of two of at least 32"),
    "alignment of another type": (put("general.alignment", UINT64, 32), "general.alignment is 32 (uint64)"),
    # the table of tensors
    "tensor twice": (lambda f: f.tensors.append(f.tensors[0]), "tensor token_embd.weight occurs twice"),
    "tensor without a name": (extra(b""), "the name of tensor"),
    "tensor with a long name": (extra(b"n" * 64), "is 64 bytes long, expected at most 63"),
    "five dimensions": (shape("output_norm.weight", 64, 1, 1, 1, 1), "output_norm.weight has 5 dimensions"),
    "a dimension of 0": (shape("output_norm.weight", 0), "output_norm.weight has shape [0], which holds nothing"),
    "a product that overflows": (shape("token_embd.weight", 1 << 40, 1 << 40), "token_embd.weight of shape"),
    "a negative dimension": (shape("output_norm.weight", 2**64 - 64), "output_norm.weight of shape"),
    "an unknown type": (kind("output_norm.weight", 99), "output_norm.weight is of type 99, which the installed"),
    "a type removed from ggml": (kind("output_norm.weight", 4), "output_norm.weight is of type 4"),
    "half a block": (kind("output_norm.weight", Q4_K), "rows of 64 weights, which do not fill blocks of 256 (Q4_K)"),
    "overlap": (lambda f: setattr(f.tensors[2], "offset", 32), "overlaps the one before it: it begins at byte 32"),
    "gap": (lambda f: setattr(f.tensors[2], "offset", 1 << 20), "leaves a gap behind the one before it"),
    "past the end": (lambda f: setattr(f.tensors[-1], "content", b""), "tensor output.weight ends at byte"),
    # the model's numbers
    "no architecture": (lambda f: f.drop("general.architecture"), "general.architecture is missing"),
    "no context length": (lambda f: f.drop("llama.context_length"), "key llama.context_length is missing"),
    "no epsilon": (lambda f: f.drop("llama.attention.layer_norm_rms_epsilon"), "rms_epsilon is missing"),
    "epsilon NaN": (put("llama.attention.layer_norm_rms_epsilon", FLOAT32, float("nan")), "rms_epsilon is nan"),
    "epsilon below 0": (put("llama.attention.layer_norm_rms_epsilon", FLOAT32, -1.0), "rms_epsilon is -1.0"),
    "no layers": (put("llama.block_count", UINT32, 0), "key llama.block_count is 0, expected 1 to 512"),
    "513 layers": (put("llama.block_count", UINT32, 513), "key llama.block_count is 513, expected 1 to 512"),
    "a layer too many": (put("llama.block_count", UINT32, 2), "tensor blk.1.attn_norm.weight is missing"),
    "a number of another type": (put("llama.block_count", UINT64, 1), "block_count should be uint32, found uint64"),
    "a string for a number": (put("llama.embedding_length", STRING, b"64"), "should be uint32, found string"),
    "heads that do not divide": (put("llama.attention.head_count_kv", UINT32, 3), "not a multiple of the 3 key heads"),
    "no heads": (put("llama.attention.head_count", UINT32, 0), "head_count is 0, expected at least 1"),
    "an odd head": (put("llama.attention.head_count", UINT32, 64), "heads have 1 dimensions"),
    "heads of every layer": (
        put("llama.attention.head_count", ARRAY, Array(UINT32, [4, 4])), "has 2 numbers for 1 layers",
    ),
    "rope width": (put("llama.rope.dimension_count", UINT32, 8), "rope.dimension_count is 8, expected 16"),
    "value width": (put("llama.attention.value_length", UINT32, 8), "value_length is 8, expected 16"),
    "rope scaling unknown": (put("llama.rope.scaling.type", STRING, b"magic"), "'magic', expected one of none, linear"),
    "rope base 0": (put("llama.rope.freq_base", FLOAT32, 0.0), "rope.freq_base is 0.0, expected above 0"),
    "an output width": (put("llama.embedding_length_out", UINT32, 1 << 31), "embedding_length_out is 2147483648"),
    "experts used of none": (put("llama.expert_used_count", UINT32, 2), "expert_used_count is 2, expected 1 to 0"),
    "experts without tensors": (
        both(put("llama.expert_count", UINT32, 4), put("llama.expert_used_count", UINT32, 2)),
        "blk.0.ffn_gate_inp.weight is missing",
    ),
    "not causal": (put("llama.attention.causal", BOOL, 0), "attention.causal is False, expected true"),
    "prediction layers": (put("llama.nextn_predict_layers", UINT32, 1), "nextn_predict_layers is 1, expected 0"),
    # tensors against keys
    "a missing tensor": (lambda f: f.drop("blk.0.ffn_up.weight"), "tensor blk.0.ffn_up.weight is missing"),
    "a foreign tensor": (extra(b"blk.0.magic.weight"), "tensor blk.0.magic.weight does not belong in a model"),
    "a transposed tensor": (shape("blk.0.ffn_up.weight", 32, 64), "has shape [32, 64], and the keys imply [64, 32]"),
    "a norm in F16": (
        both(kind("output_norm.weight", F16), content("output_norm.weight", 128)),
        "tensor output_norm.weight is of type F16",
    ),
    "a matrix of integers": (kind("output.weight", 26), "output.weight is of type I32, which llama.cpp cannot"),
    "a renamed tensor": (rename("output_norm.weight", b"output_norm.weighT"), "output_norm.weight is missing"),
    # the vocabulary
    "no tokenizer": (lambda f: f.drop("tokenizer.ggml.model"), "model should be a string, found nothing"),
    "another tokenizer": (put("tokenizer.ggml.model", STRING, b"t5"), "is 't5', expected one of llama, gpt2"),
    "no tokens": (lambda f: f.drop(TOKENS), f"key {TOKENS} should be array[string], found nothing"),
    "tokens that are numbers": (put(TOKENS, ARRAY, Array(INT32, [1])), "should be array[string], found array[int32]"),
    "a token twice": (token(300, b"<s>"), "tokens 1 and 300 are both b'<s>'"),
    "a token with NUL": (token(300, b"a\0b"), "token 300 holds a NUL byte"),
    "a stand-in that exists": (
        both(token(300, b""), token(301, b"[EMPTY_300]")),
        "token 300 is empty, and the name that llama.cpp gives it, [EMPTY_300]",
    ),
    "a token too few": (lambda f: tokens(f).pop(), "key tokenizer.ggml.scores has"),
    "a score too few": (shorten("tokenizer.ggml.scores"), "key tokenizer.ggml.scores has 354 elements"),
    "a score NaN": (
        lambda f: f.key("tokenizer.ggml.scores").value.values.__setitem__(7, float("nan")), "scores holds NaN",
    ),
    "a type too few": (shorten("tokenizer.ggml.token_type"), "key tokenizer.ggml.token_type has 354 elements"),
    "an unknown token type": (
        lambda f: f.key("tokenizer.ggml.token_type").value.values.__setitem__(7, 9), "holds 1 to 9, expected 0 to 6",
    ),
    "a byte missing": (token(3 + 65, b"<0x4>"), "is of type byte, but b'<0x4>' is not one"),
    "a byte that nothing spells": (
        both(
            token(3 + 0x80, b"odd"), lambda f: f.key("tokenizer.ggml.token_type").value.values.__setitem__(3 + 0x80, 1)
        ),
        "no token <0x80>: llama.cpp could not spell every text",
    ),
    "bos outside": (put("tokenizer.ggml.bos_token_id", UINT32, 355), "bos_token_id is 355, and the vocabulary has 355"),
    "eos of another type": (put("tokenizer.ggml.eos_token_id", INT32, 2), "should be a uint32, found int32"),
    "add_bos as a number": (put("tokenizer.ggml.add_bos_token", UINT8, 1), "should be a bool, found uint8"),
    "merges missing": (put("tokenizer.ggml.model", STRING, b"gpt2"), "tokenizer.ggml.merges should be array[string]"),
    # split files
    "one of three": (put("split.count", UINT16, 3), "is one of 3 files, but is not named NAME-00001-of-00003.gguf"),
    "a split of another type": (put("split.count", UINT32, 3), "split.count should be a uint16, found uint32"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_file_is_refused_and_the_fault_named(name: str, good: GgufBytes, tmp_path: Path) -> None:
    edit, expected = FAULTS[name]
    edit(good)
    path = tmp_path / "bad.gguf"
    path.write_bytes(good.dump())
    with pytest.raises(GGUFError) as refusal:
        checked_header(path)
    assert str(path) in str(refusal.value)
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


ALLOWED: dict[str, Edit] = {
    "version 2": lambda f: setattr(f, "version", 2),
    "tied embeddings": lambda f: f.drop("output.weight"),
    "a number for every layer": put("llama.attention.head_count", ARRAY, Array(UINT32, [4])),
    "key heads as many as heads by default": both(
        lambda f: f.drop("llama.attention.head_count_kv"),
        shape("blk.0.attn_k.weight", 64, 64), content("blk.0.attn_k.weight", 16384),
        shape("blk.0.attn_v.weight", 64, 64), content("blk.0.attn_v.weight", 16384),
    ),
    "several empty tokens": both(token(300, b""), token(301, b"")),
    "keys that nobody knows": put("somebody.else", ARRAY, Array(STRING, [b"\xff", b""])),
    "rope factors": extra(b"rope_freqs.weight"),
    "a bias": extra(b"blk.0.attn_q.bias", 64),
    "no vocabulary": both(lambda f: f.drop(TOKENS), put("tokenizer.ggml.model", STRING, b"no_vocab")),
    "a dimension of one": shape("output_norm.weight", 64, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_files_that_llama_cpp_accepts_pass(name: str, good: GgufBytes, tmp_path: Path) -> None:
    ALLOWED[name](good)
    path = tmp_path / "good.gguf"
    path.write_bytes(good.dump())
    assert checked_header(path).n_layer == 1


def test_another_alignment_is_followed(good: GgufBytes, tmp_path: Path) -> None:
    good.set("general.alignment", UINT32, 256)
    good.alignment = 256
    path = tmp_path / "aligned.gguf"
    path.write_bytes(good.dump())
    header = checked_header(path)
    assert header.alignment == 256
    assert all(tensor.offset % 256 == 0 for tensor in header.tensors)


def test_a_file_cut_anywhere_is_refused(good: GgufBytes, tmp_path: Path) -> None:
    raw = good.dump()
    path = tmp_path / "cut.gguf"
    rng = np.random.default_rng(0)
    for n in [*range(64), *rng.integers(64, len(raw), 150).tolist(), len(raw) - 1]:
        path.write_bytes(raw[:n])
        with pytest.raises(GGUFError):
            checked_header(path)


def test_a_string_longer_than_the_file(good: GgufBytes, tmp_path: Path) -> None:
    raw = good.dump()
    path = tmp_path / "long.gguf"
    for length in (len(raw), 1 << 40, (1 << 64) - 1):  # in the place of the first key's length
        path.write_bytes(raw[:24] + struct.pack("<Q", length) + raw[32:])
        with pytest.raises(GGUFError, match="the name of key 0 is"):
            checked_header(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"GGML" + bytes(60), b"PK\3\4" + bytes(60), bytes(4096)])
def test_a_file_that_is_not_gguf_is_reported_as_such(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(GGUFError, match="this is not a GGUF file"):
        read_header(path)


def test_a_path_that_is_not_a_file_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checked_header(tmp_path / "nothing.gguf")
    with pytest.raises(GGUFError, match="is a folder"):
        checked_header(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of Unix")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(GGUFError, match="not a regular file"):
        checked_header(tmp_path / "pipe.gguf")


def other_architecture(file: GgufBytes) -> GgufBytes:
    for key in file.keys:
        key.name = key.name.replace(b"llama.", b"qwen9.")
    file.set("general.architecture", STRING, b"qwen9")
    return file


def test_another_architecture_is_checked_in_its_structure_and_vocabulary(good: GgufBytes, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    other_architecture(good)
    good.tensors.append(Tensor(b"something.of.its.own", [8], 26, bytes(32)))
    path.write_bytes(good.dump())
    assert checked_header(path).architecture == "qwen9"
    for edit, expected in [
        (put("qwen9.block_count", UINT32, 1000), "qwen9.block_count is 1000, expected 1 to 512"),
        (put("qwen9.expert_count", UINT32, 4), "qwen9.expert_used_count is 0, expected 1 to 4"),
        (put("qwen9.nextn_predict_layers", UINT32, 9), "more than the model's 1 layers"),
        (put("qwen9.rope.scaling.type", STRING, b"magic"), "qwen9.rope.scaling.type is 'magic'"),
        (put("qwen9.rope.scaling.type", ARRAY, Array(INT32, [1, 2])), "qwen9.rope.scaling.type is [1, 2]"),
        (put("qwen9.expert_used_count", ARRAY, Array(STRING, [b"a"])), "qwen9.expert_used_count is ['a']"),
        (put("qwen9.expert_used_count", ARRAY, Array(FLOAT32, [0.5])), "qwen9.expert_used_count"),
        (token(300, b"<s>"), "tokens 1 and 300 are both"),
    ]:
        bad = GgufBytes.of(path)
        edit(bad)
        (tmp_path / "bad.gguf").write_bytes(bad.dump())
        with pytest.raises(GGUFError, match="qwen9|tokens") as refusal:
            checked_header(tmp_path / "bad.gguf")
        assert expected in str(refusal.value)


# ── split models ────────────────────────────────────────────────────────────────────────────────────────────────────


def split(file: GgufBytes, folder: Path) -> list[Path]:
    """Write `file` as three files of a set, the tensors dealt out in order."""
    n = len(file.tensors)
    paths = []
    for i in range(3):
        part = GgufBytes(list(file.keys) if i == 0 else [], file.tensors[i * n // 3 : (i + 1) * n // 3])
        part.set("split.no", UINT16, i)
        part.set("split.count", UINT16, 3)
        part.set("split.tensors.count", INT32, n)
        paths.append(folder / f"toy-{i + 1:05}-of-00003.gguf")
        paths[-1].write_bytes(part.dump())
    return paths


def test_a_split_model_is_one(good: GgufBytes, toy_path: Path, tmp_path: Path) -> None:
    paths = split(good, tmp_path)
    whole, single = checked_header(paths[0]), checked_header(toy_path)
    assert [header.path for header in whole.rest] == paths[1:]
    assert {t.name for t in whole.all_tensors} == {t.name for t in single.tensors}
    assert (whole.n_params, whole.tensor_bytes) == (single.n_params, single.tensor_bytes)


def test_a_split_model_loads_and_its_memory_is_that_of_all_its_files(
    good: GgufBytes, toy_path: Path, tmp_path: Path
) -> None:
    paths = split(good, tmp_path)
    needed, needed_single = (hardware.memory_needed(checked_header(path), n_ctx=256) for path in (paths[0], toy_path))
    assert needed == needed_single
    with Model(paths[0], n_ctx=256) as model, Model(toy_path, n_ctx=256) as single:
        assert model.generate("once", max_tokens=8, temperature=0).text == single.generate(
            "once", max_tokens=8, temperature=0
        ).text  # fmt: skip


def edit_file(path: Path, edit: Edit) -> None:
    file = GgufBytes.of(path)
    edit(file)
    path.write_bytes(file.dump())


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda p: p[1].unlink(), "these are missing beside it: toy-00002-of-00003.gguf"),
        (lambda p: p[1].write_bytes(p[1].read_bytes()[:-200]), "ends at byte"),
        (lambda p: edit_file(p[1], put("split.no", UINT16, 2)), "key split.no is 2, expected 1"),
        (lambda p: edit_file(p[1], put("split.no", UINT32, 1)), "split.no should be a uint16, found uint32"),
        (lambda p: edit_file(p[2], lambda f: f.drop("split.no")), "split.no should be a uint16, found nothing"),
        (lambda p: edit_file(p[0], put("split.tensors.count", INT32, 99)), "split.tensors.count is 99"),
        (
            lambda p: edit_file(p[1], rename("blk.0.attn_output.weight", b"token_embd.weight")),
            "is in toy-00001-of-00003",
        ),
        (lambda p: edit_file(p[1], lambda f: f.tensors.pop()), "split.tensors.count is 12, and the 3 files hold 11"),
    ],
)
def test_a_split_model_is_checked_as_one(
    edit: Callable[[list[Path]], object], expected: str, good: GgufBytes, tmp_path: Path
) -> None:
    paths = split(good, tmp_path)
    edit(paths)
    with pytest.raises(GGUFError) as refusal:
        checked_header(paths[0])
    assert expected in str(refusal.value)


def test_the_second_file_of_a_split_model_points_to_the_first(good: GgufBytes, tmp_path: Path) -> None:
    paths = split(good, tmp_path)
    with pytest.raises(GGUFError) as refusal:
        checked_header(paths[1])
    assert f"not the first: open {paths[0]}" in str(refusal.value)


# ── the fast ways against the slow ones ─────────────────────────────────────────────────────────────────────────────

SOME_BYTES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"", b"\0", bytes(6), bytes(9), b"a" * 255, b"a" * 256, b"a" * 257, b"ab" * 300]),
    st.text(max_size=6).map(str.encode),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(SOME_BYTES, max_size=30), st.integers(0, 3), st.binary(max_size=30), st.integers(0, 40))
def test_the_fast_search_finds_the_same_strings_as_the_loop(
    strings: list[bytes], start: int, tail: bytes, lost: int
) -> None:
    strings = strings * (300 // max(1, len(strings)))  # enough for the fast way
    buffer = bytes(start) + b"".join(struct.pack("<Q", len(s)) + s for s in strings) + tail
    buffer = buffer[: max(0, len(buffer) - lost)]
    fast, slow = packed_spans(buffer, start, len(strings)), packed_spans_slowly(buffer, start, len(strings))
    if slow is None or fast is None:
        assert slow is None
        assert fast is None
    else:
        assert fast.tolist() == slow.tolist()
        assert [buffer[a:b] for a, b in fast.tolist()] == strings


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(SOME_BYTES, st.sampled_from([b"x" * 30, b"x" * 15 + b"y" + b"x" * 14])), min_size=1))
def test_the_fast_search_finds_the_same_duplicates_as_a_dictionary(strings: list[bytes]) -> None:
    buffer = b"".join(struct.pack("<Q", len(s)) + s for s in strings)
    spans = packed_spans_slowly(buffer, 0, len(strings))
    assert spans is not None
    seen: dict[bytes, int] = {}
    expected = None
    for i, text in enumerate(strings):
        if text and text in seen:
            expected = seen[text], i
            break
        seen.setdefault(text, i)
    assert first_duplicate(buffer, spans) == expected


# ── bounds on time and memory ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.reference
def test_a_vocabulary_of_128256_tokens_takes_less_than_50_ms(llama3_vocabulary: Path) -> None:
    durations = []
    for _ in range(15):
        start = time.process_time()
        header = read_header(llama3_vocabulary)
        spans = header.metadata.strings(TOKENS)
        assert first_duplicate(*spans) is None
        durations.append(time.process_time() - start)
    assert header.n_vocab == 128256
    assert min(durations) < 0.05


@pytest.fixture
def llama3_vocabulary(shared: Path, tmp_path: Path) -> Path:
    import json

    model = json.loads((shared / "llama3" / "tokenizer.json").read_bytes())
    vocabulary = sorted(model["model"]["vocab"], key=model["model"]["vocab"].__getitem__)
    added = [entry["content"] for entry in model["added_tokens"]]
    merges = [entry if isinstance(entry, str) else " ".join(entry) for entry in model["model"]["merges"]]
    file = GgufBytes()
    file.set("general.architecture", STRING, b"llama")
    file.set(TOKENS, ARRAY, Array(STRING, [entry.encode() for entry in vocabulary + added]))
    file.set("tokenizer.ggml.merges", ARRAY, Array(STRING, [entry.encode() for entry in merges]))
    path = tmp_path / "llama3.gguf"
    path.write_bytes(file.dump())
    return path


HOSTILE: dict[str, Callable[[], bytes]] = {
    "two million empty strings": lambda: _array_of(STRING, 1 << 21, bytes(8 << 21)),
    "more strings than allowed": lambda: _array_of(STRING, (1 << 21) + 1, bytes(8 << 21) + bytes(8)),
    "many small arrays": lambda: _keys(60_000, b"\x09\0\0\0\x08\0\0\0\x01" + bytes(7) + bytes(8)),
    "many arrays just worth a search": lambda: _keys(
        8_000, struct.pack("<IIQ", ARRAY, STRING, 256) + (struct.pack("<Q", 1) + b"a") * 256
    ),
    "a header without an end": lambda: _array_of(UINT8, 140 << 20, bytes(140 << 20)),
}


def _keys(n: int, value: bytes) -> bytes:
    keys = b"".join(struct.pack("<Q", 5) + b"%05d" % i + value for i in range(n))
    return b"GGUF" + struct.pack("<IQQ", 3, 0, n) + keys


def _array_of(kind: int, n: int, content: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"x", ARRAY, kind, n) + content


@pytest.mark.parametrize("name", HOSTILE)
def test_no_file_takes_two_seconds(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[name]())
    start = time.process_time()
    with pytest.raises(GGUFError):
        checked_header(path)
    assert time.process_time() - start < 2
