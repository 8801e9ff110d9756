"""A Hugging Face folder: ``config.json``, and weights in one file, or in several with an index.

    model.safetensors        model-00001-of-00002.safetensors  ...  model.safetensors.index.json
    pytorch_model.bin        pytorch_model-00001-of-00002.bin  ...  pytorch_model.bin.index.json

If a folder holds both forms, the safetensors are read, as in transformers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamalite.converters.checkpoints import safetensors, torch_pickle
from llamalite.converters.checkpoints.folder import listing, member, open_member
from llamalite.converters.checkpoints.interface import (
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


@dataclass(frozen=True)
class _Form:
    """A form of weights: the names of its files, and the function that reads them."""

    stem: str
    suffix: str
    read_tensors: Callable[[SourceFile], Mapping[str, SourceTensor]]

    @property
    def single(self) -> str:
        return self.stem + self.suffix

    @property
    def index(self) -> str:
        return f"{self.single}.index.json"

    def is_in(self, folder: Path) -> bool:
        return (folder / self.index).exists() or any(folder.glob(f"{self.stem}*{self.suffix}"))


_FORMS = (
    _Form("model", ".safetensors", safetensors.read_tensors),
    _Form("pytorch_model", ".bin", torch_pickle.read_tensors),
)


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


def open_folder(folder: Path) -> Checkpoint:
    """Open the checkpoint in `folder`: read its headers, not its weights, and check them against the index."""
    config = read_object(member(folder, "config.json"))
    form = next((form for form in _FORMS if form.is_in(folder)), None)
    if form is None:
        raise CheckpointError(f"{folder} has no model*.safetensors and no pytorch_model*.bin (found {listing(folder)})")
    weight_map = _weight_map(folder, form)
    names = sorted(set(weight_map.values())) or _loose_shards(folder, form)
    missing = [name for name in names if not os.path.lexists(folder / name)]  # `member` explains broken links
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)} of {len(names)} shards: download what is missing")
    tensors: dict[str, SourceTensor] = {}
    with contextlib.ExitStack() as on_error:
        files = [on_error.enter_context(contextlib.closing(open_member(folder, name))) for name in names]
        for file in files:
            for name, tensor in form.read_tensors(file).items():
                if name in tensors:
                    raise CheckpointError(f"{name} is in two shards of {folder}, one of them {file.path.name}")
                tensors[name] = tensor
        _check_index(folder / form.index, weight_map, tensors)
        if not config.get("quantization_config"):  # else `llama.LlamaConfig` refuses it with a better message
            _refuse_quantized(folder, tensors)
        _drop_tied_head(config, tensors)
        on_error.pop_all()
    return Checkpoint(folder, config, tensors, files)


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


def _refuse_quantized(folder: Path, tensors: Mapping[str, SourceTensor]) -> None:
    for name in tensors:
        method = next((method for suffix, method in _QUANTIZED.items() if name.endswith(suffix)), None)
        if method:
            raise UnsupportedArchitectureError(
                f"{folder} is already quantized ({method}, as {name} shows); llamalite supports F64, F32, F16 and BF16 "
                "weights: convert the original model"
            )


def _weight_map(folder: Path, form: _Form) -> dict[str, str]:
    path = folder / form.index
    if not path.exists():
        return {}
    weight_map = read_object(member(folder, form.index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map from tensor names to file names")
    for shard in set(weight_map.values()):
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{path} names {shard!r}: a shard must be in the checkpoint's own folder")
    return weight_map


def _loose_shards(folder: Path, form: _Form) -> list[str]:
    if (folder / form.single).exists():
        return [form.single]
    files = sorted(path.name for path in folder.glob(f"{form.stem}*{form.suffix}"))
    numbered = [shard for name in files if (shard := shards.parse(name.removesuffix(form.suffix)))]
    if numbered and numbered[0].count != len(numbered):
        raise CheckpointError(f"{folder} has {len(numbered)} of {numbered[0].count} shards, and no {form.index}")
    return files


def _check_index(path: Path, weight_map: dict[str, str], tensors: dict[str, SourceTensor]) -> None:
    if not weight_map:
        return
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(f"{path} names {_some(missing)}, which no shard holds")
    extra = sorted(set(tensors) - set(weight_map))
    if extra:
        raise CheckpointError(f"the shards hold {_some(extra)}, which {path} does not name")


def _some(names: list[str]) -> str:
    """Return the first of `names` and the number of the others, as text for a message."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
