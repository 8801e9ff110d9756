"""The memory that a model needs, and the longest context for which the free memory is enough.

needed = memory_needed(read_header(path), n_ctx=4096)
needed.total_bytes, needed.fits(free_memory_bytes())
plan_memory(read_header(path), n_ctx=None, free_bytes=free_memory_bytes()).n_ctx     # the default context length
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
_CTX_STEP = 256  # llama.cpp rounds n_ctx up to a multiple of it (llama_context's constructor, llama-context.cpp)


@dataclass(frozen=True)
class MemoryNeeded:
    """Bytes that a model needs on the CPU with a context of `n_ctx` tokens.

    They are the weights, the copy of weights that llama.cpp repacks for the processor's vector units, the KV cache, and
    the buffers in which a micro-batch is computed; the buffers are an upper estimate.
    """

    n_ctx: int
    weights_bytes: int
    repacked_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.repacked_bytes + self.kv_bytes + self.compute_bytes

    def fits(self, free_bytes: int) -> bool:
        return self.total_bytes <= free_bytes

    def __str__(self) -> str:
        return (
            f"{self.total_bytes / GIB:.2f} GiB (weights {self.weights_bytes / GIB:.2f}, repacked copy "
            f"{self.repacked_bytes / GIB:.2f}, KV cache of {self.n_ctx} tokens {self.kv_bytes / GIB:.2f}, "
            f"buffers {self.compute_bytes / GIB:.2f})"
        )


def repacked_types(features: str | None = None) -> frozenset[str]:
    """Return the tensor types of which llama.cpp keeps a second copy, in an order made for the processor.

    `features` is the text of ``llama_print_system_info()``; by default, that of the installed llama.cpp here, without
    what its trial turned off. The rules are ``ggml_repack_get_optimal_repack_type`` (ggml-cpu/repack.cpp) and the
    ``supports_op`` of AMX's buffers (ggml-cpu/amx/amx.cpp).
    """
    if features is None:
        if not verdict.current().extra_buffers:
            return frozenset()
        features = llama().llama_print_system_info().decode()
    used = set(re.findall(r"(\w+) = 1", features))
    types: set[str] = set()
    if "REPACK" in used and "AVX2" in used:
        types |= {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
    if "REPACK" in used and "AVX512" in used:
        types |= {"Q2_K"}
    if "REPACK" in used and "NEON" in used and ("DOTPROD" in used or "MATMUL_INT8" in used):
        types |= {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4", "Q1_0"}
    if {"AMX_INT8", "AVX512_VNNI"} <= used:
        types |= {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "F16"}
    return frozenset(types)


def memory_needed(
    header: Header,
    *,
    n_ctx: int,
    n_ubatch: int = 512,
    kv_type: str = "F16",
    flash_attn: bool = True,
    repacked: frozenset[str] | None = None,
) -> MemoryNeeded:
    """Return the memory that the model with this header needs with a context of `n_ctx` tokens.

    `repacked` is the result of `repacked_types`; by default, the one for this machine.
    """
    if repacked is None:
        repacked = repacked_types()
    n_ctx = -(-n_ctx // _CTX_STEP) * _CTX_STEP
    # The embedding is read row by row and never repacked, nor is anything but a matrix.
    repacked_bytes = sum(
        tensor.nbytes
        for tensor in header.all_tensors
        if tensor.type.name in repacked and tensor.name != "token_embd.weight" and len(tensor.shape) == 2
    )
    kv = TENSOR_TYPES[kv_type.upper()]
    heads = _number_or_zero(lambda: header.n_head_kv * (header.n_embd_head_k + header.n_embd_head_v))
    kv_bytes = n_ctx * _number_or_zero(lambda: header.n_layer) * heads * kv.block_bytes // kv.block_size
    widest = max(header.n_vocab, 2 * (_number_or_zero(lambda: header.n_ff) + _number_or_zero(lambda: header.n_embd)))
    attention = 4 if flash_attn else 4 + 4 * _number_or_zero(lambda: header.n_head)
    per_row = 4 * (widest + 4 * _number_or_zero(lambda: header.n_embd)) + n_ctx * attention
    compute_bytes = n_ubatch * per_row + 4 * header.n_vocab
    return MemoryNeeded(n_ctx, header.tensor_bytes, repacked_bytes, kv_bytes, compute_bytes)


def _number_or_zero(number: Callable[[], int]) -> int:
    """Return a key's number, or 0 if the architecture has no such key: a recurrent model has no heads to cache."""
    try:
        return number()
    except GGUFError:
        return 0


