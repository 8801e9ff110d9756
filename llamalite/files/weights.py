"""Which files of a Hugging Face folder or repository hold its weights, chosen by their names.

    weight_files(["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]).files
    # ["model.safetensors"]

The order is that of transformers 5 (``_get_resolved_checkpoint_files``, modeling_utils.py): one whole file, then an
index, first of safetensors, then of pickles. ``save_pretrained`` removes old shards but not their index, so an index
beside a whole file is a remnant. Shards without an index, which transformers does not read, come last.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from llamalite.files import shards

_FORMS = (("model", ".safetensors"), ("pytorch_model", ".bin"))


@dataclass(frozen=True)
class WeightFiles:
    """The chosen files: either `files` is complete, or `index` names those of them that count.

    `stem` and `suffix` are those of the whole file, such as ``model`` and ``.safetensors``.
    """

    stem: str
    suffix: str
    files: list[str]
    index: str | None = None

    @property
    def whole(self) -> str:
        return self.stem + self.suffix


def index_of(whole: str) -> str:
    """Return the name of the index beside the file `whole`.

    >>> index_of("model.safetensors")
    'model.safetensors.index.json'
    """
    return f"{whole}.index.json"


def weight_files(names: Collection[str]) -> WeightFiles | None:
    """Return those of `names` that hold a model's weights; None if none do."""
    for stem, suffix in _FORMS:
        whole = stem + suffix
        if whole in names:
            return WeightFiles(stem, suffix, [whole])
        if index_of(whole) in names:
            return WeightFiles(stem, suffix, _numbered(names, stem, suffix), index_of(whole))
    for stem, suffix in _FORMS:
        loose = sorted(name for name in names if name.startswith(stem) and name.endswith(suffix))
        if loose:
            return WeightFiles(stem, suffix, _numbered(names, stem, suffix) or loose)
    return None


def _numbered(names: Collection[str], stem: str, suffix: str) -> list[str]:
    return sorted(
        name
        for name in names
        if name.endswith(suffix) and (shard := shards.parse(name.removesuffix(suffix))) and shard.stem == stem
    )
