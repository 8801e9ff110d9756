"""Logits of converted F32 files in llama.cpp, compared with those of the checkpoint in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llamalite.converters import convert
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel

Floats = npt.NDArray[np.float32]

EXACT_TOLERANCE = 1e-4
DEFAULT_TOLERANCE = 5e-2  # flash attention rounds K and V to float16


def _theirs(checkpoint: Path, ids: list[int]) -> Floats:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        logits: Floats = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def _ours(path: Path, ids: list[int], *, exact: bool) -> Floats:
    with NativeModel(path) as model, NativeContext(model, ContextOptions(n_ctx=512, exact=exact)) as context:
        context.decode(ids, np.arange(len(ids)), 0, np.ones(len(ids), bool))
        logits: Floats = context.logits().copy()
        return logits


def _compare(checkpoint: Path, ids: list[int], scratch: Path) -> None:
    path = convert(checkpoint, scratch / "f32.gguf", qtype="F32").path
    theirs = _theirs(checkpoint, ids)
    best_two = np.sort(theirs, axis=1)[:, -2:]
    gap = best_two[:, 1] - best_two[:, 0]
    for exact, tolerance in ((True, EXACT_TOLERANCE), (False, DEFAULT_TOLERANCE)):
        ours = _ours(path, ids, exact=exact)
        assert np.abs(ours - theirs).max() < tolerance
        clear = gap > 2 * tolerance
        assert clear.any()
        assert (ours.argmax(axis=1) == theirs.argmax(axis=1))[clear].all()


@pytest.mark.parity
@pytest.mark.reference
def test_logits_of_a_trained_checkpoint_are_those_of_transformers(shared: Path, tmp_path: Path) -> None:
    checkpoint = shared / "stories260k"
    text = "Once upon a time, there was a little girl named Lily. She liked to play with her dog in the park. " * 8
    path = convert(checkpoint, tmp_path / "vocabulary.gguf", qtype="F32").path
    with NativeModel(path) as model:
        ids = model.tokenize(text, add_special=True, parse_special=False).tolist()[:300]
    assert len(ids) > 200
    _compare(checkpoint, ids, tmp_path)


@pytest.fixture
def llama3_style(tmp_path: Path) -> Path:
    """A seeded checkpoint as transformers itself saves it: grouped heads, tied embeddings, Llama 3's rope scaling."""
    import torch
    import toy_checkpoint
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "llama3-style"
    folder.mkdir()
    n_vocab = toy_checkpoint.write_bpe(folder)
    settings: dict[str, Any] = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=n_vocab, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=1024, rope_parameters=settings, tie_word_embeddings=True,
        rms_norm_eps=1e-5, initializer_range=0.08,
    ))  # fmt: skip
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parity
def test_logits_of_a_llama3_style_checkpoint_are_those_of_transformers(llama3_style: Path, tmp_path: Path) -> None:
    ids = np.random.default_rng(7).integers(0, 256, 300).tolist()
    _compare(llama3_style, ids, tmp_path)
