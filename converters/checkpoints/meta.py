"""Meta's own format: ``params.json``, and ``consolidated.NN.pth``, one for each GPU that the model was trained on.

    consolidated.00.pth  layers.0.attention.wq.weight [1024, 8192]  ┐
    ...                                                             │ model.layers.0.self_attn.q_proj.weight
    consolidated.07.pth  layers.0.attention.wq.weight [1024, 8192]  ┘ [8192, 8192]

Each file holds its part of every tensor (meta-llama/llama, llama/model.py): ``ColumnParallelLinear`` splits the rows
(wq, wk, wv, w1, w3, output), ``RowParallelLinear`` the columns (wo, w2), norms are in every file, and the embedding is
split by columns in LLaMA 1 and 2 and by rows in Llama 3, as its shape shows. The parts are joined as they are read.
Names and config become those of Hugging Face; q and k rows are already in llama.cpp's order.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.converters.checkpoints import torch_pickle
from llamalite.converters.checkpoints.folder import listing, member, open_member
from llamalite.converters.checkpoints.interface import Checkpoint, SourceTensor, same_rows
from llamalite.converters.checkpoints.json_file import number, read_object, whole_number
from llamalite.errors import CheckpointError, UnsupportedArchitectureError
from llamalite.gguf_check.llama import MAX_CONTEXT

PARAMS = "params.json"
_ROWS, _COLUMNS, _WHOLE, _BY_SHAPE = "rows", "columns", "whole", "by shape"

# Meta's name → Hugging Face's name, and which part of the tensor each file holds.
_TOP = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", _BY_SHAPE),
    "norm.weight": ("model.norm.weight", _WHOLE),
    "output.weight": ("lm_head.weight", _ROWS),
}
_LAYER = {
    "attention.wq.weight": ("self_attn.q_proj.weight", _ROWS),
    "attention.wk.weight": ("self_attn.k_proj.weight", _ROWS),
    "attention.wv.weight": ("self_attn.v_proj.weight", _ROWS),
    "attention.wo.weight": ("self_attn.o_proj.weight", _COLUMNS),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", _ROWS),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", _COLUMNS),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", _ROWS),
    "attention_norm.weight": ("input_layernorm.weight", _WHOLE),
    "ffn_norm.weight": ("post_attention_layernorm.weight", _WHOLE),
}
_LLAMA3_TOKENS = 128_000


@dataclass(frozen=True)
class JoinedTensor(SourceTensor):
    """A matrix in several parts, one below the other, or side by side with `by_columns`."""

    parts: tuple[SourceTensor, ...]
    by_columns: bool

    def read_rows(self, first: int, count: int, into: npt.NDArray[np.uint8]) -> None:
        if self.by_columns:
            width = self.parts[0].row_bytes
            part_rows = np.empty(count * width, np.uint8)
            rows = into.reshape(count, len(self.parts), width)
            for i, part in enumerate(self.parts):
                part.read_rows(first, count, part_rows)
                rows[:, i] = part_rows.reshape(count, width)
            return
        done = 0
        while done < count:
            i, row = divmod(first + done, self.parts[0].n_rows)
            n = min(count - done, self.parts[0].n_rows - row)
            self.parts[i].read_rows(row, n, into[done * self.row_bytes : (done + n) * self.row_bytes])
            done += n


def open_folder(folder: Path) -> Checkpoint:
    """Open the checkpoint of ``params.json`` and ``consolidated.NN.pth`` in `folder`, without reading weights."""
    params = read_object(member(folder, PARAMS))
    if isinstance(params.get("model"), dict):  # in some releases of Llama 3.1
        params = params["model"]
    with contextlib.ExitStack() as on_error:
        files = [on_error.enter_context(contextlib.closing(open_member(folder, name))) for name in _shards(folder)]
        tensors = _join(folder, params, [torch_pickle.read_tensors(file) for file in files])
        config = _config(folder / PARAMS, params, tensors)
        if "lm_head.weight" in tensors and same_rows(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            # Llama 3.2 1B and 3B: Meta's files hold the tied embedding twice, Hugging Face's once.
            del tensors["lm_head.weight"]
            config["tie_word_embeddings"] = True
        on_error.pop_all()
    return Checkpoint(folder, config, tensors, files, permuted=False)


def _shards(folder: Path) -> list[str]:
    shards = sorted(path.name for path in folder.glob("consolidated.*.pth"))
    if not shards:
        raise CheckpointError(f"{folder} has {PARAMS} but no consolidated.00.pth (found {listing(folder)})")
    expected = [f"consolidated.{i:02}.pth" for i in range(len(shards))]
    if shards != expected:
        missing = sorted(set(expected) - set(shards))[0]
        raise CheckpointError(f"{folder} lacks {missing}, but has {shards[-1]}: download what is missing")
    return shards


def _join(folder: Path, params: Mapping[str, Any], shards: list[dict[str, SourceTensor]]) -> dict[str, SourceTensor]:
    _check_alike(folder, shards)
    dim = _size(folder / PARAMS, params, "dim")
    wq = shards[0].get("layers.0.attention.wq.weight")
    if wq is not None and len(wq.shape) == 2 and wq.shape[0] and len(shards) != dim // wq.shape[0]:
        raise CheckpointError(
            f"{folder} has {len(shards)} of {dim // wq.shape[0]} files consolidated.NN.pth: download what is missing"
        )
    joined: dict[str, SourceTensor] = {}
    for name in shards[0]:
        if name.endswith("rope.freqs"):  # follows from the config
            continue
        target, split = _target(folder, name)
        parts = tuple(shard[name] for shard in shards)
        if name.endswith((".wk.weight", ".wv.weight")):
            parts = _without_copies(folder, params, name, parts)
        joined[target] = _joined(target, parts, split, dim)
    return joined


def _without_copies(
    folder: Path, params: Mapping[str, Any], name: str, parts: tuple[SourceTensor, ...]
) -> tuple[SourceTensor, ...]:
    """Drop the copies of keys and values, which exist if there are more shards than key-value heads.

    In 16 shards, Llama 3.1 405B has each of its 8 key-value heads twice, in neighbouring shards.
    """
    n_heads, n_head_kv = params.get("n_heads"), params.get("n_kv_heads")
    if not isinstance(n_heads, int) or not isinstance(n_head_kv, int) or not 0 < n_head_kv < len(parts):
        return parts
    n_copies = len(parts) // n_head_kv
    if len(parts) % n_head_kv or n_heads < 1 or parts[0].n_rows * n_heads != params["dim"]:
        return parts  # not one head per shard; the plan reports a wrong shape
    for i, part in enumerate(parts):
        if not same_rows(part, parts[i - i % n_copies]):
            raise CheckpointError(
                f"{folder}: {name} differs between consolidated.{i - i % n_copies:02}.pth and .{i:02}.pth, but "
                f"{n_head_kv} key-value heads in {len(parts)} files must be copies: the files are not of one model"
            )
    return parts[::n_copies]


def _check_alike(folder: Path, shards: list[dict[str, SourceTensor]]) -> None:
    for i, shard in enumerate(shards):
        unshared = sorted(set(shards[0]) ^ set(shard))
        if unshared:
            raise CheckpointError(f"{folder}: {unshared[0]} is in only one of consolidated.00.pth and .{i:02}.pth")
        for name, tensor in shard.items():
            first = shards[0][name]
            if (tensor.dtype, tensor.shape) != (first.dtype, first.shape):
                raise CheckpointError(
                    f"{folder}: {name} is {tensor.dtype} {list(tensor.shape)} in consolidated.{i:02}.pth and "
                    f"{first.dtype} {list(first.shape)} in consolidated.00.pth"
                )


def _target(folder: Path, name: str) -> tuple[str, str]:
    if name in _TOP:
        return _TOP[name]
    layer = re.fullmatch(r"layers\.(0|[1-9]\d{0,5})\.(.+)", name)
    if layer and layer[2] in _LAYER:
        target, split = _LAYER[layer[2]]
        return f"model.layers.{layer[1]}.{target}", split
    raise UnsupportedArchitectureError(f"{folder} holds {name}, which is not a tensor of a LLaMA text model")


def _joined(name: str, parts: tuple[SourceTensor, ...], split: str, dim: int) -> SourceTensor:
    first = parts[0]
    if len(first.shape) != 2 or split == _WHOLE:  # the plan reports a wrong shape
        return _renamed(first, name)
    rows, columns = first.shape
    by_columns = split == _COLUMNS or (split == _BY_SHAPE and columns != dim)
    shape = (rows, columns * len(parts)) if by_columns else (rows * len(parts), columns)
    return JoinedTensor(name, first.dtype, shape, parts, by_columns)


def _renamed(tensor: SourceTensor, name: str) -> SourceTensor:
    return JoinedTensor(name, tensor.dtype, tensor.shape, (tensor,), by_columns=False)


def _size(path: Path, params: Mapping[str, Any], key: str, default: int | None = None) -> int:
    return whole_number(params, key, str(path), default, maximum=MAX_CONTEXT)


def _number(path: Path, params: Mapping[str, Any], key: str, default: float) -> float:
    return number(params, key, str(path), default)


def _config(path: Path, params: Mapping[str, Any], tensors: Mapping[str, SourceTensor]) -> dict[str, Any]:
    """Return what Hugging Face's config.json would say (transformers, ``convert_llama_weights_to_hf.py``)."""
    if "moe" in params or "moe_args" in params:
        raise UnsupportedArchitectureError(
            f"{path} describes a mixture of experts; llamalite supports dense LLaMA models"
        )
    if "quantization_args" in params:
        raise UnsupportedArchitectureError(
            f"{path} describes weights that are already quantized: convert the original model"
        )
    dim, n_head = _size(path, params, "dim"), _size(path, params, "n_heads")
    n_head_kv = _size(path, params, "n_kv_heads", n_head)
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{path.parent} has no matrix tok_embeddings.weight")
    n_vocab = embedding.shape[0]
    is_llama3 = n_vocab >= _LLAMA3_TOKENS
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": _intermediate_size(path, params, dim),
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head_kv,
        "num_hidden_layers": _size(path, params, "n_layers"),
        "rms_norm_eps": _number(path, params, "norm_eps", 1e-5),
        "rope_theta": _number(path, params, "rope_theta", 10000.0),
        "vocab_size": n_vocab,
        "max_position_embeddings": _context_length(path, params, is_llama3),
        "bos_token_id": _LLAMA3_TOKENS if is_llama3 else 1,
        "eos_token_id": _LLAMA3_TOKENS + 1 if is_llama3 else 2,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    if params.get("use_scaled_rope"):
        # params.json does not give the factor: 8 in Llama 3.1 and 3.3, 32 in the small models of 3.2 (1B, 3B).
        factor = _number(path, params, "rope_scaling_factor", 32.0 if dim < 4096 else 8.0)
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return config


def _intermediate_size(path: Path, params: Mapping[str, Any], dim: int) -> int:
    """``FeedForward.__init__`` (meta-llama/llama, llama/model.py): two thirds of 4 dim, scaled, then rounded up."""
    multiple_of = _size(path, params, "multiple_of", 256)
    hidden = int(2 * (4 * dim) / 3)
    if params.get("ffn_dim_multiplier") is not None:
        hidden = int(_number(path, params, "ffn_dim_multiplier", 1.0) * hidden)
    return multiple_of * -(-hidden // multiple_of)


def _context_length(path: Path, params: Mapping[str, Any], is_llama3: bool) -> int:
    """Return the context length of training, inferred from signs of the release: params.json does not give it."""
    if is_llama3:
        return 131072 if params.get("use_scaled_rope") else 8192
    if _number(path, params, "rope_theta", 10000.0) > 10000.0:
        return 16384  # CodeLlama
    is_65b = params["dim"] == 8192 and params.get("n_kv_heads") is None
    return 2048 if is_65b or params.get("norm_eps") == 1e-6 else 4096  # LLaMA 1, else 2
