"""Checkpoints like those of torch, safetensors and Meta, written here so that the default tests need none of them.

    save_torch(tmp_path / "pytorch_model.bin", {"w": Weights("F32", np.ones((2, 3), np.float32))})

Pickles, including hostile ones, are built instruction by instruction.
"""

from __future__ import annotations

import base64
import json
import shutil
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizer_toys import byte_alphabet

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
        name: tensor(storage(str(i), weights.dtype, weights.array.size, legacy=legacy), weights.array.shape)
        for i, (name, weights) in enumerate(tensors.items())
    }
    raw = {str(i): weights.raw for i, weights in enumerate(tensors.values())}
    if not legacy:
        return save_archive(path, state, raw)
    return save_legacy(path, state, raw, {str(i): weights.array.size for i, weights in enumerate(tensors.values())})


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
    for name, weights in tensors.items():
        entries[name] = {
            "dtype": weights.dtype,
            "shape": weights.array.shape,
            "data_offsets": [end, end + len(weights.raw)],
        }
        end += len(weights.raw)
    text = json.dumps(entries if header is None else header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(weights.raw for weights in tensors.values()))
    return path


def load_safetensors(path: Path) -> dict[str, Weights]:
    """Read a whole safetensors file."""
    raw = path.read_bytes()
    n_header = struct.unpack_from("<Q", raw)[0]
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    tensors = {}
    for name, entry in json.loads(raw[8 : 8 + n_header]).items():
        if name != "__metadata__":
            begin, end = (8 + n_header + offset for offset in entry["data_offsets"])
            tensors[name] = Weights(
                entry["dtype"], np.frombuffer(raw[begin:end], kinds[entry["dtype"]]).reshape(entry["shape"])
            )
    return tensors


# -- one model in several forms ---------------------------------------------------------------------------------------


def pad_vocabulary(folder: Path, multiple: int) -> None:
    """Give the embedding of a Hugging Face checkpoint rows up to a `multiple`, as models split over GPUs have."""
    tensors = load_safetensors(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            array = tensors[name].array
            tensors[name] = Weights(tensors[name].dtype, np.pad(array, ((0, -len(array) % multiple), (0, 0))))
    save_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = len(tensors["model.embed_tokens.weight"].array)
    (folder / "config.json").write_text(json.dumps(config))


def as_pickles(folder: Path, out: Path, n_shards: int = 1, *, legacy: bool = False) -> Path:
    """Copy the checkpoint in `folder` to `out`, with its weights in ``pytorch_model*.bin``."""
    shutil.copytree(folder, out)
    (out / "model.safetensors").unlink()
    tensors = load_safetensors(folder / "model.safetensors")
    if n_shards == 1:
        save_torch(out / "pytorch_model.bin", tensors, legacy=legacy)
        return out
    weight_map: dict[str, str] = {}
    for i in range(n_shards):
        shard = f"pytorch_model-{i + 1:05}-of-{n_shards:05}.bin"
        part = dict(list(tensors.items())[i::n_shards])
        save_torch(out / shard, part, legacy=legacy)
        weight_map |= dict.fromkeys(part, shard)
    (out / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return out


_META_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def as_meta(folder: Path, out: Path, n_shards: int = 1, *, embedding_rows: bool = False, **params: Any) -> Path:
    """Copy the checkpoint in `folder` to `out`, as Meta publishes it: split over `n_shards`, q and k in pairs.

    `embedding_rows` splits the embedding as Llama 3 does; `params` adds to params.json or replaces what is there.
    """
    out.mkdir(parents=True)
    config = json.loads((folder / "config.json").read_text())
    if (folder / "tokenizer.model").exists():
        shutil.copy(folder / "tokenizer.model", out)
    known = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "multiple_of": 64,
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": -1,
    }
    (out / "params.json").write_text(json.dumps({k: v for k, v in (known | params).items() if v is not None}))
    shards: list[dict[str, Weights]] = [{} for _ in range(n_shards)]
    for name, weights in load_safetensors(folder / "model.safetensors").items():
        array = weights.array
        for heads, of in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if heads in name:  # rotary pairs, half a head apart in Hugging Face's order, next to each other
                halves = array.reshape(config[of], 2, -1, array.shape[1])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        for theirs, metas in _META_NAMES.items():
            name = name.replace(theirs, metas)
        axis = 1 if ".wo." in name or ".w2." in name or ("tok_emb" in name and not embedding_rows) else 0
        if n_shards > config["num_key_value_heads"] and name.endswith((".wk.weight", ".wv.weight")):
            # Llama 3.1 405B in 16 shards: a head stands in as many neighbours as share it.
            heads_of = array.reshape(config["num_key_value_heads"], -1, array.shape[1])
            array = heads_of.repeat(n_shards // len(heads_of), axis=0).reshape(-1, array.shape[1])
        parts = np.split(array, n_shards, axis) if array.ndim == 2 else [array] * n_shards
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = Weights(weights.dtype, np.ascontiguousarray(part))
    for i, shard in enumerate(shards):
        shard["rope.freqs"] = random_weights((4,))
        save_torch(out / f"consolidated.{i:02}.pth", shard)
    return out


# -- Llama 3's tokenizer in Meta's form --------------------------------------------------------------------------------


def write_ranks(folder: Path, ranks: dict[bytes, int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder


def ranks_of(tokenizer: dict[str, Any]) -> dict[bytes, int]:
    """The base tokens of a byte-level tokenizer.json as bytes, by their ids."""
    bytes_of = {letter: byte for byte, letter in enumerate(byte_alphabet())}
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    return {bytes(bytes_of[letter] for letter in text): rank for text, rank in vocabulary}
