"""A LoRA adapter is checked against its model before either is loaded, and refused if it is foreign or damaged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import toy
from gguf_bytes import STRING, UINT32, GgufBytes, Tensor

from llamalite.converters.checkpoints import open_checkpoint
from llamalite.errors import GGUFError
from llamalite.gguf_check import check_adapter, checked_header
from llamalite.model import Model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("adapter") / "toy.gguf")


def adapter() -> GgufBytes:
    """An adapter of rank 2 for one of the toy's matrices; all its numbers are 0."""
    halves = [(b"lora_a", [64, 2]), (b"lora_b", [2, 64])]
    file = GgufBytes(tensors=[Tensor(b"blk.0.attn_q.weight." + half, shape, 0, bytes(512)) for half, shape in halves])
    for key, value in (("general.type", b"adapter"), ("adapter.type", b"lora"), ("general.architecture", b"llama")):
        file.set(key, STRING, value)
    return file


def shaped(i: int, *shape: int) -> Callable[[GgufBytes], object]:
    return lambda file: setattr(file.tensors[i], "shape", list(shape))


def named(name: bytes) -> Callable[[GgufBytes], object]:
    def edit(file: GgufBytes) -> None:
        for tensor in file.tensors:
            tensor.name = tensor.name.replace(b"blk.0.attn_q.weight", name)

    return edit


CASES: dict[str, tuple[Callable[[GgufBytes], object], str]] = {
    "a model": (
        lambda f: f.set("general.type", STRING, b"model"),
        "general.type is 'model', expected 'adapter'",
    ),
    "no type": (lambda f: f.drop("general.type"), "is not a LoRA adapter: its key general.type is missing"),
    "a type that is a number": (lambda f: f.set("general.type", UINT32, 1), "its key general.type is uint32"),
    "another kind": (
        lambda f: f.set("adapter.type", STRING, b"vera"),
        "adapter.type is 'vera', expected 'lora'",
    ),
    "another family": (
        lambda f: f.set("general.architecture", STRING, b"qwen2"),
        "is not an adapter for toy.gguf: its architecture is qwen2, the model's llama",
    ),
    "a weight that is a whole number": (
        lambda f: f.set("adapter.lora.alpha", UINT32, 8),
        "key adapter.lora.alpha should be a float32, found uint32; the file is damaged",
    ),
    "half a pair": (lambda f: f.tensors.pop(), "tensor blk.0.attn_q.weight has lora_a only"),
    "another tensor": (
        lambda f: f.tensors.append(Tensor(b"other", [8], 0, bytes(32))),
        "tensor other should end in .lora_a or .lora_b",
    ),
    "a layer too many": (
        named(b"blk.9.attn_q.weight"),
        "it changes blk.9.attn_q.weight, which the model does not have",
    ),
    "a narrower model": (shaped(0, 32, 4), "are [32, 4] and [2, 64], and the matrix is [64, 64]"),
    "two ranks": (shaped(1, 4, 32), "are [64, 2] and [4, 32], and the matrix is [64, 64]"),
    "a third dimension": (shaped(1, 2, 32, 2), "are [64, 2] and [2, 32, 2], and the matrix is [64, 64]"),
    "the embedding as if it were a matrix": (named(b"token_embd.weight"), "its factors for token_embd.weight are"),
    "whole numbers": (
        lambda f: setattr(f.tensors[0], "type", 26),
        "lora_a is of type I32, which llama.cpp cannot multiply",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_does_not_fit_is_refused(case: str, path: Path, tmp_path: Path) -> None:
    file, model = adapter(), checked_header(path)
    edit, message = CASES[case]
    (tmp_path / "a.gguf").write_bytes(file.dump())
    assert check_adapter(tmp_path / "a.gguf", model).tensors[0].shape == (64, 2)
    edit(file)
    (tmp_path / "a.gguf").write_bytes(file.dump())
    with pytest.raises(GGUFError, match=re.escape(message)):
        check_adapter(tmp_path / "a.gguf", model)


def test_an_adapter_that_is_cut_short_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(adapter().dump()[:-8])
    with pytest.raises(GGUFError, match="lora_b ends at byte"):
        check_adapter(tmp_path / "a.gguf", checked_header(path))


def test_a_wrong_adapter_is_reported_before_the_model_is_loaded(path: Path, tmp_path: Path) -> None:
    file = adapter()
    named(b"blk.9.attn_q.weight")(file)
    (tmp_path / "a.gguf").write_bytes(file.dump())
    loaded: list[float] = []
    with pytest.raises(GGUFError, match="is not an adapter for"):
        Model(path, n_threads=1, lora=tmp_path / "a.gguf", progress=loaded.append)
    assert loaded == []


def test_llama_cpp_loads_every_adapter_that_passes(path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(adapter().dump())
    with Model(path, n_threads=1, lora=tmp_path / "a.gguf") as changed, Model(path, n_threads=1) as plain:
        both = [model.generate("once", max_tokens=8, temperature=0).text for model in (changed, plain)]
    assert both[0] == both[1]


def test_an_adapter_of_an_embedding_that_is_the_output_too_is_refused(path: Path, tmp_path: Path) -> None:
    """llama.cpp 0.3.36 would load it, and abort the process in the first decode (GGML_ASSERT of ggml_mul_mat)."""
    n_vocab, tied = len(toy.vocabulary()), GgufBytes.of(path)
    tied.drop("output.weight")
    (tmp_path / "tied.gguf").write_bytes(tied.dump())
    file = adapter()
    file.tensors = [
        Tensor(b"token_embd.weight.lora_a", [2, n_vocab], 0, bytes(8 * n_vocab)),
        Tensor(b"token_embd.weight.lora_b", [2, 64], 0, bytes(512)),
    ]
    (tmp_path / "a.gguf").write_bytes(file.dump())
    with pytest.raises(GGUFError, match=r"which is also the output matrix of tied\.gguf"):
        check_adapter(tmp_path / "a.gguf", checked_header(tmp_path / "tied.gguf"))
    with Model(path, n_threads=1, lora=tmp_path / "a.gguf") as model:
        assert model.generate("once", max_tokens=2).finish_reason in ("length", "stop")


def test_an_adapter_in_the_place_of_a_model_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "lora.gguf"
    path.write_bytes(adapter().dump())
    message = r"is an adapter \(LoRA\), not a whole model: run its base model with it, llamalite run BASE --lora lora"
    with pytest.raises(GGUFError, match=message):
        open_checkpoint(path)
    with pytest.raises(GGUFError, match=message):
        Model(path)