def plan_memory(
    header: Header,
    *,
    n_ctx: int | None,
    free_bytes: int,
    kv_type: str = "F16",
    flash_attn: bool = True,
    repacked: frozenset[str] | None = None,
) -> MemoryNeeded:
    """Return the memory that the model needs at `n_ctx`, or at the default context length.

    The default is 8192 tokens, or fewer if the model was trained for fewer or `free_bytes` are not enough for them.
    Raises ``OutOfMemoryError`` with the numbers, and with the nearest setting that fits.
    """
    if repacked is None:
        repacked = repacked_types()

    def needed(n: int, kv: str = kv_type) -> MemoryNeeded:
        # A quantized cache needs flash attention.
        flash = flash_attn or kv != kv_type
        return memory_needed(header, n_ctx=n, kv_type=kv, flash_attn=flash, repacked=repacked)

    trained = _number_or_zero(lambda: header.n_ctx_train) or DEFAULT_N_CTX
    wanted = n_ctx if n_ctx is not None else max(1, min(DEFAULT_N_CTX, trained))
    if needed(wanted).fits(free_bytes):
        return needed(wanted)
    per_step = needed(2 * _CTX_STEP).total_bytes - needed(_CTX_STEP).total_bytes
    n_steps = (free_bytes - needed(_CTX_STEP).total_bytes) // per_step + 1 if per_step else 0
    largest = min(n_steps * _CTX_STEP, wanted - 1) // _CTX_STEP * _CTX_STEP
    if largest >= _CTX_STEP and n_ctx is None:
        return needed(largest)
    if largest >= _CTX_STEP:
        advice = f"n_ctx={largest} fits"
        if needed(wanted, "Q8_0").fits(free_bytes):
            advice += ", and so does kv_type='Q8_0'"
    else:
        advice = "convert it to a smaller type, close other programs, or run a smaller model"
    raise OutOfMemoryError(
        f"{header.path.name} needs {needed(wanted)}, and {free_bytes / GIB:.2f} GiB are free: {advice}"
    )


def planned_n_ctx(
    header: Header,
    n_ctx: int | None,
    *,
    on_gpu: bool,
    kv_type: str,
    flash_attn: bool,
    draft: Header | None = None,
    n_parallel: int = 1,
) -> int:
    """Return the context length to load a model with, leaving room for its draft model if it has one.

    Without an `n_ctx`, it is one for `n_parallel` generations of 1024 tokens, if memory allows.

    Raises ``OutOfMemoryError`` as `plan_memory` does. For layers on a GPU, llama.cpp itself checks the memory.
    """
    default = n_ctx or min(DEFAULT_N_CTX, header.n_ctx_train)
    if on_gpu:
        return default
    draft_bytes = memory_needed(draft, n_ctx=default).total_bytes if draft else 0
    free_bytes = free_memory_bytes() - draft_bytes
    for_all = 1024 * n_parallel
    if n_ctx is None and for_all > default:
        needed = memory_needed(header, n_ctx=for_all, kv_type=kv_type, flash_attn=flash_attn)
        if needed.total_bytes <= free_bytes // 2:
            return for_all
    planned = plan_memory(header, n_ctx=n_ctx, free_bytes=free_bytes, kv_type=kv_type, flash_attn=flash_attn)
    return n_ctx or planned.n_ctx
