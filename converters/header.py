"""The header of a GGUF file: keys and the table of tensors, in llama.cpp's order.

    magic  version  n_tensors  n_keys | key  type  value | ... | name  dims  type  offset | ... | zeros up to the data

The keys are those of llama.cpp's two steps: first those of its converter, or of a GGUF source, and then the two that
llama-quantize rewrites (src/llama-quant.cpp, ``llama_model_quantize_impl``). The first file of a split model has all of
them, the others only the ``split.*`` keys (tools/gguf-split/gguf-split.cpp).
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import yaml

from llamalite.converters.checkpoints import Checkpoint
from llamalite.converters.checkpoints.folder import member
from llamalite.converters.checkpoints.json_file import read_object
from llamalite.converters.plan import ConversionPlan, PlannedTensor
from llamalite.converters.vocabulary import Vocabulary
from llamalite.converters.warning_log import warn
from llamalite.errors import CheckpointError
from llamalite.gguf_check.value_types import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT16, UINT32

ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
_VERSION = 3
_MAX_CARD_BYTES = 8 << 20
_MAX_CARD_VALUES = 1_000_000
_MAX_CARD_DEPTH = 100
# Keys that the conversion sets and that readers rely on.
_DERIVED = frozenset(
    f"general.{name}" for name in ("architecture", "type", "file_type", "quantization_version", "alignment")
)

Keys = Sequence[tuple[bytes, bytes]]
"""Pairs of a name and the bytes of its type and value."""


@dataclass(frozen=True)
class Split:
    """This file's number in a split model, the number of files, and the number of tensors in all of them."""

    index: int
    count: int
    n_tensors: int


def padded(n_bytes: int) -> int:
    """`n_bytes` rounded up to the file's alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def keys_of(
    checkpoint: Checkpoint, plan: ConversionPlan, vocabulary: Vocabulary | None, metadata: Path | None = None
) -> Keys:
    """Return the keys for a conversion of `checkpoint`, without its file type.

    The JSON file `metadata` overrides ``general.*`` keys.
    """
    keys = _keys_of(checkpoint, plan, vocabulary)
    return keys if metadata is None else _overridden(keys, metadata)


def _keys_of(checkpoint: Checkpoint, plan: ConversionPlan, vocabulary: Vocabulary | None) -> Keys:
    if checkpoint.carried is not None:
        return checkpoint.carried.pairs
    assert plan.config is not None
    assert vocabulary is not None
    writer = gguf.GGUFWriter(path=None, arch="llama")
    for tensor in plan.tensors:  # gguf-py counts their weights for the model's size label
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), 0)
    writer.add_type(gguf.GGUFType.MODEL)
    _metadata(checkpoint, writer).set_gguf_meta_model(writer)
    plan.config.write_keys(writer)
    vocabulary.write_keys(writer)
    return _packed_keys(writer)


def write(
    path: Path,
    keys: Keys,
    ftype: int,
    last: Keys,
    tensors: Sequence[PlannedTensor],
    i_output: int,
    split: Split | None = None,
) -> int:
    """Write the header of a file with `tensors` to `path`, and return the offset at which the weights start.

    The keys are `keys`, those that follow from `ftype`, and `last`; in a split model only the first file has them.
    """
    pairs: list[tuple[bytes, bytes]] = []
    if split is None or split.index == 0:
        pairs += keys
        pairs += [
            (b"general.quantization_version", uint32(gguf.GGML_QUANT_VERSION)),
            (b"general.file_type", uint32(ftype)),
            *last,
        ]
    if split is not None:
        pairs += [
            (b"split.no", struct.pack("<IH", UINT16, split.index)),
            (b"split.count", struct.pack("<IH", UINT16, split.count)),
            (b"split.tensors.count", struct.pack("<Ii", INT32, split.n_tensors)),
        ]
    header = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(pairs))]
    for key, value in pairs:
        header += [_text(key), value]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        header += [_text(tensor.name.encode()), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        header += [struct.pack("<IQ", tensor.types[i_output].type.ggml_type, offset)]
        offset += padded(tensor.n_bytes(i_output))
    data = b"".join(header)
    start = padded(len(data))
    path.write_bytes(data + bytes(start - len(data)))
    return start


def string(value: str) -> bytes:
    """Return the type and value of a string key as bytes."""
    return struct.pack("<I", STRING) + _text(value.encode())


def uint32(value: int) -> bytes:
    """Return the type and value of an unsigned 32-bit key as bytes."""
    return struct.pack("<II", UINT32, value)


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _metadata(checkpoint: Checkpoint, writer: gguf.GGUFWriter) -> gguf.Metadata:
    """Return the ``general.*`` keys as llama.cpp's converter finds them: from model card, config and folder name."""
    counts = writer.get_total_parameter_count()
    folder = checkpoint.folder.resolve()
    try:
        metadata = _load_metadata(checkpoint, folder, counts[0])
        _pairs(metadata)  # a card may hold anything: a license may be a date, a name a list
    except (
        ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, struct.error, yaml.YAMLError
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        warn("%s: model card or generation_config.json cannot be read, and is left out: %s", folder, reason)
        metadata = gguf.Metadata(name=checkpoint.name)
    if metadata.size_label is None:
        metadata.size_label = gguf.size_label(*counts)
    return metadata


def _load_metadata(checkpoint: Checkpoint, folder: Path, n_params: int) -> gguf.Metadata:
    for name in ("README.md", "config.json", "generation_config.json"):  # gguf-py opens them by name
        member(folder, name, max_bytes=None)
    card_file = folder / "README.md"
    if card_file.is_file() and card_file.stat().st_size > _MAX_CARD_BYTES:
        raise ValueError(f"README.md has {card_file.stat().st_size:,} bytes, expected at most {_MAX_CARD_BYTES:,}")
    if card_file.is_file():
        _refuse_deep(card_file.read_text("utf-8"))
    card = gguf.Metadata.load_model_card(folder)
    _refuse_unfolding(card)
    metadata = gguf.Metadata.load(None, folder, None, n_params)
    if folder.name != checkpoint.name:  # the hub's cache names folders after revisions
        config = gguf.Metadata.load_hf_parameters(folder)
        named_folder = folder.with_name(checkpoint.name)
        renamed = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, config, named_folder, n_params)
        metadata = dataclasses.replace(
            metadata,
            **{field: value for field, value in vars(renamed).items() if not field.startswith("sampling_")},
        )
    metadata.name = metadata.name or checkpoint.name
    return metadata


