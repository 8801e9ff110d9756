"""Weights rounded roughly as in a quantized file, to train against.

    fake_quantize(weight, bits=4)       # float32, same shape; every 32 neighbours share a scale and a minimum

llama.cpp's K-quants search for better scales, and store those in six bits. The error here has about the same size, but
the bytes differ. The measurement that counts is made on GGUF files (`evaluate.py --gguf`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

BLOCK = {4: 32, 3: 16, 2: 16, 6: 16, 8: 32}


def fake_quantize(weight: Tensor, bits: int) -> Tensor:
    """Rounds each block of a row to `2**bits` evenly spaced values between its extremes, or zero."""
    blocks = weight.detach().reshape(-1, BLOCK[bits])  # [n_blocks, block]
    low = blocks.amin(1, keepdim=True).clamp_(max=0.0)
    high = blocks.amax(1, keepdim=True).clamp_(min=0.0)
    scale = (high - low).clamp_(min=1e-10) / (2**bits - 1)
    return ((blocks - low) / scale).round_().mul_(scale).add_(low).reshape(weight.shape)


def quantizable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the matrices; norms are not quantized in any GGUF type."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.ndim == 2)


@contextmanager
def rounded(model: nn.Module, bits: int | None) -> Iterator[None]:
    """Rounds the weights inside the block and restores them after it; `bits=16` is BF16, `None` does nothing.

    The embedding, which is also the output matrix, gets at least six bits, as in llama.cpp's mixes. Gradients computed
    inside apply to the true weights (the straight-through estimator).
    """
    true: dict[str, Tensor] = {}
    if bits is not None:
        for name, parameter in quantizable(model):
            true[name] = parameter.data
            if bits == 16:
                parameter.data = parameter.data.to(torch.bfloat16).float()
            else:
                parameter.data = fake_quantize(parameter.data, max(bits, 6) if "embed" in name else bits)
    try:
        yield
    finally:
        for name, parameter in quantizable(model):
            if name in true:
                parameter.data = true[name]
