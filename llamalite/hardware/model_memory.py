"""The memory that a model needs, and the longest context that fits into what is free.

need = memory_needed(read_header(path), n_ctx=4096)
need.total_bytes <= free_memory_bytes()
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from llamalite.errors import GGUFError, OutOfMemoryError
from llamalite.gguf_check import Header
from llamalite.hardware.memory import free_memory_bytes
from llamalite.native import verdict
from llamalite.native.library import llama
from llamalite.quant_types import TENSOR_TYPES

GIB = 1024**3
DEFAULT_N_CTX = 8192
_CTX_STEP = 256  # llama.cpp rounds n_ctx up to it (llama_context's constructor, llama-context.cpp)


@dataclass(frozen=True)
class MemoryNeeded:
    """Bytes that a model takes on the CPU: its weights, the copy of those that llama.cpp repacks for the processor's
    vector units, the KV cache, and the buffers that a micro-batch is computed in (an estimate from above)."""

    n_ctx: int
    weights_bytes: int
    repacked_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.repacked_bytes + self.kv_bytes + self.compute_bytes

    def __str__(self) -> str:
        return (
            f"{self.total_bytes / GIB:.2f} GiB (weights {self.weights_bytes / GIB:.2f}, repacked copy "
            f"{self.repacked_bytes / GIB:.2f}, KV cache of {self.n_ctx} tokens {self.kv_bytes / GIB:.2f}, "
            f"buffers {self.compute_bytes / GIB:.2f})"
        )


def repacked() -> frozenset[str]:
    """Return the tensor types that the installed llama.cpp holds a second time on this processor."""
    if not verdict.current().extra_buffers:
        return frozenset()
    return repacked_types(llama().llama_print_system_info().decode())


def repacked_types(features: str) -> frozenset[str]:
    """Return the tensor types that llama.cpp holds a second time, in an order made for the processor.

    `features` is ``llama_print_system_info()``; the rules are ``ggml_repack_get_optimal_repack_type``
    (ggml-cpu/repack.cpp) and the ``supports_op`` of AMX's buffers (ggml-cpu/amx/amx.cpp).
    """
    has = set(re.findall(r"(\w+) = 1", features))
    types: set[str] = set()
    if "REPACK" in has and "AVX2" in has:
        types |= {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
    if "REPACK" in has and "AVX512" in has:
        types |= {"Q2_K"}
    if "REPACK" in has and "NEON" in has and ("DOTPROD" in has or "MATMUL_INT8" in has):
        types |= {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4", "Q1_0"}
    if {"AMX_INT8", "AVX512_VNNI"} <= has:
        types |= {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "F16"}
    return frozenset(types)


def memory_needed(
    header: Header,
    *,
    n_ctx: int,
    n_ubatch: int = 512,
    kv_type: str = "F16",
    flash_attn: bool = True,
    repacked: frozenset[str] = frozenset(),
) -> MemoryNeeded:
    """Return what the file of `header` needs with a context of `n_ctx` tokens; `repacked` is from `repacked_types`."""
    n_ctx = -(-n_ctx // _CTX_STEP) * _CTX_STEP
    weights = header.tensor_bytes
    # The embedding is read row by row and stays as it is; matrices need rows in groups of 8.
    again = sum(
        tensor.nbytes
        for tensor in header.all_tensors
        if tensor.type.name in repacked and tensor.name != "token_embd.weight" and len(tensor.shape) == 2
    )
    kv = TENSOR_TYPES[kv_type.upper()]
    heads = _known(lambda: header.n_head_kv * (header.n_embd_head_k + header.n_embd_head_v))
    kv_bytes = n_ctx * _known(lambda: header.n_layer) * heads * kv.block_bytes // kv.block_size
    widest = max(header.n_vocab, 2 * (_known(lambda: header.n_ff) + _known(lambda: header.n_embd)))
    attention = 4 if flash_attn else 4 + 4 * _known(lambda: header.n_head)
    per_row = 4 * (widest + 4 * _known(lambda: header.n_embd)) + n_ctx * attention
    return MemoryNeeded(n_ctx, weights, again, kv_bytes, n_ubatch * per_row + 4 * header.n_vocab)


def _known(number: Callable[[], int]) -> int:
    """Return a key's number, 0 where an architecture has no such key: a recurrent model has no heads to cache."""
    try:
        return number()
    except GGUFError:
        return 0


def fit(
    header: Header,
    *,
    n_ctx: int | None,
    free_bytes: int,
    n_ubatch: int = 512,
    kv_type: str = "F16",
    flash_attn: bool = True,
    repacked: frozenset[str] = frozenset(),
) -> MemoryNeeded:
    """Return what the model needs at `n_ctx`, or at the default context: at most 8192, what it was trained for, and
    what `free_bytes` hold. Raises ``OutOfMemoryError`` with the numbers and the nearest setting that fits.
    """

    def need(n: int, kv: str = kv_type) -> MemoryNeeded:
        return memory_needed(
            header, n_ctx=n, n_ubatch=n_ubatch, kv_type=kv, flash_attn=flash_attn or kv != kv_type, repacked=repacked
        )

    wanted = (
        n_ctx if n_ctx is not None else max(1, min(DEFAULT_N_CTX, _known(lambda: header.n_ctx_train) or DEFAULT_N_CTX))
    )
    if need(wanted).total_bytes <= free_bytes:
        return need(wanted)
    per_step = need(2 * _CTX_STEP).total_bytes - need(_CTX_STEP).total_bytes
    room = (free_bytes - need(_CTX_STEP).total_bytes) // per_step + 1 if per_step else 0
    largest = min(room * _CTX_STEP, wanted - 1) // _CTX_STEP * _CTX_STEP
    if largest >= _CTX_STEP and n_ctx is None:
        return need(largest)
    name = header.path.name
    if largest >= _CTX_STEP:
        advice = f"n_ctx={largest} fits"
        if need(wanted, "Q8_0").total_bytes <= free_bytes:
            advice += ", and so does kv_type='Q8_0'"
    else:
        advice = "convert it to a smaller type, close other programs, or run a smaller model"
    raise OutOfMemoryError(f"{name} needs {need(wanted)}, and {free_bytes / GIB:.2f} GiB are free: {advice}")


def planned_n_ctx(
    header: Header,
    n_ctx: int | None,
    *,
    on_gpu: bool,
    kv_type: str,
    flash_attn: bool,
    repacked: frozenset[str],
    draft: Header | None = None,
) -> int:
    """Return the context length to load a model with, beside the one of `draft`; ``OutOfMemoryError`` as `fit` has it.

    A model whose layers are on a GPU is measured by llama.cpp alone. `repacked` is from `repacked_types`.
    """
    usual = n_ctx or min(DEFAULT_N_CTX, header.n_ctx_train)
    if on_gpu:
        return usual
    drafts = memory_needed(draft, n_ctx=usual, repacked=repacked).total_bytes if draft else 0
    need = fit(
        header,
        n_ctx=n_ctx,
        free_bytes=free_memory_bytes() - drafts,
        kv_type=kv_type,
        flash_attn=flash_attn,
        repacked=repacked,
    )
    return n_ctx or need.n_ctx
