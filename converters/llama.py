"""The LLaMA family: from a Hugging Face config to GGUF keys, tensor names, row order and rope factors.

    model.layers.3.self_attn.q_proj.weight  →  blk.3.attn_q.weight, rows regrouped head by head
    {"rms_norm_eps": 1e-5, ...}             →  llama.attention.layer_norm_rms_epsilon = 1e-5

Follows llama.cpp's converter (conversion/llama.py ``LlamaModel``, conversion/base.py ``TextModel``), key by key and in
its order, with the defaults of transformers' ``LlamaConfig`` and ``MistralConfig`` for keys that a config lacks. This
module reads no weights and knows nothing of quantization.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import gguf
import numpy as np
import numpy.typing as npt

from llamalite.converters.checkpoints.json_file import number, whole_number
from llamalite.converters.mix import ModelShape
from llamalite.converters.vocabulary.files import MAX_TOKENS
from llamalite.converters.warning_log import warn
from llamalite.errors import CheckpointError, UnsupportedArchitectureError
from llamalite.gguf_check.llama import MAX_CONTEXT, MAX_LAYERS

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")

# A base model without an output matrix, the class's name in 2023, and ``model_type``.
_OTHER_NAMES = {
    **dict.fromkeys(("LlamaModel", "LLaMAForCausalLM", "llama"), "LlamaForCausalLM"),
    **dict.fromkeys(("MistralModel", "mistral"), "MistralForCausalLM"),
}

_ABOVE_ONE = float(np.nextafter(np.float32(1), np.float32(2)))

# transformers' defaults for keys that config.json lacks (LlamaConfig, MistralConfig).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    "MistralForCausalLM": {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "num_key_value_heads": 8},
}


@dataclass(frozen=True)
class TensorRule:
    """The mapping of one tensor: its names in checkpoint and GGUF, its shape, and its heads if rows are regrouped.

    `n_head` is set for q and k projections of Hugging Face checkpoints, whose rotary pairs lie half a head apart.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    n_head: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class LlamaConfig:
    """A validated config.json: the sizes that determine tensors and keys."""

    n_vocab: int
    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ctx_train: int
    rms_norm_eps: float
    rope: Mapping[str, Any]

    @property
    def shape(self) -> ModelShape:
        return ModelShape(self.n_layer, self.n_head, self.n_head_kv)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read a parsed config.json as transformers 4 or 5 writes it.

        Raises `UnsupportedArchitectureError` for another family or a rope scaling that GGUF cannot express,
        and `CheckpointError` for a size that is missing or invalid.
        """
        architecture = _architecture(config)
        values = {**_DEFAULTS[architecture], **{key: value for key, value in config.items() if value is not None}}
        n_embd, n_head = _size(values, "hidden_size"), _size(values, "num_attention_heads")
        n_head_kv = _size(values, "num_key_value_heads", n_head)
        if n_head % n_head_kv:
            raise CheckpointError(
                f"config.json: {n_head} attention heads cannot share {n_head_kv} key-value heads: "
                "num_attention_heads must be a multiple of num_key_value_heads"
            )
        if "head_dim" not in values and n_embd % n_head:
            raise CheckpointError(f"config.json: hidden_size {n_embd} is not a multiple of {n_head} attention heads")
        head_dim = _size(values, "head_dim", n_embd // n_head)
        if head_dim % 2:
            raise CheckpointError(f"config.json: head_dim is {head_dim}, expected an even number for rotary positions")
        _warn_of_window(architecture, values)
        activation = values.get("hidden_act", "silu")
        if activation != "silu":
            raise UnsupportedArchitectureError(
                f"config.json: hidden_act is {activation!r:.40}, but only 'silu' is supported"
            )
        return cls(
            n_vocab=_size(values, "vocab_size", maximum=MAX_TOKENS),
            n_embd=n_embd,
            n_ff=_size(values, "intermediate_size"),
            n_layer=_size(values, "num_hidden_layers", maximum=MAX_LAYERS),
            n_head=n_head,
            n_head_kv=n_head_kv,
            head_dim=head_dim,
            n_ctx_train=_size(values, "max_position_embeddings"),
            rms_norm_eps=_number(values, "rms_norm_eps"),
            rope=_rope_parameters(values),
        )

    def tensor_rules(self, *, permuted: bool = True) -> Iterator[TensorRule]:
        """Yield a rule for each tensor that a checkpoint may hold; `permuted` as in `Checkpoint`."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        q_heads, k_heads = (self.n_head, self.n_head_kv) if permuted else (None, None)
        embd, ff = self.n_embd, self.n_ff
        yield TensorRule("model.embed_tokens.weight", "token_embd.weight", (self.n_vocab, embd))
        yield TensorRule("model.norm.weight", "output_norm.weight", (embd,))
        yield TensorRule("lm_head.weight", "output.weight", (self.n_vocab, embd), optional=True)
        for i in range(self.n_layer):
            source, target = f"model.layers.{i}.", f"blk.{i}."
            yield TensorRule(source + "input_layernorm.weight", target + "attn_norm.weight", (embd,))
            yield TensorRule(source + "post_attention_layernorm.weight", target + "ffn_norm.weight", (embd,))
            for source_name, target_name, n_out, n_in, heads in (
                ("self_attn.q_proj", "attn_q", q, embd, q_heads),
                ("self_attn.k_proj", "attn_k", kv, embd, k_heads),
                ("self_attn.v_proj", "attn_v", kv, embd, None),
                ("self_attn.o_proj", "attn_output", embd, q, None),
                ("mlp.gate_proj", "ffn_gate", ff, embd, None),
                ("mlp.up_proj", "ffn_up", ff, embd, None),
                ("mlp.down_proj", "ffn_down", embd, ff, None),
            ):
                yield TensorRule(f"{source}{source_name}.weight", f"{target}{target_name}.weight", (n_out, n_in), heads)
                yield TensorRule(
                    f"{source}{source_name}.bias", f"{target}{target_name}.bias", (n_out,), heads, optional=True
                )

    def write_keys(self, writer: gguf.GGUFWriter) -> None:
        """Add the ``llama.*`` keys, in the order of llama.cpp's converter, without file type and tokenizer."""
        writer.add_block_count(self.n_layer)
        writer.add_context_length(self.n_ctx_train)
        writer.add_embedding_length(self.n_embd)
        writer.add_feed_forward_length(self.n_ff)
        writer.add_head_count(self.n_head)
        writer.add_head_count_kv(self.n_head_kv)
        self._write_rope_scaling(writer)
        writer.add_rope_freq_base(self.rope["rope_theta"])
        writer.add_layer_norm_rms_eps(self.rms_norm_eps)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_vocab_size(self.n_vocab)
        writer.add_rope_dimension_count(self.head_dim)

    def _write_rope_scaling(self, writer: gguf.GGUFWriter) -> None:
        rope = self.rope
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        elif self._has_own_ramp:
            writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or 0.1 * math.log(rope["factor"]) + 1)
        elif rope["rope_type"] == "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            for key, add in (
                ("extrapolation_factor", writer.add_rope_scaling_yarn_ext_factor),
                ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
                ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
                ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
            ):
                if rope.get(key) is not None:
                    add(rope[key])
            default = 0.1 * math.log(rope["factor"]) + 1
            if rope.get("attention_factor") not in (None, default):
                # Whatever yarn_attn_factor says, llama.cpp uses the usual factor (src/llama-context.cpp), times the
                # value of this key, which its own converter never writes.
                writer.add_rope_scaling_attn_factors(rope["attention_factor"] / default)

    @property
    def _has_own_ramp(self) -> bool:
        """Whether YaRN's ramp has unusual ends; llama.cpp reads them only for other families."""
        ends = self.rope.get("beta_fast", 32.0), self.rope.get("beta_slow", 1.0)
        return self.rope["rope_type"] == "yarn" and ends != (32.0, 1.0)

    def _yarn_factors(self) -> npt.NDArray[np.float32]:
        """Return YaRN's frequencies as divisors of the plain ones (transformers, ``_compute_yarn_parameters``)."""
        width, base = self.head_dim, math.log(self.rope["rope_theta"])
        n_ctx_old = self.rope["original_max_position_embeddings"]
        low, high = (
            width * (math.log(n_ctx_old) - math.log(2 * math.pi * self.rope.get(key, default))) / (2 * base)
            for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
        ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)
        divisors: npt.NDArray[np.float32] = (1 / (1 - ramp + ramp / self.rope["factor"])).astype(np.float32)
        return divisors

    def rope_factors(self) -> npt.NDArray[np.float32] | None:
        """Return the divisor of each rotary frequency, float32 [head_dim / 2], for the tensor ``rope_freqs.weight``.

        Llama 3's scaling has them, and so does YaRN's with an unusual ramp; None for any other.

        They follow transformers' ``_compute_llama3_parameters``, in float32 and in the order of operations of
        llama.cpp's converter (``generate_extra_tensors``). PyTorch divides a scalar by a tensor by multiplying with the
        reciprocal; so does this, to get the same bits.
        """
        if self._has_own_ramp:
            return self._yarn_factors()
        if self.rope["rope_type"] != "llama3":
            return None
        f32, one = np.float32, np.float32(1)
        with np.errstate(all="ignore"):  # `blended` may overflow where it is not used
            exponents = np.arange(0, self.head_dim, 2, dtype=f32) / f32(self.head_dim)
            powers = np.power(np.float64(self.rope["rope_theta"]), exponents.astype(np.float64)).astype(f32)
            wavelengths = f32(2 * math.pi) * (one / (one / powers))
            factor, low, high = (f32(self.rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
            n_ctx_old = self.rope["original_max_position_embeddings"]
            smooth = (f32(n_ctx_old) * (one / wavelengths) - low) / f32(float(high) - float(low))
            blended = one / ((one - smooth) / factor + smooth)
            is_short = wavelengths < n_ctx_old / self.rope["high_freq_factor"]
            is_long = wavelengths > n_ctx_old / self.rope["low_freq_factor"]
            factors: npt.NDArray[np.float32] = np.where(is_short, one, np.where(is_long, factor, blended)).astype(f32)
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise CheckpointError(
                f"config.json: a llama3 scaling by {self.rope['factor']} between {self.rope['low_freq_factor']} and "
                f"{self.rope['high_freq_factor']} gives frequencies that float32 cannot hold"
            )
        return factors


def _architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else config.get("model_type")
    name = _OTHER_NAMES.get(name, name) if isinstance(name, str) else name
    if name not in ARCHITECTURES:
        shown = name or "unknown"
        raise UnsupportedArchitectureError(
            f"this checkpoint has the architecture {shown!s:.80}; llamalite supports {' and '.join(ARCHITECTURES)}"
        )
    return cast(str, name)


def _warn_of_window(architecture: str, config: Mapping[str, Any]) -> None:
    """Warn if the model's attention window is shorter than its context: llama.cpp's "llama" graph has no window.

    llama.cpp's converter is silent about it (conversion/llama.py writes no window, src/models/llama.cpp reads none). In
    transformers only Mistral has a window; LlamaConfig has no such key.
    """
    window, n_ctx_train = config.get("sliding_window"), config.get("max_position_embeddings")
    if architecture != "MistralForCausalLM" or not isinstance(window, int) or not isinstance(n_ctx_train, int):
        return
    if 0 < window < n_ctx_train:
        warn(
            "config.json: sliding_window is %d, but llama.cpp attends to the whole context of %d tokens: beyond the "
            "window its results differ from the original's",
            window,
            n_ctx_train,
        )


def _size(config: Mapping[str, Any], key: str, default: int | None = None, *, maximum: int = MAX_CONTEXT) -> int:
    return whole_number(config, key, "config.json", default, maximum=maximum)


def _number(config: Mapping[str, Any], key: str, default: float | None = None, **bound: Any) -> float:
    return number(config, key, "config.json", default, **bound)


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read what transformers 5 (``rope_parameters``) or 4 (``rope_scaling`` and ``rope_theta``) writes.

    All numbers that this kind of scaling uses are checked against their bounds.
    """
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, dict):
        raise CheckpointError(f"config.json: rope scaling is {settings!r:.40}, expected an object")
    rope = {key: value for key, value in settings.items() if value is not None}
    if any(isinstance(value, dict) for value in rope.values()):
        raise UnsupportedArchitectureError(
            "config.json: rope parameters that differ by layer cannot be expressed in GGUF for this architecture"
        )
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1))
    if partial != 1:
        raise UnsupportedArchitectureError(
            f"config.json: partial_rotary_factor is {partial!r:.40}, but only 1 is supported: the LLaMA family rotates "
            "whole heads"
        )
    kind = str(rope.get("rope_type", rope.get("type", "default"))).lower()
    rope["rope_type"] = kind
    if kind not in ("default", "linear", "llama3", "yarn", "dynamic"):
        raise UnsupportedArchitectureError(
            f"config.json: rope scaling of type {kind!r:.40} cannot be expressed in GGUF for this architecture; "
            "only linear, llama3, yarn and dynamic can"
        )
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope["rope_theta"] = _number(rope, "rope_theta", minimum=_ABOVE_ONE, kind="a number above 1")
    if kind != "default":
        # A factor below 1 would shorten the context: transformers warns about it, and no such model is known.
        default = 8.0 if kind == "llama3" else None
        rope["factor"] = _number(rope, "factor", default, minimum=1.0, kind="a number of at least 1")
    if kind == "dynamic":
        # No scaling up to that length (transformers, ``_compute_dynamic_ntk_parameters``); llama.cpp has none beyond.
        warn(
            "config.json: the dynamic rope scaling by %g begins after %s tokens, and llama.cpp has no such scaling: "
            "keep to that context",
            rope["factor"],
            config["max_position_embeddings"],
        )
    if kind == "llama3":
        low, high = (
            _number(rope, key, default) for key, default in (("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
        )
        if not np.float32(low) < np.float32(high):
            raise CheckpointError(
                f"config.json: low_freq_factor is {low} and high_freq_factor {high}, expected the former to be smaller"
            )
        rope |= {"low_freq_factor": low, "high_freq_factor": high}
        rope["original_max_position_embeddings"] = _size(rope, "original_max_position_embeddings", 8192)
    if kind == "yarn":
        n_ctx = _size(rope, "original_max_position_embeddings", config["max_position_embeddings"])
        rope["original_max_position_embeddings"] = n_ctx
        _read_yarn(rope)
    return rope


def _read_yarn(rope: dict[str, Any]) -> None:
    """Add YaRN's own numbers to `rope`, as transformers reads them (``_compute_yarn_parameters``)."""
    if rope.get("truncate", True) is not True:
        raise UnsupportedArchitectureError(
            f"config.json: a YaRN ramp with truncate = {rope['truncate']!r:.40} cannot be expressed in GGUF for this "
            "architecture; only true is supported"
        )
    if "attn_factor" in rope:
        rope.setdefault("attention_factor", rope["attn_factor"])
    mscale, mscale_all = (
        _number(rope, key, 0.0, minimum=0.0, kind="0 or more") for key in ("mscale", "mscale_all_dim")
    )
    if mscale and mscale_all and "attention_factor" not in rope:
        logarithm = 0.1 * math.log(rope["factor"])
        rope["attention_factor"] = (mscale * logarithm + 1) / (mscale_all * logarithm + 1)
    for key in ("attention_factor", "beta_fast", "beta_slow"):
        if key in rope:
            rope[key] = _number(rope, key)
    if "extrapolation_factor" in rope:
        rope["extrapolation_factor"] = _number(rope, "extrapolation_factor", minimum=0.0, kind="0 or more")
