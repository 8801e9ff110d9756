"""The NumPy forward pass gives the same results as transformers, for every feature that it claims."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_checkpoint import write_checkpoint

from llamalite.converters import convert, reference
from llamalite.converters.checkpoints import open_checkpoint
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {"n_head_kv": 4},
    "grouped heads": {"n_head_kv": 1},
    "tied": {"tied": True},
    "biases": {"bias": True},
    "head_dim of its own": {"head_dim": 32},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 64}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "yarn, set": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
                                   "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3}},
    "yarn, mscale": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
                                      "mscale": 1.0, "mscale_all_dim": 0.5}},
    "float16": {"dtype": "F16"},
}  # fmt: skip
IDS = np.random.default_rng(4).integers(3, 300, 96).tolist()


@pytest.fixture(params=FEATURES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shape = {"n_embd": 64, "n_ff": 96, "n_head": 4, "n_head_kv": 2} | FEATURES[request.param]
    return write_checkpoint(tmp_path / "toy", **shape)


def test_llama_cpp_computes_the_same(checkpoint: Path, tmp_path: Path) -> None:
    with open_checkpoint(checkpoint) as opened:
        expected = reference.forward(opened, IDS)
    path = convert(checkpoint, tmp_path / "f32.gguf", qtype="F32").path
    with NativeModel(path) as model, NativeContext(model, ContextOptions(n_ctx=256, exact=True)) as context:
        context.decode(IDS, np.arange(len(IDS)), 0, np.ones(len(IDS), np.bool_))
        assert np.abs(context.logits() - expected).max() < 1e-4


@pytest.mark.parity
def test_transformers_computes_the_same(checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with open_checkpoint(checkpoint) as opened:
        expected = reference.forward(opened, IDS)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        theirs = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(theirs - expected).max() < 1e-4


def test_a_pair_is_turned_by_its_angle_in_either_order() -> None:
    x = np.array([[[1.0, 0.0, 0.0, 2.0]]], np.float32)  # [n_head 1, n 1, head_dim 4]
    cos = np.array([[0.0, 1.0]], np.float32)  # a quarter turn, and none
    sin = np.array([[1.0, 0.0]], np.float32)
    assert reference.rotate(x, cos, sin, pairs=False).tolist() == [[[0.0, 0.0, 1.0, 2.0]]]
    assert reference.rotate(x, cos, sin, pairs=True).tolist() == [[[0.0, 1.0, 0.0, 2.0]]]


def test_norm_and_gate_by_hand() -> None:
    normed = reference.rms_norm(np.array([[3.0, 4.0]], np.float32), np.array([1.0, 2.0], np.float32), 0.0)
    assert normed.tolist()[0] == pytest.approx([3 / math.sqrt(12.5), 8 / math.sqrt(12.5)])
    assert reference.silu(np.array([0.0, -200.0, 1.0], np.float32)).tolist() == pytest.approx(
        [0, 0, 1 / (1 + math.e**-1)]
    )
