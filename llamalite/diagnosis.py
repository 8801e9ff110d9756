"""What this machine can do with a model, foretold from its memory: for ``llamalite doctor``.

    machine = examine()                                     # cores, instructions, memory and its speed, devices
    for one in shapes_that_fit(machine, n_ctx=8192): ...    # the largest type of each usual size, expected speed
    best_threads(rows)                                      # of measured rows (`llamalite.benchmark`)

Generation reads all weights once a token, so that it cannot be faster than the memory: expected tokens a second are the
measured bandwidth by the bytes of weights. It is a bound that a good build on an idle machine comes close to.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamalite import hardware
from llamalite._version import __version__
from llamalite.benchmark import Row, bytes_a_token, memory_bandwidth
from llamalite.converters.mix import ModelShape, TensorShape, choose_types
from llamalite.gguf_check import Header, Metadata, TensorInfo
from llamalite.gguf_check.header import Entry
from llamalite.native import devices, features, library, verdict
from llamalite.quant_types import TENSOR_TYPES, file_type

TYPES = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
"""The usual types, the largest first."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a published LLaMA model, from its config.json."""

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


SHAPES = (
    Shape("SmolLM2 135M", 30, 576, 9, 3, 64, 1536, 49152, tied=True, n_ctx_train=8192),
    Shape("TinyLlama 1.1B", 22, 2048, 32, 4, 64, 5632, 32000, tied=False, n_ctx_train=2048),
    Shape("Llama 3.2 3B", 28, 3072, 24, 8, 128, 8192, 128256, tied=True, n_ctx_train=131072),
    Shape("Llama 3.1 8B", 32, 4096, 32, 8, 128, 14336, 128256, tied=False, n_ctx_train=131072),
    Shape("Llama 2 13B", 40, 5120, 40, 40, 128, 13824, 32000, tied=False, n_ctx_train=4096),
    Shape("Llama 3.3 70B", 80, 8192, 64, 8, 128, 28672, 128256, tied=False, n_ctx_train=131072),
)


@dataclass(frozen=True)
class Machine:
    """What there is. None is not known; bytes a second were measured with `n_threads` threads."""

    processor: str
    n_cores: int | None  # physical, of the machine
    n_usable: int  # physical, that this process may use: the threads that generation is best run with
    n_hardware_threads: int
    features: tuple[features.Feature, ...]
    total_bytes: int | None
    free_bytes: int
    bandwidth_bytes_per_s: float
    devices: tuple[devices.Device, ...]
    supports_gpu: bool
    verdict: verdict.LibraryVerdict  # on the installed llama.cpp, from its trial on this processor
    versions: dict[str, str]

    @property
    def missed(self) -> list[str]:
        """Instructions that the processor has and the installed llama.cpp does not use."""
        return [one.name for one in self.features if one.there and not one.used]

    @property
    def unknown(self) -> list[str]:
        return [one.name for one in self.features if one.there is None and not one.used]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"missed": self.missed, "backends": devices.backends()}


