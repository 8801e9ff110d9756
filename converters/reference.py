"""The LLaMA forward pass in plain NumPy: slow and readable, to test llama.cpp's results against.

    with open_checkpoint(Path("TinyLlama-1.1B")) as checkpoint:
        logits = forward(checkpoint, [1, 9038, 2501])              # float32 [3, n_vocab]

One sequence, float32 throughout, from the checkpoint's own weights in their own row order: none of the converter's
changes to names, rows or types is used here. Weights are read layer by layer and dropped, so memory holds one layer and
the activations. It covers RMSNorm, rotary positions (plain, linear, llama3 and yarn scaling), grouped key-value heads,
SwiGLU, biases, tied embeddings (transformers, modeling_llama.py and modeling_rope_utils.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.converters import kernels
from llamalite.converters.checkpoints import Checkpoint
from llamalite.converters.llama import LlamaConfig

Floats = npt.NDArray[np.float32]

_VOCAB_ROWS = 4096  # rows of the output matrix in memory at a time


def forward(checkpoint: Checkpoint, tokens: Sequence[int]) -> Floats:
    """Return the logits (float32 [n_tokens, n_vocab]) at every position of `tokens`."""
    config = LlamaConfig.from_dict(checkpoint.config)
    weights = _Weights(checkpoint)
    x = np.concatenate([weights.rows("model.embed_tokens.weight", token, 1) for token in tokens])  # [n_tokens, n_embd]
    cos, sin = rotary(config.rope, config.head_dim, len(tokens))
    for i in range(config.n_layer):
        layer = f"model.layers.{i}."
        normed = rms_norm(x, weights.vector(layer + "input_layernorm.weight"), config.rms_norm_eps)
        x = x + _attention(weights, layer + "self_attn.", normed, config, cos, sin, pairs=not checkpoint.permuted)
        normed = rms_norm(x, weights.vector(layer + "post_attention_layernorm.weight"), config.rms_norm_eps)
        gate = weights.linear(layer + "mlp.gate_proj", normed)  # [n_tokens, n_ff]
        up = weights.linear(layer + "mlp.up_proj", normed)
        x = x + weights.linear(layer + "mlp.down_proj", silu(gate) * up)
    x = rms_norm(x, weights.vector("model.norm.weight"), config.rms_norm_eps)
    output = "lm_head.weight" if "lm_head.weight" in checkpoint.tensors else "model.embed_tokens.weight"
    logits = np.empty((len(tokens), config.n_vocab), np.float32)
    for first in range(0, config.n_vocab, _VOCAB_ROWS):
        n = min(_VOCAB_ROWS, config.n_vocab - first)
        np.matmul(x, weights.rows(output, first, n).T, out=logits[:, first : first + n])
    return logits


class _Weights:
    """Reads tensors as float32; keeps none."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors = checkpoint.tensors

    def rows(self, name: str, first: int, count: int) -> Floats:
        tensor = self._tensors[name]
        raw = np.empty(count * tensor.row_bytes, np.uint8)
        tensor.read_rows(first, count, raw)
        return kernels.widen(raw, tensor.dtype, np.empty((count, tensor.shape[-1]), np.float32))

    def vector(self, name: str) -> Floats:
        values: Floats = self.rows(name, 0, 1)[0]
        return values

    def linear(self, name: str, x: Floats) -> Floats:
        """``x @ W.T + b``, without the bias if the checkpoint has none."""
        matrix = f"{name}.weight"
        y: Floats = x @ self.rows(matrix, 0, self._tensors[matrix].n_rows).T
        return y + self.vector(f"{name}.bias") if f"{name}.bias" in self._tensors else y


