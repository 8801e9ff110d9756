"""A loaded file: its facts, its tokenizer; and everything that llama.cpp would abort on is refused first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizer_toys
import toy
from gguf_bytes import ARRAY, STRING, UINT32, Array, GgufBytes

from llamalite.errors import GGUFError, LlamaliteError, ModelLoadError
from llamalite.native.model import NativeModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    return NativeModel(toy.write_toy(tmp_path_factory.mktemp("model") / "toy.gguf", metadata={"toy.flag": True}))


def test_the_files_facts_are_reported(model: NativeModel) -> None:
    assert (model.n_vocab, model.n_layer, model.n_embd, model.n_head_kv) == (len(toy.vocabulary()), 2, 64, 2)
    assert model.n_ctx_train == 1024
    assert (model.bos, model.eos, model.add_bos, model.is_recurrent) == (toy.BOS, toy.EOS, True, False)
    assert model.metadata["general.name"] == "toy"
    assert model.metadata["toy.flag"] == "true"
    assert model.size_bytes == 4 * model.n_params


def test_text_becomes_tokens_and_tokens_the_text(model: NativeModel) -> None:
    ids = model.tokenize("once upon a time é 字", add_special=True, parse_special=False)
    assert ids.dtype == np.int32
    assert ids[0] == toy.BOS
    assert b"".join(model.token_to_piece(int(i)) for i in ids) == " once upon a time é 字".encode()
    assert model.detokenize(ids) == " once upon a time é 字".encode()


def test_bytes_that_are_not_text_are_tokenized_too(model: NativeModel) -> None:
    assert len(model.tokenize(b"\xff\xfe a", add_special=False, parse_special=False)) > 0
    assert model.tokenize(b"", add_special=False, parse_special=False).shape == (0,)


def test_a_control_token_is_made_of_text_only_when_asked(model: NativeModel) -> None:
    end = toy.vocabulary().index(("<|im_end|>", 0.0, toy.CONTROL))
    assert end not in model.tokenize("<|im_end|>", add_special=False, parse_special=False)
    assert end in model.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert model.is_control(end)
    assert model.is_eog(end)
    assert not model.is_eog(toy.BOS)
    assert model.token_to_piece(end) == b""
    assert model.token_to_piece(end, special=True) == b"<|im_end|>"
    assert model.control_tokens() == {"<s>": 1, "</s>": 2, "<|im_start|>": end - 1, "<|im_end|>": end}


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_token_outside_the_vocabulary_is_refused(model: NativeModel, token: int) -> None:
    for call in (model.token_to_piece, model.is_eog, model.is_control, lambda t: model.detokenize([t])):
        with pytest.raises(ValueError, match="outside the vocabulary of"):
            call(token)


def test_token_ids_are_whole_numbers_in_a_row(model: NativeModel) -> None:
    with pytest.raises(ValueError, match="whole numbers in one dimension"):
        model.check_tokens(np.zeros((2, 2), np.int32))
    with pytest.raises(ValueError, match="whole numbers in one dimension"):
        model.check_tokens(np.zeros(2))


def test_a_file_that_is_not_a_model_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        NativeModel(tmp_path / "missing.gguf")
    with pytest.raises(GGUFError, match="is a folder"):
        NativeModel(tmp_path)
    (tmp_path / "zip.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(GGUFError, match="it begins with b'PK"):
        NativeModel(tmp_path / "zip.gguf")


def test_what_llama_cpp_refuses_is_reported_in_its_words(tmp_path: Path) -> None:
    file = GgufBytes.of(toy.write_toy(tmp_path / "toy.gguf"))
    file.set("general.architecture", STRING, b"nonesuch")
    (tmp_path / "other.gguf").write_bytes(file.dump())
    with pytest.raises(ModelLoadError, match="llama.cpp cannot load .*unknown model architecture: 'nonesuch'"):
        NativeModel(tmp_path / "other.gguf")


def test_a_file_that_llama_cpp_would_abort_on_never_reaches_it(tmp_path: Path) -> None:
    """Without the check each of these ends the process: ``GGML_ASSERT`` in llama-model.cpp and llama-vocab.cpp."""
    path = toy.write_toy(tmp_path / "toy.gguf")
    for key, kind, value, message in [
        ("llama.block_count", UINT32, 1000, "llama.block_count is 1000, expected 1 to 512"),
        ("llama.expert_count", UINT32, 600, "llama.expert_count is 600, expected at most 512"),
        ("llama.rope.scaling.type", STRING, b"magic", "llama.rope.scaling.type is 'magic'"),
        ("tokenizer.ggml.tokens", ARRAY, Array(STRING, [b"a"] * len(toy.vocabulary())), "tokens 0 and 1 are both b'a'"),
    ]:
        file = GgufBytes.of(path)
        file.set(key, kind, value)
        (tmp_path / "bad.gguf").write_bytes(file.dump())
        with pytest.raises(GGUFError, match=message):
            NativeModel(tmp_path / "bad.gguf")


def test_a_vocabulary_can_be_loaded_without_a_model(tmp_path: Path) -> None:
    file = GgufBytes.of(toy.write_toy(tmp_path / "toy.gguf"))
    file.tensors.clear()
    (tmp_path / "vocabulary.gguf").write_bytes(file.dump())
    with NativeModel(tmp_path / "vocabulary.gguf", vocab_only=True) as model:
        assert model.n_vocab == len(toy.vocabulary())
    with pytest.raises(GGUFError, match=r"tensor token_embd\.weight is missing"):
        NativeModel(tmp_path / "vocabulary.gguf")


def test_gpu_layers_are_refused_if_the_build_has_no_gpu(tmp_path: Path) -> None:
    from llamalite.native.library import llama

    if llama().llama_supports_gpu_offload():
        pytest.skip("the installed llama.cpp has a GPU backend")
    path = toy.write_toy(tmp_path / "toy.gguf")
    with pytest.raises(ModelLoadError, match="has no GPU backend .*: use no GPU, or install it with a GPU backend"):
        NativeModel(path, n_gpu_layers=-1)


def test_progress_is_reported_and_an_error_in_it_ends_the_load(tmp_path: Path) -> None:
    path = toy.write_toy(tmp_path / "toy.gguf")
    seen: list[float] = []
    NativeModel(path, progress=seen.append).close()
    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert seen == sorted(seen)

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        NativeModel(path, progress=stop)


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    model = NativeModel(toy.write_toy(tmp_path / "toy.gguf"))
    model.close()
    model.close()
    with pytest.raises(ValueError, match="closed"):
        model.tokenize("a", add_special=False, parse_special=False)


def _of_bytes(folder: Path, pre: str) -> Path:
    """A model with a byte-level BPE of single bytes, cut as `pre` has it."""
    file = GgufBytes.of(toy.write_toy(folder / "toy.gguf"))
    tokens = [letter.encode() for letter in tokenizer_toys.byte_alphabet()]
    file.set("tokenizer.ggml.model", STRING, b"gpt2")
    file.set("tokenizer.ggml.pre", STRING, pre.encode())
    file.set("tokenizer.ggml.tokens", ARRAY, Array(STRING, tokens))
    file.set("tokenizer.ggml.merges", ARRAY, Array(STRING, []))
    for key in ("scores", "token_type", "eot_token_id", "unknown_token_id", "bos_token_id", "eos_token_id"):
        file.drop(f"tokenizer.ggml.{key}")
    path = folder / "bytes.gguf"
    path.write_bytes(file.dump())
    return path


@pytest.mark.parametrize("pre", ["default", "deepseek-llm", "llama-bpe"])
def test_a_long_run_of_one_kind_of_character_is_tokenized(pre: str, tmp_path: Path) -> None:
    """On the stack of its own thread: std::regex recurses, and on the usual one these texts end the process."""
    with NativeModel(_of_bytes(tmp_path, pre), vocab_only=True) as model:
        for text in ("7" * 200_000, "字" * 100_000, "a" * 200_000):
            ids = model.tokenize(text, add_special=False, parse_special=False)
            assert model.detokenize(ids).decode() == text


@pytest.mark.parametrize("raw", [b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf7\xbf\xbf\xbf"])
def test_a_number_beyond_unicode_that_would_end_the_process_is_refused(raw: bytes, tmp_path: Path) -> None:
    with NativeModel(_of_bytes(tmp_path, "llama-bpe"), vocab_only=True) as model:
        with pytest.raises(
            LlamaliteError, match="byte 4 of the text begins f. .. .. .., a character beyond Unicode's last"
        ):
            model.tokenize(b"abc " + raw + b" abc", add_special=False, parse_special=False)
        for damaged in (b"\xf4\x8f\xbf\xbf", b"\xff\xfe\xf8", b"\xed\xa0\x80", raw[:3], raw[:3] + b"a"):
            assert len(model.tokenize(damaged, add_special=False, parse_special=False))
