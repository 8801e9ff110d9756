"""The demo model's network: a LLaMA in plain PyTorch, with Hugging Face's tensor names.

    Llama(Shape()).state_dict()["model.layers.0.self_attn.q_proj.weight"]      # float32 [256, 256]

Modules are named so that `state_dict()` has the names of a `LlamaForCausalLM` checkpoint, and nothing is renamed for
export. This file does not know the tokenizer, the corpus or the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """The sizes of the network; the length of every matrix row is a multiple of 256, so that K-quants fit."""

    n_vocab: int = 4096
    n_embd: int = 256
    n_layer: int = 6
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_ff: int = 768
    n_ctx: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def hf_config(self, bos_id: int, eos_id: int, torch_version: str) -> dict[str, object]:
        """Returns the `config.json` of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos_id,
            "eos_token_id": eos_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.n_embd,
            "initializer_range": 0.02,
            "intermediate_size": self.n_ff,
            "max_position_embeddings": self.n_ctx,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.n_head,
            "num_hidden_layers": self.n_layer,
            "num_key_value_heads": self.n_head_kv,
            "rms_norm_eps": self.norm_eps,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.n_vocab,
            "llamalite_trained_with": f"torch {torch_version}",
        }


@dataclass
class Cache:
    """Keys and values of one layer, float32 [batch, n_head_kv, n_past, head_dim]; empty before the first call."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        self.keys, self.values = keys, values
        return keys, values


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (the half-split order of Hugging Face checkpoints)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.n_embd, shape.n_head * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.n_embd, shape.n_head_kv * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.n_embd, shape.n_head_kv * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.n_head * shape.head_dim, shape.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        batch, n_tokens, _ = x.shape
        q, k, v = (
            p(x).view(batch, n_tokens, -1, self.shape.head_dim).transpose(1, 2)  # [batch, heads, tokens, head_dim]
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.extend(k, v)
        repeat = self.shape.n_head // self.shape.n_head_kv
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, n_tokens, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.n_embd, shape.n_ff, bias=False)
        self.up_proj = nn.Linear(shape.n_embd, shape.n_ff, bias=False)
        self.down_proj = nn.Linear(shape.n_ff, shape.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.n_embd, shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.n_embd, shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Trunk(nn.Module):
    """Everything between token ids and the last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.n_layer))
        self.norm = nn.RMSNorm(shape.n_embd, shape.norm_eps)


class Llama(nn.Module):
    """The network; the output matrix is the embedding matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                n_residual = 2 * shape.n_layer if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                nn.init.normal_(parameter, std=0.02 / n_residual**0.5)

    def hidden(
        self, tokens: Tensor, mask: Tensor | None = None, caches: list[Cache] | None = None, n_past: int = 0
    ) -> Tensor:
        """Maps int64 [batch, n_tokens] to float32 [batch, n_tokens, n_embd], after the last norm."""
        cos, sin = rotary_table(self.shape, n_past, tokens.shape[1], tokens.device)
        x = self.model.embed_tokens(tokens)
        for i, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, mask, caches[i] if caches else None)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps float32 [..., n_embd] to float32 [..., n_vocab]."""
        return functional.linear(hidden, self.model.embed_tokens.weight)


def rotary_table(shape: Shape, start: int, n_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines for positions start … start + n_tokens, float32 [n_tokens, head_dim] each."""
    rate = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim)
    angle = torch.arange(start, start + n_tokens, device=device).float()[:, None] * rate
    angle = torch.cat((angle, angle), 1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs (i, i + head_dim/2) of the last axis by their position's angle."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin
