"""Every form of a model becomes the same GGUF file."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import gguf
import pytest
from checkpoint_files import (
    as_meta,
    as_pickles,
    load_safetensors,
    pad_vocabulary,
    ranks_of,
    save_archive,
    storage,
    tensor,
    write_ranks,
)
from toy_checkpoint import write_checkpoint

from llamalite.converters import convert


def converted(folder: Path, out: Path, qtype: str = "Q4_K_M") -> Path:
    return convert(folder, out, qtype=qtype).path


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("form", ["one file", "three shards", "legacy", "legacy shards"])
def test_pickles_become_the_same_file_as_safetensors(tmp_path: Path, dtype: str, form: str) -> None:
    folder = write_checkpoint(tmp_path / "a" / "toy", dtype=dtype)  # type: ignore[arg-type]
    n_shards = 3 if "shards" in form else 1
    pickles = as_pickles(folder, tmp_path / "b" / "toy", n_shards, legacy="legacy" in form)
    expected = converted(folder, tmp_path / "a.gguf").read_bytes()
    assert converted(pickles, tmp_path / "b.gguf").read_bytes() == expected


def test_a_tied_embedding_named_twice_by_a_pickle_is_written_once(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a" / "toy", tied=True)
    pickles = as_pickles(folder, tmp_path / "b" / "toy")
    tensors = load_safetensors(folder / "model.safetensors")
    state, storages = {}, {}
    for i, (name, one) in enumerate(tensors.items()):
        state[name] = tensor(storage(str(i), one.dtype, one.array.size), one.array.shape)
        storages[str(i)] = one.raw
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    save_archive(pickles / "pytorch_model.bin", state, storages)
    expected = converted(folder, tmp_path / "a.gguf").read_bytes()
    assert converted(pickles, tmp_path / "b.gguf").read_bytes() == expected


def test_memory_does_not_grow_with_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMALITE_KERNELS", "ggml")  # the larger checkpoint alone would be worth loading Numba
    peaks = []
    for n_layer in (2, 6):
        sizes = {"n_layer": n_layer, "n_embd": 512, "n_ff": 1024}
        folder = as_pickles(write_checkpoint(tmp_path / f"hf{n_layer}", **sizes), tmp_path / f"bin{n_layer}")  # type: ignore[arg-type]
        tracemalloc.start()
        try:
            convert(folder, tmp_path / f"{n_layer}.gguf", qtype="Q8_0", n_threads=2)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_metas_llama_3_is_converted_with_its_own_tokenizer(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hf", n_layer=1, n_head=8, n_head_kv=2, n_ff=704, tokenizer="gpt2")
    pad_vocabulary(folder, 64)
    ranks = ranks_of(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    meta = as_meta(folder, tmp_path / "meta", 2, embedding_rows=True, use_scaled_rope=True, rope_theta=500000.0)
    write_ranks(meta, ranks)
    fields = gguf.GGUFReader(converted(meta, tmp_path / "toy.gguf", "Q8_0")).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert fields["tokenizer.ggml.pre"].contents() == "llama-bpe"
    assert tokens[len(ranks) + 8 : len(ranks) + 11] == ["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    assert fields["tokenizer.ggml.bos_token_id"].contents() == tokens.index("<|begin_of_text|>")
    assert fields["llama.rope.freq_base"].contents() == 500000.0


@pytest.mark.parametrize(("n_shards", "n_head_kv"), [(1, 8), (2, 8), (4, 2), (8, 8), (16, 8)])
def test_metas_format_gives_the_same_tensors_as_hugging_faces(tmp_path: Path, n_shards: int, n_head_kv: int) -> None:
    folder = write_checkpoint(
        tmp_path / "hf", n_embd=256, n_head=max(8, n_shards), n_head_kv=n_head_kv, n_ff=704, dtype="F16"
    )
    pad_vocabulary(folder, n_shards)
    meta = as_meta(folder, tmp_path / "meta", n_shards)
    (tmp_path / "tokenizer.model").write_bytes((meta / "tokenizer.model").read_bytes())
    (meta / "tokenizer.model").unlink()  # Meta's first releases have one for the folders of all sizes, beside them
    expected = gguf.GGUFReader(converted(folder, tmp_path / "a.gguf"))
    actual = gguf.GGUFReader(converted(meta, tmp_path / "b.gguf"))
    assert [t.name for t in actual.tensors] == [t.name for t in expected.tensors]
    for made, other in zip(actual.tensors, expected.tensors, strict=True):
        assert made.tensor_type == other.tensor_type, made.name
        assert made.data.tobytes() == other.data.tobytes(), made.name
    for key in expected.fields:
        if key.startswith("llama.") and not key.endswith("context_length"):
            assert actual.fields[key].contents() == expected.fields[key].contents(), key


@pytest.mark.parity
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_saved_by_transformers_and_by_torch_gives_the_same_file(tmp_path: Path, tied: bool) -> None:
    import torch
    import transformers

    toy = write_checkpoint(tmp_path / "toy", n_layer=1)
    n_vocab = json.loads((toy / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=n_vocab, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    safe, pickled = tmp_path / "a" / "model", tmp_path / "b" / "model"
    model.save_pretrained(safe)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(toy / name, safe)
    shutil.copytree(safe, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    expected = converted(safe, tmp_path / "a.gguf").read_bytes()
    assert converted(pickled, tmp_path / "b.gguf").read_bytes() == expected
