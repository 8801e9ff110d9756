"""What a file of architecture ``llama`` must hold for llama.cpp to run it: keys, their types and bounds, tensor shapes.

The rules are those of ``llama_model_base::load_hparams``, ``llama_model_llama::load_arch_tensors`` and
``create_tensor_qkv`` (llama-model.cpp and models/llama.cpp, as bundled in llama-cpp-python 0.3.36), and of the
assertions in llama.cpp's graph and CPU kernels: where llama.cpp would abort, this raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from llamalite.errors import GGUFError
from llamalite.gguf_check.header import DAMAGED, Header, TensorInfo
from llamalite.quant_types import NO_WEIGHTS

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS (llama-hparams.h)
MAX_EXPERTS = 512  # LLAMA_MAX_EXPERTS (llama-hparams.h)
MAX_CONTEXT = 1 << 30  # tokens; llama.cpp rounds up to 256 in 32 bits
SCALING = ("none", "linear", "yarn", "longrope")  # LLAMA_ROPESCALING_TYPES (llama-model.cpp)

Rule = Callable[[Any], bool]
Known = dict[str, tuple[tuple[int, ...], bool, bool]]  # tensor name → shape, is required, is a vector

# key → type, is required, a bound, and the bound in words
_KEYS: dict[str, tuple[str, bool, Rule, str]] = {
    "context_length": ("uint32", True, lambda v: 0 < v <= MAX_CONTEXT, f"1 to {MAX_CONTEXT}"),
    "embedding_length": ("uint32", True, lambda v: v > 0, "at least 1"),
    "block_count": ("uint32", True, lambda v: 0 < v <= MAX_LAYERS, f"1 to {MAX_LAYERS}"),
    "nextn_predict_layers": ("uint32", False, lambda v: v == 0, "0"),
    "feed_forward_length": ("uint32 per layer", True, lambda v: v > 0, "at least 1"),
    "attention.head_count": ("uint32 per layer", True, lambda v: v > 0, "at least 1"),
    "attention.head_count_kv": ("uint32 per layer", False, lambda v: v > 0, "at least 1"),
    "attention.key_length": ("uint32", False, lambda v: v > 0, "at least 1"),
    "attention.value_length": ("uint32", False, lambda v: v > 0, "at least 1"),
    "attention.layer_norm_rms_epsilon": ("float32", True, lambda v: 0 <= v < math.inf, "0 or more, and finite"),
    "attention.causal": ("bool", False, lambda v: v, "true"),
    "rope.dimension_count": ("uint32", False, lambda v: v > 0 and v % 2 == 0, "even"),
    "rope.freq_base": ("float32", False, lambda v: 0 < v < math.inf, "above 0, and finite"),
    "rope.scaling.type": ("string", False, lambda v: v in SCALING, "one of " + ", ".join(SCALING)),
    "rope.scaling.factor": ("float32", False, lambda v: 0 <= v < math.inf, "0 or more, and finite"),
    "rope.scale_linear": ("float32", False, lambda v: 0 <= v < math.inf, "0 or more, and finite"),
    "rope.scaling.original_context_length": ("uint32", False, lambda v: v <= MAX_CONTEXT, f"at most {MAX_CONTEXT}"),
    "rope.scaling.attn_factor": ("float32", False, math.isfinite, "finite"),
    "rope.scaling.alpha": ("float32", False, math.isfinite, "finite"),
    "rope.scaling.finetuned": ("bool", False, lambda v: v in (True, False), "true or false"),
    "vocab_size": ("uint32", False, lambda v: v > 0, "at least 1"),
    "embedding_length_out": ("uint32", False, lambda v: v > 0, "at least 1"),
    "pooling_type": ("uint32", False, lambda v: v <= 3, "0 to 3"),
    "expert_count": ("uint32", False, lambda v: v <= MAX_EXPERTS, f"at most {MAX_EXPERTS}"),
    "expert_used_count": ("uint32 per layer", False, lambda v: v <= MAX_EXPERTS, f"at most {MAX_EXPERTS}"),
    "expert_group_count": ("uint32", False, lambda v: v == 0, "0"),
    "expert_group_used_count": ("uint32", False, lambda v: v == 0, "0"),
}


def check_llama(header: Header, n_vocab: int) -> None:
    """Raise ``GGUFError`` unless the keys and tensors of `header` make a LLaMA that llama.cpp can run."""
    values = _read_keys(header)
    n_head, n_head_kv = values["attention.head_count"], values["attention.head_count_kv"]
    if n_head % n_head_kv:
        _fail(header, f"key llama.attention.head_count is {n_head}, not a multiple of the {n_head_kv} key heads")
    n_embd, head_dim = values["embedding_length"], values["attention.key_length"]
    if head_dim % 2 or head_dim < 2:
        _fail(header, f"heads have {head_dim} dimensions, expected an even number (rotary embeddings)")
    for key in ("attention.value_length", "rope.dimension_count"):
        if values[key] != head_dim:
            _fail(header, f"key llama.{key} is {values[key]}, expected {head_dim}, the width of the key heads")
    if values["embedding_length_out"] != n_embd:
        _fail(header, f"key llama.embedding_length_out is {values['embedding_length_out']}, expected {n_embd}")
    n_expert, n_used = values["expert_count"], values["expert_used_count"]
    if n_used > n_expert or (n_expert and not n_used):
        _fail(header, f"key llama.expert_used_count is {n_used}, expected 1 to {n_expert} (0 without experts)")
    tensors = {tensor.name: tensor for tensor in header.all_tensors}
    _check_tensors(header, tensors, _known_tensors(tensors, values, n_vocab))


def _fail(header: Header, text: str) -> NoReturn:
    raise GGUFError(f"{header.path}: {text}; {DAMAGED}")


def _read_keys(header: Header) -> dict[str, Any]:
    """Return the value of every known key, or its default, after checking type and bound."""
    metadata = header.metadata
    values: dict[str, Any] = {}
    for name, (kind, required, rule, words) in _KEYS.items():
        key = f"llama.{name}"
        if key not in metadata:
            if required:
                _fail(header, f"key {key} is missing")
            continue
        actual = metadata.type_of(key)
        value = metadata[key]
        if kind.endswith("per layer") and actual in ("array[uint32]", "array[int32]"):
            value = _shared_by_layers(header, key, value)
        elif actual != kind.removesuffix(" per layer"):
            _fail(header, f"key {key} should be {kind}, found {actual}")
        if not rule(value):
            _fail(header, f"key {key} is {value!r:.80}, expected {words}")
        values[name] = value
    n_head = values["attention.head_count"]
    values.setdefault("attention.head_count_kv", n_head)
    values.setdefault("attention.key_length", values["embedding_length"] // n_head)
    values.setdefault("attention.value_length", values["embedding_length"] // n_head)
    values.setdefault("rope.dimension_count", values["attention.key_length"])
    values.setdefault("embedding_length_out", values["embedding_length"])
    values.setdefault("expert_count", 0)
    values.setdefault("expert_used_count", 0)
    return values


def _shared_by_layers(header: Header, key: str, value: Any) -> int:
    """Return the number that all layers share: llama.cpp's graph of this architecture uses the first one for all."""
    n_layer = header.metadata["llama.block_count"]
    if len(value) != n_layer:
        _fail(header, f"key {key} has {len(value)} numbers for {n_layer} layers")
    if len(np.unique(value)) != 1:
        _fail(header, f"key {key} differs from layer to layer, which the architecture llama does not allow")
    return int(value[0])


