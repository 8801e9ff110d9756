"""What memory and speed to expect of a model, before it is loaded or even downloaded: for ``llamalite doctor``.

    machine = examine()                                            # `llamalite.performance.machine`
    forecast(read_header("demo-Q4_K_M.gguf"), machine, n_ctx=4096)
    for expected in largest_that_fit(machine, n_ctx=8192): ...     # each published size in the largest type that fits

Generating a token reads all weights from memory, so that generation is at most as fast as the memory: bandwidth divided
by the bytes of the weights. A good build on an idle machine comes close to this bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llamalite.converters.mix import ModelShape, TensorShape, choose_types
from llamalite.gguf_check import Header, Metadata, TensorInfo
from llamalite.gguf_check.header import Entry
from llamalite.hardware import memory_needed
from llamalite.performance.machine import Machine
from llamalite.quant_types import TENSOR_TYPES, file_type

TYPES = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
"""The usual types, the largest first."""


@dataclass(frozen=True)
class PublishedModel:
    """The sizes of a published LLaMA model, from its config.json."""

    name: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    tied: bool  # the output matrix is the embedding
    n_ctx_train: int  # tokens of context that it was trained for


PUBLISHED = (
    PublishedModel("SmolLM2 135M", 30, 576, 9, 3, 64, 1536, 49152, tied=True, n_ctx_train=8192),
    PublishedModel("TinyLlama 1.1B", 22, 2048, 32, 4, 64, 5632, 32000, tied=False, n_ctx_train=2048),
    PublishedModel("Llama 3.2 3B", 28, 3072, 24, 8, 128, 8192, 128256, tied=True, n_ctx_train=131072),
    PublishedModel("Llama 3.1 8B", 32, 4096, 32, 8, 128, 14336, 128256, tied=False, n_ctx_train=131072),
    PublishedModel("Llama 2 13B", 40, 5120, 40, 40, 128, 13824, 32000, tied=False, n_ctx_train=4096),
    PublishedModel("Llama 3.3 70B", 80, 8192, 64, 8, 128, 28672, 128256, tied=False, n_ctx_train=131072),
)


@dataclass(frozen=True)
class Forecast:
    """The memory that a model needs with `n_ctx` tokens of context, and the most tokens per second to expect of it."""

    name: str
    qtype: str | None
    n_params: int
    n_bytes: int
    n_ctx: int
    needed_bytes: int
    fits: bool
    tok_per_s: float  # an upper bound: bandwidth divided by the bytes that a token reads


def forecast(header: Header, machine: Machine, *, n_ctx: int, name: str | None = None) -> Forecast:
    """Return what to expect on `machine` of the model with this header; `name` replaces the file's name."""
    needed = memory_needed(header, n_ctx=n_ctx)
    return Forecast(
        name=name or header.path.name,
        qtype=header.file_type,
        n_params=header.n_params,
        n_bytes=header.tensor_bytes,
        n_ctx=needed.n_ctx,
        needed_bytes=needed.total_bytes,
        fits=needed.fits(machine.free_bytes),
        tok_per_s=machine.bandwidth_bytes_per_s / bytes_per_token(header),
    )


def bytes_per_token(header: Header) -> int:
    """Return the bytes of weights that generating one token reads: all but the embedding, of which it reads one row.

    A tied embedding is also the output matrix, and is read whole. The KV cache, small at a few hundred tokens, is not
    counted.
    """
    names = {tensor.name for tensor in header.all_tensors}
    tied = "output.weight" not in names
    return sum(tensor.nbytes for tensor in header.all_tensors if tied or tensor.name != "token_embd.weight")


def largest_that_fit(machine: Machine, *, n_ctx: int) -> list[Forecast]:
    """Return a forecast for each of `PUBLISHED` in the largest of `TYPES` that fits, or in the smallest if none does.

    The context has `n_ctx` tokens, or as many as the model was trained for if those are fewer.
    """
    return [
        next(
            expected
            for qtype in TYPES
            if (expected := _forecast_published(model, qtype, machine, n_ctx)).fits or qtype == TYPES[-1]
        )
        for model in PUBLISHED
    ]


def as_q4_k_m(machine: Machine, *, n_ctx: int) -> list[Forecast]:
    """Return a forecast for each of `PUBLISHED` as Q4_K_M, with the context of `largest_that_fit`."""
    return [_forecast_published(model, "Q4_K_M", machine, n_ctx) for model in PUBLISHED]


def _forecast_published(model: PublishedModel, qtype: str, machine: Machine, n_ctx: int) -> Forecast:
    return forecast(header_of(model, qtype), machine, n_ctx=min(n_ctx, model.n_ctx_train), name=model.name)


def header_of(model: PublishedModel, qtype: str) -> Header:
    """Return the header that `model` would have if it were converted to `qtype`."""
    kind, stored = file_type(qtype), TENSOR_TYPES["BF16"]
    n_q, n_kv = model.n_head * model.head_dim, model.n_head_kv * model.head_dim
    matrices: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (model.n_vocab, model.n_embd))]
    if not model.tied:
        matrices.append(("output.weight", (model.n_vocab, model.n_embd)))
    for i in range(model.n_layer):
        for name, shape in (
            ("attn_q", (n_q, model.n_embd)), ("attn_k", (n_kv, model.n_embd)), ("attn_v", (n_kv, model.n_embd)),
            ("attn_output", (model.n_embd, n_q)), ("ffn_gate", (model.n_ff, model.n_embd)),
            ("ffn_up", (model.n_ff, model.n_embd)), ("ffn_down", (model.n_embd, model.n_ff)),
        ):  # fmt: skip
            matrices.append((f"blk.{i}.{name}.weight", shape))
    shapes = [TensorShape(name, shape, stored) for name, shape in matrices]
    chosen = choose_types(kind, shapes, ModelShape(model.n_layer, model.n_head, model.n_head_kv))
    tensors = []
    for tensor in shapes:
        qtype_of_tensor = chosen[tensor.name].type
        n_bytes = tensor.shape[0] * qtype_of_tensor.row_bytes(tensor.n_columns)
        tensors.append(TensorInfo(tensor.name, qtype_of_tensor, tensor.shape[::-1], 0, n_bytes))
    keys = {
        "block_count": model.n_layer, "embedding_length": model.n_embd, "feed_forward_length": model.n_ff,
        "attention.head_count": model.n_head, "attention.head_count_kv": model.n_head_kv,
        "attention.key_length": model.head_dim, "attention.value_length": model.head_dim, "vocab_size": model.n_vocab,
    }  # fmt: skip
    entries = {f"llama.{key}": Entry("uint32", value) for key, value in keys.items()}
    entries |= {"general.architecture": Entry("string", "llama"), "general.file_type": Entry("uint32", kind.ftype)}
    total_bytes = sum(tensor.nbytes for tensor in tensors)
    path = Path(f"{model.name}-{qtype}.gguf")
    return Header(path, 3, 32, Metadata(entries, b""), tuple(tensors), 0, total_bytes)
