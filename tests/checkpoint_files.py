"""Checkpoints as torch, safetensors and Meta write them, made by hand, so that the default tests need none of them.

    save_torch(tmp_path / "pytorch_model.bin", {"w": Weights("F32", np.ones((2, 3), np.float32))})

The pickles are put together instruction by instruction: that is also how the hostile ones are made.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "F8_E4M3": 1}
STORAGES = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
}


@dataclass(frozen=True)
class Weights:
    """A tensor: its dtype as safetensors calls it, and its elements; BF16 as uint16 bits."""

    dtype: str
    array: npt.NDArray[Any]

    @property
    def raw(self) -> bytes:
        return np.ascontiguousarray(self.array).tobytes()


def random_weights(shape: tuple[int, ...], dtype: str = "F32", seed: int = 0) -> Weights:
    """Finite values of about 1/sqrt(columns) in size, the same for the same seed."""
    values = np.random.default_rng(seed).standard_normal(shape) / shape[-1] ** 0.5
    if dtype == "BF16":
        return Weights(dtype, (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
    return Weights(dtype, values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]))


# -- pickles, instruction by instruction ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Global:
    """A name, as the instruction GLOBAL looks it up: ``Global("os", "system")``."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call of a `function` with `arguments`, as the instruction REDUCE makes it."""

    function: Any
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Persistent:
    """An object that is kept outside of the pickle: torch's storages."""

    identity: tuple[Any, ...]


def emit(value: Any) -> bytes:
    """The instructions (protocol 2) that leave `value` on the stack."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return (
            b"J" + struct.pack("<i", value) if -(1 << 31) <= value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)
        )
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(emit, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(emit, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(emit(key) + emit(item) for key, item in value.items()) + b"u"
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return emit(value.function) + emit(value.arguments) + b"R"
    if isinstance(value, Persistent):
        return emit(value.identity) + b"Q"
    if isinstance(value, bytes):  # instructions already
        return value
    raise TypeError(type(value))


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + emit(value) + b"."


def storage(key: str, dtype: str, n_elements: int, *, legacy: bool = False) -> Persistent:
    view = (None,) if legacy else ()
    return Persistent(("storage", Global("torch", STORAGES[dtype]), key, "cpu", n_elements, *view))


def tensor(of: Persistent, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0) -> Call:
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    hooks = Call(Global("collections", "OrderedDict"))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (of, offset, shape, strides, False, hooks))


# -- whole files ------------------------------------------------------------------------------------------------------


def save_archive(
    path: Path, state: Any, storages: Mapping[str, bytes], *, byteorder: str = "little", compress: bool = False
) -> Path:
    """A zip as torch 1.6 and later write it, with `state` in its data.pkl."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled(state))
        archive.writestr("archive/byteorder", byteorder)
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
        archive.writestr("archive/version", "3\n")
    return path


def save_torch(path: Path, tensors: Mapping[str, Weights], *, legacy: bool = False) -> Path:
    """What ``torch.save(state_dict, path)`` writes, in the zip or the older form."""
    state = {
        name: tensor(storage(str(i), one.dtype, one.array.size, legacy=legacy), one.array.shape)
        for i, (name, one) in enumerate(tensors.items())
    }
    raw = {str(i): one.raw for i, one in enumerate(tensors.values())}
    if not legacy:
        return save_archive(path, state, raw)
    return save_legacy(path, state, raw, {str(i): one.array.size for i, one in enumerate(tensors.values())})


def save_legacy(path: Path, state: Any, storages: Mapping[str, bytes], sizes: Mapping[str, int]) -> Path:
    """Five pickles (a magic number, a version, the byte order, the state, the storages' keys), then the storages."""
    magic = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with path.open("wb") as file:
        file.write(magic + pickled(1001) + pickled(system) + pickled(state) + pickled([*storages]))
        for key, raw in storages.items():
            file.write(struct.pack("<q", sizes[key]) + raw)
    return path


def save_safetensors(path: Path, tensors: Mapping[str, Weights], header: Mapping[str, Any] | None = None) -> Path:
    """A safetensors file; `header` replaces the entries that it would have."""
    entries: dict[str, Any] = {}
    end = 0
    for name, one in tensors.items():
        entries[name] = {"dtype": one.dtype, "shape": one.array.shape, "data_offsets": [end, end + len(one.raw)]}
        end += len(one.raw)
    text = json.dumps(entries if header is None else header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(one.raw for one in tensors.values()))
    return path


# -- a small LLaMA ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToyLlama:
    """The sizes of a model that is small enough to be written in a moment."""

    n_embd: int = 64
    n_head: int = 8
    n_head_kv: int = 8
    n_ff: int = 96
    n_layer: int = 2
    n_vocab: int = 128

    @property
    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.n_embd,
            "intermediate_size": self.n_ff,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head_kv,
            "num_hidden_layers": self.n_layer,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "vocab_size": self.n_vocab,
            "tie_word_embeddings": False,
        }

    def tensors(self, dtype: str = "F32", *, tied: bool = False) -> dict[str, Weights]:
        """Hugging Face's names, q and k in Hugging Face's order of rows."""
        n_kv = self.n_embd // self.n_head * self.n_head_kv
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.n_vocab, self.n_embd)}
        for i in range(self.n_layer):
            layer = f"model.layers.{i}."
            shapes |= {
                f"{layer}self_attn.q_proj.weight": (self.n_embd, self.n_embd),
                f"{layer}self_attn.k_proj.weight": (n_kv, self.n_embd),
                f"{layer}self_attn.v_proj.weight": (n_kv, self.n_embd),
                f"{layer}self_attn.o_proj.weight": (self.n_embd, self.n_embd),
                f"{layer}mlp.gate_proj.weight": (self.n_ff, self.n_embd),
                f"{layer}mlp.up_proj.weight": (self.n_ff, self.n_embd),
                f"{layer}mlp.down_proj.weight": (self.n_embd, self.n_ff),
                f"{layer}input_layernorm.weight": (self.n_embd,),
                f"{layer}post_attention_layernorm.weight": (self.n_embd,),
            }
        shapes["model.norm.weight"] = (self.n_embd,)
        if not tied:
            shapes["lm_head.weight"] = (self.n_vocab, self.n_embd)
        return {name: random_weights(shape, dtype, seed) for seed, (name, shape) in enumerate(shapes.items())}
