"""A Hugging Face folder: ``config.json``, and weights in one file, or in several with an index.

    model.safetensors        model-00001-of-00002.safetensors  ...  model.safetensors.index.json
    pytorch_model.bin        pytorch_model-00001-of-00002.bin  ...  pytorch_model.bin.index.json

Which of them count is decided as in transformers (`llamalite.files.weights`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llamalite.converters.checkpoints import adapter, safetensors, torch_pickle
from llamalite.converters.checkpoints.folder import listing, member, open_member
from llamalite.converters.checkpoints.interface import (
    DTYPE_BYTES,
    Checkpoint,
    FileTensor,
    SourceFile,
    SourceTensor,
    same_rows,
)
from llamalite.converters.checkpoints.json_file import read_object
from llamalite.converters.warning_log import warn
from llamalite.errors import CheckpointError, UnsupportedArchitectureError
from llamalite.files import shards
from llamalite.files.weights import WeightFiles, index_of, weight_files

# Suffixes of tensors that only quantized checkpoints have.
_QUANTIZED = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".SCB": "bitsandbytes, 8 bits",
    ".absmax": "bitsandbytes, 4 bits",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8",
    ".weight_scale_inv": "FP8",
}
_PLAIN = (".weight", ".bias", ".inv_freq")  # the suffixes of a LLaMA checkpoint's own tensors
_READERS: dict[str, Callable[[SourceFile], Mapping[str, SourceTensor]]] = {
    ".safetensors": safetensors.read_tensors,
    ".bin": torch_pickle.read_tensors,
}
_BASE = "model."
_OF_BASE = ("embed_tokens.", "layers.", "norm.")  # names in the base model, which a whole model calls ``model``


def open_folder(folder: Path) -> Checkpoint:
    """Open the checkpoint in `folder`: read its headers, not its weights, and check them against the index."""
    config = read_object(member(folder, "config.json"))
    chosen = _named_in_config(config) or weight_files([path.name for path in folder.iterdir()])
    if chosen is None:
        adapter.refuse(folder)
        raise CheckpointError(f"{folder} has no model*.safetensors and no pytorch_model*.bin (found {listing(folder)})")
    weight_map = _weight_map(folder, chosen.index) if chosen.index else {}
    names = sorted(set(weight_map.values())) or chosen.files
    _check_complete(folder, chosen, names)
    tensors: dict[str, SourceTensor] = {}
    with contextlib.ExitStack() as on_error:
        files = [on_error.enter_context(contextlib.closing(open_member(folder, name))) for name in names]
        for file in files:
            for name, tensor in _READERS[chosen.suffix](file).items():
                if name in tensors:
                    raise CheckpointError(f"{name} is in two shards of {folder}, one of them {file.path.name}")
                tensors[name] = tensor
        if chosen.index:
            _check_index(folder / chosen.index, weight_map, tensors)
        else:
            _warn_of_index(folder, chosen)
        _refuse_quantized(folder, config, tensors)
        tensors = _with_prefix(folder, tensors)
        _drop_tied_head(config, tensors)
        on_error.pop_all()
    return Checkpoint(folder, config, tensors, files)


def _named_in_config(config: Mapping[str, Any]) -> WeightFiles | None:
    """Return the file that config.json names as ``transformers_weights``, which comes before all others."""
    name = config.get("transformers_weights")
    if name is None:
        return None
    if not isinstance(name, str) or not name.endswith((".safetensors", index_of(".safetensors"))):
        raise CheckpointError(f"config.json: transformers_weights is {name!r:.80}, expected a file of safetensors")
    if Path(name).name != name:
        raise CheckpointError(f"config.json names {name!r:.80}: weights must be in the checkpoint's own folder")
    whole = name.removesuffix(index_of(""))
    is_index = whole != name
    stem = whole.removesuffix(".safetensors")
    return WeightFiles(stem, ".safetensors", [] if is_index else [name], name if is_index else None)


def _check_complete(folder: Path, chosen: WeightFiles, names: list[str]) -> None:
    missing = [name for name in names if not os.path.lexists(folder / name)]  # `member` explains broken links
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)} of {len(names)} shards: download what is missing")
    numbered = [shard for name in names if (shard := shards.parse(name.removesuffix(chosen.suffix)))]
    if not chosen.index and numbered and numbered[0].count != len(numbered):
        index = index_of(chosen.whole)
        raise CheckpointError(f"{folder} has {len(numbered)} of {numbered[0].count} shards, and no {index}")


def _warn_of_index(folder: Path, chosen: WeightFiles) -> None:
    """Warn of an index that names other files than the whole one that is read: it is of an earlier save."""
    index = index_of(chosen.whole)
    if chosen.files != [chosen.whole] or not os.path.lexists(folder / index):
        return
    try:
        others = set(_weight_map(folder, index).values()) - {chosen.whole}
    except CheckpointError as error:
        warn("%s is read, as in transformers; the index beside it is ignored: %s", chosen.whole, error)
        return
    if others:
        warn("%s is read, as in transformers; %s names other files and is ignored: an older save", chosen.whole, index)


def _with_prefix(folder: Path, tensors: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Return `tensors` by the names of a whole model; those saved from the base model alone lack ``model.``.

    transformers adds the prefix as well when it loads them (``base_model_prefix``). Any other prefix is refused.
    """
    embedding = "embed_tokens.weight"
    if _BASE + embedding in tensors:
        return tensors
    if embedding in tensors:
        return {_BASE + name if name.startswith(_OF_BASE) else name: tensor for name, tensor in tensors.items()}
    found = next((name for name in tensors if name.endswith("." + embedding)), None)
    if found is not None:
        prefix = found.removesuffix(embedding)
        raise CheckpointError(
            f"the tensors of {folder} begin with {prefix!r}, expected {_BASE!r}: they were saved from a model inside "
            "another one (a wrapper for training, a model with images); save that model itself with save_pretrained"
        )
    return tensors


