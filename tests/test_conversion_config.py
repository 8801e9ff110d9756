"""Every key that is read from configs, with every kind of value: converted correctly, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import as_meta, pad_vocabulary
from toy_checkpoint import write_checkpoint

from llamalite.converters import convert, preview, reference
from llamalite.converters.llama import LlamaConfig
from llamalite.errors import LlamaliteError
from llamalite.gguf_check.llama import check_llama
from llamalite.gguf_check.vocabulary import check_vocabulary

VALUES = [
    "null", "true", "false", '""', '"text"', '"32"', "[]", "[1]", '["a"]', "{}", '{"a": 1}', "0", "-1", "1", "2", "0.0",
    "0.5", "-0.5", "1.0", "1.0000001", "1e-46", "1e-30", "1e30", "3e38", "1e300", "1e999", "-1e999", "NaN", "-Infinity",
    "513", "16777216", "2147483647", "4294967296", "1" + "0" * 30, "1" + "0" * 400, "-1" + "0" * 400, '"\\ud800"',
]  # fmt: skip

NUMBERS = [value for value in VALUES if value[:1] in "-0123456789"]

TOP = [
    "architectures", "model_type", "quantization_config", "vocab_size", "hidden_size", "intermediate_size", "head_dim",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
    "hidden_act", "sliding_window", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "text_config",
    "_name_or_path", "torch_dtype",
]  # fmt: skip
ROPE: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0, "rope_theta": 10000.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0,
               "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0,
             "attention_factor": 1.2, "attn_factor": 1.1, "extrapolation_factor": 1.0, "truncate": True, "mscale": 1.0,
             "mscale_all_dim": 0.5, "rope_theta": 10000.0, "partial_rotary_factor": 1, "rope_type": "yarn",
             "type": "yarn"},
}  # fmt: skip
OTHER = {
    "generation_config.json": [
        "eos_token_id", "temperature", "top_k", "top_p", "min_p", "xtc_probability", "penalty_last_n", "penalty_repeat",
        "mirostat", "mirostat_tau", "sequence",
    ],
    "tokenizer_config.json": [
        "add_bos_token", "add_eos_token", "bos_token", "eos_token", "unk_token", "add_prefix_space", "tokenizer_class",
        "additional_special_tokens", "added_tokens_decoder", "chat_template", "clean_up_tokenization_spaces",
    ],
    "added_tokens.json": ["<new>"],
    "chat_template.json": ["chat_template"],
}  # fmt: skip


def write_with(path: Path, settings: dict[str, Any], key: str, value: str) -> None:
    """Write `settings` with the raw JSON text `value` under `key`."""
    text = json.dumps(settings | {key: "@"})
    assert text.count('"@"') == 1
    path.write_text(text.replace('"@"', value))


def assert_sound_or_refused(folder: Path, what: str) -> None:
    """Assert that `folder` converts to what llama.cpp can run, or is refused in one line of our own."""
    try:
        _, (files,) = preview(folder, "F16")
    except LlamaliteError as error:
        message = str(error)
    else:
        (header,) = files
        check_llama(header, check_vocabulary(header, ("llama", "gpt2")))
        return
    assert "\n" not in message, what
    assert len(message) < 2000, what
    with pytest.raises(LlamaliteError):  # and not only by the preview
        convert(folder, folder.parent / "out.gguf", qtype="F16")


@pytest.mark.parametrize("key", TOP)
def test_a_key_of_config_json_is_sound_or_refused(key: str, tmp_path: Path) -> None:
    architecture = "MistralForCausalLM" if key in ("sliding_window", "num_key_value_heads") else "LlamaForCausalLM"
    folder = write_checkpoint(tmp_path / "toy", n_layer=1, n_embd=64, n_ff=64, architectures=[architecture])
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    for value in VALUES:
        write_with(path, settings, key, value)
        assert_sound_or_refused(folder, f"{key}: {value:.50}")


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in ROPE.items() for key in keys])
def test_a_key_of_the_rope_scaling_is_sound_or_refused(kind: str, key: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", n_layer=1, n_embd=64, n_ff=64)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    few = {} if kind == "llama3" else {"factor": 4.0}
    for form, others in (("rope_scaling", ROPE[kind]), ("rope_parameters", few)):
        for value in NUMBERS if form == "rope_parameters" else VALUES:
            write_with(path, settings | {form: "#"}, "unused", "0")
            scaling = json.dumps({"rope_type": kind} | others | {key: "@"}).replace('"@"', value)
            path.write_text(path.read_text().replace('"#"', scaling))
            assert_sound_or_refused(folder, f"{kind} {key}: {value:.50}")


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in OTHER.items() for key in keys])
def test_a_key_of_the_other_configs_is_sound_or_refused(name: str, key: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", n_layer=1, n_embd=64, n_ff=64)
    path = folder / name
    settings = json.loads(path.read_text()) if path.exists() else {}
    for value in VALUES:
        write_with(path, settings, key, value)
        assert_sound_or_refused(folder, f"{name} {key}: {value:.50}")


@pytest.mark.parametrize(
    "key",
    ["dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "ffn_dim_multiplier", "norm_eps", "rope_theta",
     "use_scaled_rope", "rope_scaling_factor", "moe", "quantization_args", "model", "vocab_size"],
)  # fmt: skip
def test_a_key_of_params_json_is_sound_or_refused(key: str, tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path / "hf", n_layer=1, n_embd=64, n_ff=192)
    pad_vocabulary(whole, 2)
    folder = as_meta(whole, tmp_path / "meta", 2)
    path = folder / "params.json"
    settings = json.loads(path.read_text()) | {"use_scaled_rope": True}
    for value in VALUES:
        write_with(path, settings, key, value)
        assert_sound_or_refused(folder, f"{key}: {value:.50}")


WRONG = {
    "rope_theta": ["0", "1", "-10000", '"10000"', "1e999"],
    "factor": ["0", "-1", "0.5", '"4"', "[4]", "true"],
    "mscale": ['"1"', "-1", "[1]", "true", "1e300"],
    "mscale_all_dim": ['"1"', "-1"],
    "original_max_position_embeddings": ["0", "-1", '"64"', "64.5"],
    "beta_fast": ["0", "-1", '"32"'],
    "attention_factor": ["0", '"1"'],
    "extrapolation_factor": ["-1", '"1"'],
    "truncate": ["false", "1"],
}


def test_dynamic_scaling_is_none_within_the_trained_context_and_a_warning(tmp_path: Path) -> None:
    plain = convert(write_checkpoint(tmp_path / "a" / "toy", n_layer=1), tmp_path / "a.gguf", qtype="F32")
    in_4: dict[str, Any] = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    in_5: dict[str, Any] = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    for i, settings in enumerate((in_4, in_5)):
        folder = write_checkpoint(tmp_path / f"b{i}" / "toy", n_layer=1, **settings)
        scaled = convert(folder, tmp_path / "b.gguf", qtype="F32", force=True)
        assert scaled.path.read_bytes() == plain.path.read_bytes()
        assert "dynamic rope scaling by 2 begins after 512 tokens" in scaled.warnings[0]


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_number_that_yarn_cannot_have_is_named(key: str, value: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", n_layer=1, n_embd=64, n_ff=64, rope_scaling="@")
    path = folder / "config.json"
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, key: "#"}
    text = path.read_text().replace('"@"', json.dumps(yarn).replace('"#"', value))
    path.write_text(text)
    with pytest.raises(LlamaliteError, match=rf"config.json: .*\b{key}\b") as caught:
        preview(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ROPE)
@pytest.mark.parametrize("theta", [1.0000002, 2, 3e38])
@pytest.mark.parametrize("factor", [1, 1e6, 3e38])
def test_the_oracle_computes_with_every_scaling_that_is_taken(kind: str, theta: float, factor: float) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2,
        "rope_scaling": {"rope_type": kind} | ROPE[kind] | {"rope_theta": theta, "factor": factor},
    }  # fmt: skip
    read = LlamaConfig.from_dict(config)
    cos, sin = reference.rotary(read.rope, read.head_dim, 8)
    assert np.isfinite(cos).all()
    assert np.isfinite(sin).all()
    factors = read.rope_factors()
    assert factors is None or (np.isfinite(factors).all() and (factors > 0).all())
