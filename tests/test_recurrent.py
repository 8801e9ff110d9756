"""A recurrent model (Mamba): it loads and answers; what its single state cannot do is done the slow way, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import toy

from llamalite.model import Model

ENDLESS = {toy.EOS: -float("inf")}


def write_mamba(path: Path, *, n_embd: int = 32, n_layer: int = 2, seed: int = 0) -> Path:
    """Write a Mamba of `n_layer` layers with seeded random weights and the toys' vocabulary."""
    rng = np.random.default_rng(seed)
    d_inner, d_state, d_conv, dt_rank = 2 * n_embd, 8, 4, 4
    pieces = toy.vocabulary()
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(2048)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(n_layer)
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(dt_rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece for piece, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_bos_token_id(toy.BOS)
    writer.add_eos_token_id(toy.EOS)

    def weights(*shape: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(scale / shape[-1] ** 0.5)
        return values

    writer.add_tensor("token_embd.weight", weights(len(pieces), n_embd, scale=n_embd**0.5))
    for i in range(n_layer):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(n_embd, np.float32))
        writer.add_tensor(f"blk.{i}.ssm_in.weight", weights(2 * d_inner, n_embd))
        writer.add_tensor(f"blk.{i}.ssm_conv1d.weight", weights(d_inner, d_conv))
        writer.add_tensor(f"blk.{i}.ssm_conv1d.bias", np.zeros(d_inner, np.float32))
        writer.add_tensor(f"blk.{i}.ssm_x.weight", weights(dt_rank + 2 * d_state, d_inner))
        writer.add_tensor(f"blk.{i}.ssm_dt.weight", weights(d_inner, dt_rank))
        writer.add_tensor(f"blk.{i}.ssm_dt.bias", np.zeros(d_inner, np.float32))
        writer.add_tensor(f"blk.{i}.ssm_a", -np.abs(weights(d_inner, d_state)) - np.float32(0.1))
        writer.add_tensor(f"blk.{i}.ssm_d", np.ones(d_inner, np.float32))
        writer.add_tensor(f"blk.{i}.ssm_out.weight", weights(n_embd, d_inner))
    writer.add_tensor("output_norm.weight", np.ones(n_embd, np.float32))
    writer.add_tensor("output.weight", weights(len(pieces), n_embd, scale=3.0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model(write_mamba(tmp_path_factory.mktemp("mamba") / "mamba.gguf"), n_threads=1) as loaded:
        yield loaded


def test_it_loads_and_says_that_it_is_recurrent(model: Model) -> None:
    assert model.native.is_recurrent
    assert model.generate("once upon a time", max_tokens=6, temperature=0, logit_bias=ENDLESS).totals.n_generated == 6


def test_a_prompt_that_continues_the_state_is_not_read_again_and_others_are(model: Model) -> None:
    model.clear()
    prompt = model.tokenize("once upon a time")
    said = model.generate(prompt, max_tokens=4, temperature=0, logit_bias=ENDLESS)
    going_on = model.generate([*prompt, *said.tokens, 300], max_tokens=1)
    assert going_on.totals.n_cached == len(prompt) + 3
    assert model.generate([*prompt, 301], max_tokens=1).totals.n_cached == 0
    again = model.generate(prompt, max_tokens=4, temperature=0, logit_bias=ENDLESS)
    assert again.tokens == said.tokens


def test_a_batch_works_without_a_shared_prefix(model: Model) -> None:
    prompts = [f"once upon a time {word}" for word in ("yes", "no", "the story")]
    found = model.generate_batch(prompts, parallel=2, max_tokens=5, temperature=0, logit_bias=ENDLESS)
    assert [one.totals.n_cached for one in found] == [0, 0, 0]
    single = [model.generate(prompt, max_tokens=5, temperature=0, logit_bias=ENDLESS) for prompt in prompts]
    assert [one.tokens[0] for one in found] == [one.tokens[0] for one in single]


def test_cancelling_in_a_prompt_leaves_it_usable(model: Model) -> None:
    stream = model.stream(model.tokenize("once upon a time") * 100, max_tokens=3)
    stream.cancel()
    assert [piece.finish_reason for piece in stream] == ["cancelled"]
    assert model.generate("once", max_tokens=2, logit_bias=ENDLESS).finish_reason == "length"


def test_its_state_is_saved_and_resumed(model: Model, tmp_path: Path) -> None:
    prompt = model.tokenize("once upon a time there was")
    model.generate(prompt, max_tokens=0)
    model.save_session(tmp_path / "mamba.session")
    want = model.generate([*prompt, 300], max_tokens=4, temperature=0, logit_bias=ENDLESS)
    model.clear()
    model.load_session(tmp_path / "mamba.session")
    found = model.generate([*prompt, 300], max_tokens=4, temperature=0, logit_bias=ENDLESS)
    assert found.totals.n_cached == len(prompt)
    assert found.tokens == want.tokens