def _attention(
    weights: _Weights, name: str, x: Floats, config: LlamaConfig, cos: Floats, sin: Floats, *, pairs: bool
) -> Floats:
    n, n_head, n_head_kv, width = len(x), config.n_head, config.n_head_kv, config.head_dim
    q = weights.linear(name + "q_proj", x).reshape(n, n_head, width).swapaxes(0, 1)  # [n_head, n, head_dim]
    k = weights.linear(name + "k_proj", x).reshape(n, n_head_kv, width).swapaxes(0, 1)
    v = weights.linear(name + "v_proj", x).reshape(n, n_head_kv, width).swapaxes(0, 1)
    q, k = rotate(q, cos, sin, pairs=pairs), rotate(k, cos, sin, pairs=pairs)
    group = n_head // n_head_kv  # query heads that share a key and value head
    scores = np.matmul(q.reshape(n_head_kv, group, n, width), k[:, None].swapaxes(2, 3)) / np.float32(math.sqrt(width))
    scores += np.where(np.tri(n, dtype=bool), np.float32(0), np.float32(-np.inf))
    scores -= scores.max(axis=-1, keepdims=True)
    shares = np.exp(scores)
    shares /= shares.sum(axis=-1, keepdims=True)
    mixed = np.matmul(shares, v[:, None]).reshape(n_head, n, width)
    return weights.linear(name + "o_proj", np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(n, n_head * width))


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """``x`` divided by its root mean square along the last axis, times `weight`."""
    scale: Floats = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
    return x * scale * weight


def silu(x: Floats) -> Floats:
    """``x · sigmoid(x)``."""
    with np.errstate(over="ignore"):  # exp(-x) overflows for a very negative x, and the quotient is correctly 0
        share = 1 / (1 + np.exp(-x))
    return np.multiply(x, share, dtype=np.float32)


def rotate(x: Floats, cos: Floats, sin: Floats, *, pairs: bool) -> Floats:
    """Turn each pair of `x` ([n_head, n, head_dim]) by its position's angle ([n, head_dim / 2]).

    The two values of a pair are half a head apart in Hugging Face's order, side by side (`pairs`) in Meta's.
    """
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if pairs else (x[..., :half], x[..., half:])
    out = np.empty_like(x)
    first, second = (out[..., 0::2], out[..., 1::2]) if pairs else (out[..., :half], out[..., half:])
    first[:] = a * cos - b * sin
    second[:] = b * cos + a * sin
    return out


def rotary(rope: Mapping[str, Any], width: int, n: int) -> tuple[Floats, Floats]:
    """Return cosine and sine (float32 [n, width / 2]) of the rotary angles at positions 0 to n - 1."""
    frequencies, scale = _frequencies(rope, width)
    angles = np.arange(n, dtype=np.float64)[:, None] * frequencies
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def _frequencies(rope: Mapping[str, Any], width: int) -> tuple[npt.NDArray[np.float64], float]:
    """Return the rotary frequencies (float64 [width / 2]), and the factor for cosine and sine."""
    plain = float(rope["rope_theta"]) ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    kind = rope["rope_type"]
    if kind == "linear":
        return plain / rope["factor"], 1.0
    if kind == "llama3":
        n_ctx = rope["original_max_position_embeddings"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = n_ctx * plain / (2 * math.pi)  # full turns within the original context
        share = np.clip((turns - low) / (high - low), 0, 1)
        return plain * (share + (1 - share) / rope["factor"]), 1.0
    if kind == "yarn":
        share = _yarn_share(rope, width)
        scale = rope.get("attention_factor") or 0.1 * math.log(rope["factor"]) + 1
        return plain * (share + (1 - share) / rope["factor"]), float(scale)
    return plain, 1.0


def _yarn_share(rope: Mapping[str, Any], width: int) -> npt.NDArray[np.float64]:
    """Return the share (0 to 1) of each frequency that is not divided by the factor (arXiv:2309.00071, section 3.2)."""

    def dimension(turns: float) -> float:
        n_ctx = rope["original_max_position_embeddings"]
        return width * math.log(n_ctx / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low = max(math.floor(dimension(rope.get("beta_fast") or 32.0)), 0)
    high = min(math.ceil(dimension(rope.get("beta_slow") or 1.0)), width - 1)
    ramp = (np.arange(width // 2, dtype=np.float64) - low) / max(high - low, 0.001)
    return 1 - np.clip(ramp, 0, 1)