def _known_tensors(tensors: Mapping[str, TensorInfo], values: dict[str, Any], n_vocab: int) -> Known:
    """Return every tensor that llama.cpp would look for: its shape, whether it is required, whether it is a vector."""
    n_embd, n_ff, head_dim = values["embedding_length"], values["feed_forward_length"], values["attention.key_length"]
    n_q, n_kv = head_dim * values["attention.head_count"], head_dim * values["attention.head_count_kv"]
    n_expert = values["expert_count"]
    known: Known = {
        "token_embd.weight": ((n_embd, n_vocab), True, False),
        "output_norm.weight": ((n_embd,), True, True),
        "output.weight": ((n_embd, n_vocab), False, False),
    }
    output = tensors.get("output.weight")
    if output is not None and output.type.name == "NVFP4":
        known |= {f"output.{scale}": ((1,), False, True) for scale in ("scale", "input_scale")}
    if values.get("rope.scaling.type") == "longrope":
        known |= {f"rope_factors_{kind}.weight": ((head_dim // 2,), False, True) for kind in ("long", "short")}
    else:
        known["rope_freqs.weight"] = ((head_dim // 2,), False, True)
    for i in range(values["block_count"]):
        block = f"blk.{i}."
        known[block + "attn_norm.weight"] = ((n_embd,), True, True)
        known[block + "ffn_norm.weight"] = ((n_embd,), True, True)
        matrices = {"attn_output": (n_q, n_embd)}
        separate = {"attn_q": (n_embd, n_q), "attn_k": (n_embd, n_kv), "attn_v": (n_embd, n_kv)}
        if block + "attn_qkv.weight" in tensors:
            matrices["attn_qkv"] = (n_embd, n_q + 2 * n_kv)
            if block + "attn_qkv.bias" not in tensors:
                known |= {f"{block}{part}.bias": ((shape[1],), False, True) for part, shape in separate.items()}
        else:
            matrices |= separate
        if not n_expert:
            matrices |= {"ffn_gate": (n_embd, n_ff), "ffn_up": (n_embd, n_ff), "ffn_down": (n_ff, n_embd)}
        for part, shape in matrices.items():
            known[f"{block}{part}.weight"] = (shape, True, False)
            known[f"{block}{part}.bias"] = ((shape[1],), False, True)
            known |= {f"{block}{part}.{scale}": ((1,), False, True) for scale in ("scale", "input_scale")}
        if n_expert:
            known[block + "ffn_gate_inp.weight"] = ((n_embd, n_expert), True, False)
            for part, columns, rows in (("gate", n_embd, n_ff), ("up", n_embd, n_ff), ("down", n_ff, n_embd)):
                known[f"{block}ffn_{part}_exps.weight"] = ((columns, rows, n_expert), True, False)
                for scale in ("scale", "input_scale"):
                    known[f"{block}ffn_{part}_exps.{scale}"] = ((n_expert,), False, True)
    return known


def _check_tensors(header: Header, tensors: Mapping[str, TensorInfo], known: Known) -> None:
    for name, (expected, required, is_vector) in known.items():
        tensor = tensors.get(name)
        if tensor is None:
            if required:
                _fail(header, f"tensor {name} is missing")
            continue
        if _stripped(tensor.shape) != _stripped(expected):
            _fail(header, f"tensor {name} has shape {list(tensor.shape)}, and the keys imply {list(expected)}")
        kind = tensor.type.name
        if is_vector and kind != "F32":
            _fail(header, f"tensor {name} is of type {kind}, and llama.cpp computes with it as F32 only")
        if kind in NO_WEIGHTS:
            _fail(header, f"tensor {name} is of type {kind}, which llama.cpp cannot multiply with")
    for name in tensors:
        if name not in known:
            _fail(header, f"tensor {name} does not belong in a model of architecture llama with these keys")


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return `shape` without the ones at its end, which ggml treats as absent dimensions."""
    n = len(shape)
    while n and shape[n - 1] == 1:
        n -= 1
    return shape[:n]
