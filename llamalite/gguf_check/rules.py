"""Checks a model: its header, the files of a split model as one set, and what its architecture needs.

For ``llama`` every key, tensor and token is checked against what llama.cpp does with it. For other architectures the
check covers the header, the vocabulary's arrays, and the assertions of ``llama_model_base::load_hparams``
(llama-model.cpp) that run before an architecture's own code; what that code expects of its own keys is not checked.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from llamalite.errors import GGUFError
from llamalite.files import shards
from llamalite.gguf_check.header import DAMAGED, Header
from llamalite.gguf_check.llama import MAX_EXPERTS, MAX_LAYERS, SCALING, check_llama
from llamalite.gguf_check.reader import read_header
from llamalite.gguf_check.vocabulary import check_vocabulary


def checked_header(path: str | os.PathLike[str], *, vocab_only: bool = False) -> Header:
    """Return the header of the GGUF model at `path` if it is safe to load with llama.cpp, else raise ``GGUFError``.

    For a split model `path` is the first file; the others are expected beside it, and their headers are in `rest`. With
    `vocab_only`, for a load of the vocabulary alone, the model's numbers and tensors are not checked. Takes less than
    50 ms for a vocabulary of 128,256 tokens. The weights are not read.
    """
    header = _with_the_rest(read_header(path))
    if header.metadata.get("general.type", "model") == "adapter":
        raise GGUFError(
            f"{header.path} is an adapter (LoRA), not a whole model: run its base model with it, llamalite run BASE "
            f"--lora {header.path.name}"
        )
    if header.architecture == "llama":
        n_vocab = check_vocabulary(header, ("llama", "gpt2"))
        if not vocab_only:
            check_llama(header, n_vocab)
    else:
        _check_other(header)
        if "tokenizer.ggml.model" in header.metadata:
            check_vocabulary(header, None)
    return header


def _fail(header: Header, text: str) -> NoReturn:
    raise GGUFError(f"{header.path}: {text}; {DAMAGED}")


def _with_the_rest(first: Header) -> Header:
    """Return `first` with the other files of its set, by ``llama_model_loader``'s rules (llama-model-loader.cpp)."""
    count = _typed(first, "split.count", "uint16", 0)
    if count < 2:
        return first
    name = shards.parse(first.path.stem)
    if name is None or name.count != count or first.path.suffix != ".gguf":
        raise GGUFError(
            f"{first.path} is one of {count} files, but is not named {shards.Shard('NAME', 1, count)}.gguf: give "
            "all of them their original names"
        )
    paths = [first.path.with_name(f"{shard}.gguf") for shard in shards.all_of(name.stem, count)]
    if first.path != paths[0]:
        raise GGUFError(f"{first.path} is one of {count} files, and not the first: open {paths[0]}")
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise GGUFError(f"{first.path} is one of {count} files, and these are missing beside it: {shown}")
    rest = tuple(_other_file(path) for path in paths[1:])
    joined = dataclasses.replace(first, rest=rest)
    seen: dict[str, Path] = {}
    for i, header in enumerate((first, *rest)):
        number = _typed(header, "split.no", "uint16", None)
        if number != i:
            _fail(header, f"key split.no is {number}, expected {i} by the file's name")
        for tensor in header.tensors:
            if tensor.name in seen:
                _fail(header, f"tensor {tensor.name} is in {seen[tensor.name].name} too")
            seen[tensor.name] = header.path
    expected = _typed(first, "split.tensors.count", "int32", None)
    if expected != len(seen):
        _fail(first, f"key split.tensors.count is {expected}, and the {count} files hold {len(seen)} tensors")
    return joined


def _other_file(path: Path) -> Header:
    header = read_header(path)
    if "tokenizer.ggml.tokens" in header.metadata:
        _fail(header, "key tokenizer.ggml.tokens belongs in the first file of a split model only")
    return header


def _typed(header: Header, key: str, kind: str, default: int | None) -> int:
    actual = header.metadata.type_of(key)
    if not actual and default is not None:
        return default
    if actual != kind:
        _fail(header, f"key {key} should be a {kind}, found {actual or 'nothing'}")
    return int(header.metadata[key])


def _shown(value: Any) -> str:
    """Return `value` as text for a message: one line of at most 80 characters."""
    return f"{value.tolist() if isinstance(value, np.ndarray) else value!r}"[:80]


def _check_other(header: Header) -> None:
    """Raise ``GGUFError`` where llama.cpp would abort before it reaches the architecture's own code."""
    name = header.architecture

    def number(key: str) -> int:
        return _typed(header, f"{name}.{key}", "uint32", 0)

    n_layer = number("block_count")
    if n_layer > MAX_LAYERS or (not n_layer and header.all_tensors and f"{name}.block_count" in header.metadata):
        _fail(header, f"key {name}.block_count is {n_layer}, expected 1 to {MAX_LAYERS}")
    if number("nextn_predict_layers") > n_layer:
        _fail(header, f"key {name}.nextn_predict_layers is more than the model's {n_layer} layers")
    n_expert, n_groups = number("expert_count"), number("expert_group_count")
    used: Any = header.metadata.get(f"{name}.expert_used_count", 0)
    n_used = int(used.max(initial=0)) if isinstance(used, np.ndarray) and used.dtype.kind in "iu" else used
    if n_expert > MAX_EXPERTS:
        _fail(header, f"key {name}.expert_count is {n_expert}, expected at most {MAX_EXPERTS}")
    if not isinstance(n_used, int) or n_used > n_expert or bool(n_used) != bool(n_expert):
        _fail(header, f"key {name}.expert_used_count is {_shown(n_used)}, expected 1 to {n_expert} (0 without experts)")
    if n_groups and n_groups >= n_expert:
        _fail(header, f"key {name}.expert_group_count is {n_groups}, expected fewer than the {n_expert} experts")
    if n_groups > 1 and (n_expert % n_groups or not 0 < number("expert_group_used_count") < n_groups):
        _fail(header, f"keys {name}.expert_group_count and .expert_group_used_count do not divide {n_expert} experts")
    scaling = header.metadata.get(f"{name}.rope.scaling.type", "none")
    if not isinstance(scaling, str) or scaling not in SCALING:
        _fail(header, f"key {name}.rope.scaling.type is {_shown(scaling)}, expected one of {', '.join(SCALING)}")
