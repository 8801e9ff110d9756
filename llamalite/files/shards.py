"""How the files of a model are called that has several: the one spelling of the numbers in their names.

big-Q4_K_M-00001-of-00003.gguf          llama.cpp's ``llama_split_path``
model-00001-of-00002.safetensors        Hugging Face's checkpoints
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_NUMBERED = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})", re.DOTALL)


@dataclass(frozen=True)
class Shard:
    """What a shard's name says; `number` counts from 1.

    >>> str(Shard("big", 1, 3))
    'big-00001-of-00003'
    """

    stem: str
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.stem}-{self.number:05}-of-{self.count:05}"


def parse(name: str) -> Shard | None:
    """Return what `name`, without its suffix, says; None where it is no shard's.

    >>> parse("big-Q4_K_M-00001-of-00003")
    Shard(stem='big-Q4_K_M', number=1, count=3)
    """
    match = _NUMBERED.fullmatch(name)
    return Shard(match[1], int(match[2]), int(match[3])) if match else None


def all_of(stem: str, count: int) -> list[Shard]:
    """Return the `count` shards called `stem`, in their order."""
    return [Shard(stem, i + 1, count) for i in range(count)]


def stem_of(name: str) -> str:
    """Return `name`, without its suffix, as all shards of its model bear it; one that is no shard's as it is."""
    shard = parse(name)
    return shard.stem if shard else name


def lying_in(folder: Path, stem: str, suffix: str) -> list[Path]:
    """Return the shards called `stem` that lie in `folder`, of any number of files, by their names."""
    named = ((path, parse(path.name.removesuffix(suffix))) for path in folder.glob(f"*{suffix}"))
    return sorted(path for path, shard in named if shard and shard.stem == stem)
