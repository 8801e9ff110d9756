"""Meta's own format: shards are joined, params.json is understood, and files of different models are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    as_meta,
    load_safetensors,
    pad_vocabulary,
    random_weights,
    save_legacy,
    save_safetensors,
    save_torch,
    storage,
    tensor,
)
from toy_checkpoint import write_checkpoint

from llamalite.converters.checkpoints import Checkpoint, open_checkpoint
from llamalite.errors import CheckpointError, UnsupportedArchitectureError

# As released: shards, query and key heads, whether the embedding is split by rows (Llama 3), additions to params.json.
LAYOUTS: dict[str, tuple[int, int, int, bool, dict[str, Any]]] = {
    "7B": (1, 8, 8, False, {"n_kv_heads": None, "norm_eps": 1e-6}),
    "13B": (2, 8, 8, False, {"n_kv_heads": None, "norm_eps": 1e-6}),
    "30B": (4, 8, 8, False, {"n_kv_heads": None, "norm_eps": 1e-6}),
    "65B": (8, 8, 8, False, {"n_kv_heads": None}),
    "2-70B": (8, 16, 8, False, {"ffn_dim_multiplier": 1.3}),
    "3-8B": (1, 8, 2, True, {"ffn_dim_multiplier": 1.3, "rope_theta": 500000.0}),
    "3-70B": (8, 16, 8, True, {"ffn_dim_multiplier": 1.3, "rope_theta": 500000.0}),
    "3.1-405B": (16, 32, 8, True, {"ffn_dim_multiplier": 1.3, "rope_theta": 500000.0}),
}


def write_pair(tmp_path: Path, layout: str, **more: Any) -> tuple[Path, Path]:
    """One toy model of this layout, in Hugging Face's form and in Meta's."""
    n_shards, n_head, n_head_kv, by_rows, params = LAYOUTS[layout]
    n_ff = 896 if "ffn_dim_multiplier" in params else 704  # of 256, rounded up to 64
    folder = write_checkpoint(
        tmp_path / "hf", n_embd=256, n_head=n_head, n_head_kv=n_head_kv, n_ff=n_ff, dtype="F16", **more
    )
    pad_vocabulary(folder, 16)
    return folder, as_meta(folder, tmp_path / "meta", n_shards, embedding_rows=by_rows, **params)


def read_all(checkpoint: Checkpoint, name: str, step: int) -> bytes:
    tensor = checkpoint.tensors[name]
    out = np.empty(tensor.n_bytes, np.uint8)
    for first in range(0, tensor.n_rows, step):
        n = min(step, tensor.n_rows - first)
        tensor.read_rows(first, n, out[first * tensor.row_bytes : (first + n) * tensor.row_bytes])
    return out.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_are_joined_to_hugging_faces_tensors(tmp_path: Path, layout: str) -> None:
    folder, meta = write_pair(tmp_path, layout)
    whole = load_safetensors(folder / "model.safetensors")
    with open_checkpoint(meta) as checkpoint:
        assert not checkpoint.permuted
        assert checkpoint.tensors.keys() == whole.keys()
        for name, tensor in whole.items():
            assert (checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape) == (
                tensor.dtype,
                tensor.array.shape,
            )
            if "q_proj" in name or "k_proj" in name:
                continue  # their rows are in another order: compared in finished files below
            assert read_all(checkpoint, name, step=37) == tensor.raw, name


@pytest.mark.parametrize("layout", ["7B", "65B", "2-70B", "3-70B"])
def test_the_config_is_hugging_faces(tmp_path: Path, layout: str) -> None:
    folder, meta = write_pair(tmp_path, layout)
    expected = json.loads((folder / "config.json").read_text())
    params = LAYOUTS[layout][4]
    expected |= {"rms_norm_eps": params.get("norm_eps", 1e-5), "rope_theta": params.get("rope_theta", 10000.0)}
    with open_checkpoint(meta) as checkpoint:
        for key in checkpoint.config.keys() - {"max_position_embeddings"}:  # not in params.json: see below
            assert checkpoint.config[key] == expected[key], key


# params.json of the releases, and each one's values in Hugging Face's config.json: width of the feed-forward network,
# context length, and factor of the rotary scaling.
RELEASES: dict[str, tuple[dict[str, Any], int, tuple[int, int, float | None]]] = {
    "LLaMA 7B": ({"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-6}, 32000,
                 (11008, 2048, None)),
    "LLaMA 13B": ({"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-6}, 32000,
                  (13824, 2048, None)),
    "LLaMA 65B": ({"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-5}, 32000,
                  (22016, 2048, None)),
    "Llama 2 7B": ({"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-5}, 32000,
                   (11008, 4096, None)),
    "Llama 2 70B": ({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8,
                     "n_layers": 80, "norm_eps": 1e-5}, 32000, (28672, 4096, None)),
    "CodeLlama 7B": ({"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-5,
                      "ffn_dim_multiplier": 1.0, "rope_theta": 1000000}, 32016, (11008, 16384, None)),
    "Llama 3 8B": ({"dim": 4096, "multiple_of": 1024, "ffn_dim_multiplier": 1.3, "n_heads": 32, "n_kv_heads": 8,
                    "n_layers": 32, "norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": 128256}, 128256,
                   (14336, 8192, None)),
    "Llama 3.1 70B": ({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8,
                       "n_layers": 80, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}, 128256,
                      (28672, 131072, 8.0)),
    "Llama 3.2 1B": ({"dim": 2048, "multiple_of": 256, "ffn_dim_multiplier": 1.5, "n_heads": 32, "n_kv_heads": 8,
                      "n_layers": 16, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}, 128256,
                     (8192, 131072, 32.0)),
    "Llama 3.2 3B": ({"dim": 3072, "multiple_of": 256, "ffn_dim_multiplier": 1.0, "n_heads": 24, "n_kv_heads": 8,
                      "n_layers": 28, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}, 128256,
                     (8192, 131072, 32.0)),
}  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
def test_params_json_of_each_release_is_understood(tmp_path: Path, release: str) -> None:
    params, n_vocab, expected = RELEASES[release]
    (tmp_path / "params.json").write_text(json.dumps(params))
    save_hollow(tmp_path / "consolidated.00.pth", (n_vocab, params["dim"]))
    with open_checkpoint(tmp_path) as checkpoint:
        config = checkpoint.config
    scaling = config.get("rope_scaling", {}).get("factor")
    assert (config["intermediate_size"], config["max_position_embeddings"], scaling) == expected
    assert config["num_key_value_heads"] == params.get("n_kv_heads", params["n_heads"])
    assert (config["bos_token_id"], config["eos_token_id"]) == ((128000, 128001) if n_vocab == 128256 else (1, 2))


def save_hollow(path: Path, shape: tuple[int, int]) -> None:
    """A file with one F16 embedding of this real shape, all of it a hole that takes no disk."""
    n = shape[0] * shape[1]
    state = {"tok_embeddings.weight": tensor(storage("0", "F16", n, legacy=True), shape)}
    save_legacy(path, state, {"0": b""}, {"0": n})
    os.truncate(path, path.stat().st_size + 2 * n)


def test_a_tied_embedding_stored_twice_is_written_once(tmp_path: Path) -> None:
    folder, _ = write_pair(tmp_path, "7B")
    tensors = load_safetensors(folder / "model.safetensors")
    with open_checkpoint(tmp_path / "meta") as checkpoint:
        assert "lm_head.weight" in checkpoint.tensors
    save_safetensors(folder / "model.safetensors", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    with open_checkpoint(as_meta(folder, tmp_path / "tied", embedding_rows=True)) as checkpoint:
        assert "lm_head.weight" not in checkpoint.tensors
        assert checkpoint.config["tie_word_embeddings"] is True


def test_missing_shards_are_named(tmp_path: Path) -> None:
    _, meta = write_pair(tmp_path, "30B")
    (meta / "consolidated.03.pth").unlink()
    with pytest.raises(CheckpointError, match=r"has 3 of 4 files consolidated\.NN\.pth"):
        open_checkpoint(meta)
    (meta / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError, match=r"lacks consolidated\.01\.pth, but has consolidated\.02\.pth"):
        open_checkpoint(meta)
    for shard in meta.glob("*.pth"):
        shard.unlink()
    with pytest.raises(CheckpointError, match=r"no consolidated\.00\.pth \(found params\.json"):
        open_checkpoint(meta)


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    _, meta = write_pair(tmp_path, "13B")
    save_torch(meta / "consolidated.01.pth", {"norm.weight": random_weights((256,))})
    with pytest.raises(CheckpointError, match=r"in only one of consolidated\.00\.pth and \.01\.pth"):
        open_checkpoint(meta)


def test_shards_whose_copies_of_a_head_differ_are_refused(tmp_path: Path) -> None:
    _, meta = write_pair(tmp_path, "3.1-405B")
    (meta / "consolidated.03.pth").write_bytes((meta / "consolidated.05.pth").read_bytes())
    with pytest.raises(CheckpointError, match=r"wk.weight differs between consolidated\.02\.pth and \.03\.pth, but 8"):
        open_checkpoint(meta)


def test_params_may_be_nested_under_model(tmp_path: Path) -> None:
    _, meta = write_pair(tmp_path, "7B")
    with open_checkpoint(meta) as checkpoint:
        expected = checkpoint.config
    params = json.loads((meta / "params.json").read_text())
    (meta / "params.json").write_text(json.dumps({"model": params}))
    with open_checkpoint(meta) as checkpoint:
        assert checkpoint.config == expected


def test_shards_of_other_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text('{"dim": 4, "n_heads": 1, "n_layers": 1}')
    save_torch(tmp_path / "consolidated.00.pth", {"output.weight": random_weights((4, 4))})
    save_torch(tmp_path / "consolidated.01.pth", {"output.weight": random_weights((3, 4))})
    with pytest.raises(CheckpointError, match=r"output.weight is F32 \[3, 4\] in consolidated.01.pth and F32 \[4, 4\]"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["vision_model.class_embedding", "layers.0.feed_forward.experts.w1", "layers.x.ffn_norm.weight"]
)
def test_tensors_of_other_models_are_refused_by_name(tmp_path: Path, name: str) -> None:
    _, meta = write_pair(tmp_path, "7B")
    save_torch(meta / "consolidated.00.pth", {name: random_weights((2, 2))})
    with pytest.raises(
        UnsupportedArchitectureError, match=f"holds {name}, which is not a tensor of a LLaMA text model"
    ):
        open_checkpoint(meta)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dim": "4096"}, "dim is '4096', expected a whole number from 1 to"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_heads": None}, "n_heads is missing"),
        ({"norm_eps": -1}, "norm_eps is -1, expected a positive number"),
        ({"ffn_dim_multiplier": "1.3"}, "ffn_dim_multiplier is '1.3'"),
        ({"moe": {"num_experts": 8}}, "mixture of experts"),
        ({"quantization_args": {"scheme": "int4_weight_int8_dynamic_activation"}}, "already quantized"),
    ],
)
def test_params_that_make_no_sense_are_named(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    folder = write_checkpoint(tmp_path / "hf", n_embd=64, n_ff=192)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(as_meta(folder, tmp_path / "meta", **params))