def _drop_tied_head(config: Mapping[str, Any], tensors: dict[str, SourceTensor]) -> None:
    """Drop an output matrix that is the embedding itself: pickles name it twice, safetensors once.

    A deliberate difference: llama.cpp's converter writes the same weights twice.
    """
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if not isinstance(head, FileTensor) or not isinstance(embedding, FileTensor):
        return
    is_same = (head.file, head.offset, head.shape) == (embedding.file, embedding.offset, embedding.shape)
    if is_same and config.get("tie_word_embeddings", True):
        del tensors["lm_head.weight"]
    elif config.get("tie_word_embeddings") is True and not same_rows(head, embedding):
        # As in llama.cpp's converter and transformers 5; transformers 4 replaces it with the embedding.
        warn("config.json: tie_word_embeddings is true, but lm_head.weight is not the embedding: it is kept as it is")


def _refuse_quantized(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, SourceTensor]) -> None:
    """Refuse quantized weights; a ``quantization_config`` beside plain ones is a remnant, and only a warning.

    It is left in a model whose quantized base an adapter was merged into. "bitnet" is another matter: those plain
    weights are rounded whenever the model computes.
    """
    for name in tensors:
        method = next((method for suffix, method in _QUANTIZED.items() if name.endswith(suffix)), None)
        if method:
            raise UnsupportedArchitectureError(
                f"{folder} is already quantized ({method}, as {name} shows); llamalite supports F64, F32, F16 and BF16 "
                "weights: convert the original model"
            )
    quantization = config.get("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method") or "some method" if isinstance(quantization, dict) else quantization
    odd = (n for n, tensor in tensors.items() if tensor.dtype not in DTYPE_BYTES or not n.endswith(_PLAIN))
    shown = next(odd, "its config" if method == "bitnet" else None)
    if shown is not None:
        raise UnsupportedArchitectureError(
            f"this checkpoint is already quantized by {method!s:.80}, as {shown} shows; llamalite supports F64, F32, "
            "F16 and BF16 weights: convert the original model"
        )
    warn("config.json has a quantization_config (%.80s), but no tensor is quantized: it is ignored", method)


def _weight_map(folder: Path, index: str) -> dict[str, str]:
    path = folder / index
    weight_map = read_object(member(folder, index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map from tensor names to file names")
    for shard in set(weight_map.values()):
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{path} names {shard!r}: a shard must be in the checkpoint's own folder")
    return weight_map


def _check_index(path: Path, weight_map: dict[str, str], tensors: dict[str, SourceTensor]) -> None:
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(f"{path} names {_some(missing)}, which no shard holds")
    extra = sorted(set(tensors) - set(weight_map))
    if extra:
        raise CheckpointError(f"the shards hold {_some(extra)}, which {path} does not name")


def _some(names: list[str]) -> str:
    """Return the first of `names` and the number of the others, as text for a message."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