def _refuse_deep(text: str) -> None:
    """Raise `ValueError` for deeply nested brackets in the card's YAML: PyYAML takes quadratic time for them."""
    depth = 0
    for bracket in re.findall(r"[\[{}\]]", text.partition("\n---")[0]):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        if depth > _MAX_CARD_DEPTH:
            raise ValueError("README.md is nested too deeply to be a model card")


def _refuse_unfolding(card: Mapping[str, Any]) -> None:
    """Raise `ValueError` if YAML's references turn a small text into a huge or endless structure."""
    stack: list[Any] = [card]
    n = 0
    while stack:
        value = stack.pop()
        n += 1
        if n > _MAX_CARD_VALUES:
            raise ValueError(f"README.md expands to more than {_MAX_CARD_VALUES:,} values")
        stack.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def _pairs(metadata: gguf.Metadata) -> Keys:
    writer = gguf.GGUFWriter(path=None, arch="llama")
    metadata.set_gguf_meta_model(writer)
    return _packed_keys(writer)


def _packed_keys(writer: gguf.GGUFWriter) -> Keys:
    def packed(entry: Any) -> bytes:
        return _packed_array(entry) or bytes(
            writer._pack_val(entry.value, entry.type, add_vtype=True, sub_type=entry.sub_type)
        )

    return [(key.encode(), packed(entry)) for key, entry in writer.kv_data[0].items()]


def _packed_array(entry: Any) -> bytes | None:
    """Return an array of texts, integers or floats as the writer would pack it; None for any other value.

    The writer's own loop takes a second for a vocabulary of 128,000 tokens.
    """
    values = entry.value
    if entry.type != ARRAY or entry.sub_type is not None or not isinstance(values, list | tuple) or not values:
        return None
    n, kinds = len(values), set(map(type, values))
    if kinds <= {str, bytes}:
        texts = [_text(text.encode() if isinstance(text, str) else text) for text in values]
        return struct.pack("<IIQ", ARRAY, STRING, n) + b"".join(texts)
    if kinds == {float}:
        return struct.pack(f"<IIQ{n}f", ARRAY, FLOAT32, n, *values)
    if all(issubclass(kind, int) and kind is not bool for kind in kinds):
        return struct.pack(f"<IIQ{n}i", ARRAY, INT32, n, *values)
    return None


def _overridden(keys: Keys, path: Path) -> Keys:
    """Return `keys` with the ``general.*`` keys of the JSON file at `path`; new ones follow the last such key."""
    changed = list(keys)
    if path.exists() and not path.is_file():  # a device or a pipe may never end
        raise CheckpointError(f"{path} is a device or a folder, expected a JSON file of general.* keys")
    for name, value in read_object(path).items():
        if not re.fullmatch(r"general\.[ -~]{1,200}", name) or name in _DERIVED:
            raise CheckpointError(f"{path}: {name!r} cannot be set: only general.* keys can, such as general.author")
        pair = (name.encode(), _packed(path, name, value))
        at = [i for i, (key, _) in enumerate(changed) if key == pair[0]]
        if at:
            changed[at[0]] = pair
        else:
            last = max(i for i, (key, _) in enumerate(changed) if key.startswith(b"general."))
            changed.insert(last + 1, pair)
    return changed


def _packed(path: Path, name: str, value: Any) -> bytes:
    try:
        return _packed_value(path, name, value)
    except (OverflowError, UnicodeEncodeError) as error:
        raise CheckpointError(f"{path}: {name} cannot be written: {error}") from None


def _packed_value(path: Path, name: str, value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int) and -(1 << 31) <= value < 1 << 31:
        return struct.pack("<Ii", INT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return string(value)
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(_text(text.encode()) for text in value)
    raise CheckpointError(f"{path}: {name} is {value!r}, expected a string, a number, true, false or a list of strings")