def this_machine() -> dict[str, Any]:
    """Return what a figure that was measured here is to be told with; nothing is measured for it."""
    return {
        "processor": features.processor_name(),
        "n_cores": hardware.machine_cores(),
        "n_usable": hardware.physical_cores(),
        "memory_bytes": hardware.total_memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def examine() -> Machine:
    """Look at the machine, and measure its memory for about a second."""
    n_usable = hardware.physical_cores()
    return Machine(
        processor=features.processor_name(),
        n_cores=hardware.machine_cores(),
        n_usable=n_usable,
        n_hardware_threads=hardware.hardware_threads(),
        features=tuple(features.cpu_features()),
        total_bytes=hardware.total_memory_bytes(),
        free_bytes=hardware.free_memory_bytes(),
        bandwidth_bytes_per_s=memory_bandwidth(n_usable),
        devices=tuple(devices.devices()),
        supports_gpu=bool(library.llama().llama_supports_gpu_offload()),
        verdict=verdict.current(),
        versions={
            "llamalite": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        }
        | dict(part.rsplit(" ", 1) for part in library.version().split(", ")),
    )


@dataclass(frozen=True)
class Fitting:
    """A model in a type: what it needs with `n_ctx` tokens of context, and how fast it is expected to generate."""

    name: str
    qtype: str | None
    n_params: int
    n_bytes: int
    n_ctx: int
    needed_bytes: int
    fits: bool
    tok_per_s: float
    """Bandwidth by the bytes read a token: a bound from above."""


def fitting(header: Header, machine: Machine, *, n_ctx: int, name: str | None = None) -> Fitting:
    """Return what `machine` makes of the file of `header`."""
    need = hardware.memory_needed(header, n_ctx=n_ctx, repacked=hardware.repacked())
    return Fitting(
        name=name or header.path.name,
        qtype=header.file_type,
        n_params=header.n_params,
        n_bytes=header.tensor_bytes,
        n_ctx=need.n_ctx,
        needed_bytes=need.total_bytes,
        fits=need.total_bytes <= machine.free_bytes,
        tok_per_s=machine.bandwidth_bytes_per_s / bytes_a_token(header),
    )


def shapes_that_fit(machine: Machine, *, n_ctx: int) -> list[Fitting]:
    """Return each of `SHAPES` in the largest of `TYPES` that fits; in the smallest, not fitting, if none does.

    The context is `n_ctx`, and at most what the model was trained for.
    """
    found = []
    for shape in SHAPES:
        in_types = (_fitting(shape, qtype, machine, n_ctx) for qtype in TYPES)
        one = next(one for one in in_types if one.fits or one.qtype == TYPES[-1])
        found.append(one)
    return found


def usual_type(machine: Machine, *, n_ctx: int) -> list[Fitting]:
    """Return each of `SHAPES` as Q4_K_M, with the context of `shapes_that_fit`."""
    return [_fitting(shape, "Q4_K_M", machine, n_ctx) for shape in SHAPES]


def _fitting(shape: Shape, qtype: str, machine: Machine, n_ctx: int) -> Fitting:
    return fitting(header_of(shape, qtype), machine, n_ctx=min(n_ctx, shape.n_ctx_train), name=shape.name)


def header_of(shape: Shape, qtype: str) -> Header:
    """Return the header that a file of `shape` in `qtype` would have: the tensors that a conversion would choose."""
    kind, stored = file_type(qtype), TENSOR_TYPES["BF16"]
    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    matrices: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (shape.n_vocab, shape.n_embd))]
    if not shape.tied:
        matrices.append(("output.weight", (shape.n_vocab, shape.n_embd)))
    for i in range(shape.n_layer):
        for name, size in (
            ("attn_q", (n_q, shape.n_embd)), ("attn_k", (n_kv, shape.n_embd)), ("attn_v", (n_kv, shape.n_embd)),
            ("attn_output", (shape.n_embd, n_q)), ("ffn_gate", (shape.n_ff, shape.n_embd)),
            ("ffn_up", (shape.n_ff, shape.n_embd)), ("ffn_down", (shape.n_embd, shape.n_ff)),
        ):  # fmt: skip
            matrices.append((f"blk.{i}.{name}.weight", size))
    shapes = [TensorShape(name, size, stored) for name, size in matrices]
    chosen = choose_types(kind, shapes, ModelShape(shape.n_layer, shape.n_head, shape.n_head_kv))
    tensors = tuple(
        TensorInfo(one.name, t := chosen[one.name].type, one.shape[::-1], 0, one.shape[0] * t.row_bytes(one.n_columns))
        for one in shapes
    )
    keys = {
        "block_count": shape.n_layer, "embedding_length": shape.n_embd, "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_head, "attention.head_count_kv": shape.n_head_kv,
        "attention.key_length": shape.head_dim, "attention.value_length": shape.head_dim, "vocab_size": shape.n_vocab,
    }  # fmt: skip
    entries = {f"llama.{key}": Entry("uint32", value) for key, value in keys.items()}
    entries |= {"general.architecture": Entry("string", "llama"), "general.file_type": Entry("uint32", kind.ftype)}
    n_bytes = sum(one.nbytes for one in tensors)
    return Header(Path(f"{shape.name}-{qtype}.gguf"), 3, 32, Metadata(entries, b""), tensors, 0, n_bytes)


def thread_counts(machine: Machine) -> list[int]:
    """Return the numbers of threads worth measuring: powers of two, the usable cores, all hardware threads."""
    most = machine.n_hardware_threads
    powers = [2**i for i in range(10) if 2**i <= most]
    return sorted({*powers, machine.n_usable, most})


def best_threads(rows: Iterable[Row]) -> Row:
    """Return the row of the fewest threads that generates as fast as any, within the standard deviations of both."""
    measured: Sequence[Row] = sorted(rows, key=lambda row: row.n_threads)
    fastest = max(measured, key=lambda row: row.tok_per_s)
    return next(row for row in measured
                if row.tok_per_s + row.tok_per_s_sd >= fastest.tok_per_s - fastest.tok_per_s_sd)  # fmt: skip
