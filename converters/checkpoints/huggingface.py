"""A Hugging Face folder: ``config.json``, and weights in one or several safetensors files with their index."""

from __future__ import annotations

from pathlib import Path

from llamalite.converters.checkpoints import safetensors
from llamalite.converters.checkpoints.interface import Checkpoint, SourceFile, SourceTensor
from llamalite.converters.checkpoints.json_file import read_object
from llamalite.errors import CheckpointError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def open_folder(folder: Path) -> Checkpoint:
    """Open the checkpoint in `folder`; its headers are read and held against the index, its weights are not."""
    config = read_object(folder / "config.json")
    weight_map = _weight_map(folder)
    shards = sorted(set(weight_map.values())) or _loose_shards(folder)
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)} of {len(shards)} shards: download what is missing")
    files: list[SourceFile] = []
    tensors: dict[str, SourceTensor] = {}
    try:
        for shard in shards:
            files.append(SourceFile(folder / shard))
            for name, tensor in safetensors.read_tensors(files[-1]).items():
                if name in tensors:
                    raise CheckpointError(f"{name} stands in two shards of {folder}, one of them {shard}")
                tensors[name] = tensor
        _check_index(folder, weight_map, tensors)
    except BaseException:
        for file in files:
            file.close()
        raise
    return Checkpoint(folder, config, tensors, files)


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / _INDEX
    if not path.exists():
        return {}
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map from tensor names to file names")
    for shard in set(weight_map.values()):
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{path} names {shard!r}: a shard must stand in the checkpoint's own folder")
    return weight_map


def _loose_shards(folder: Path) -> list[str]:
    if (folder / _SINGLE).is_file():
        return [_SINGLE]
    shards = sorted(path.name for path in folder.glob("model*.safetensors"))
    if not shards:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8])
        raise CheckpointError(f"{folder} has no *.safetensors file (found {found})")
    numbered = [shard for shard in shards if "-of-" in shard]
    if numbered:
        total = numbered[0].removesuffix(".safetensors").rpartition("-of-")[2]
        if total.isdecimal() and int(total) != len(numbered):
            raise CheckpointError(f"{folder} has {len(numbered)} of {int(total)} shards, and no {_INDEX}")
    return shards


def _check_index(folder: Path, weight_map: dict[str, str], tensors: dict[str, SourceTensor]) -> None:
    if not weight_map:
        return
    lacking = sorted(set(weight_map) - set(tensors))
    if lacking:
        raise CheckpointError(f"{folder / _INDEX} names {lacking[0]} and {len(lacking) - 1} more that no shard holds")
    extra = sorted(set(tensors) - set(weight_map))
    if extra:
        raise CheckpointError(f"the shards of {folder} hold {extra[0]} and {len(extra) - 1} more unknown to the index")
