"""The file names of split models. Only this module reads and writes the numbers in them.

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
    """The parts of a shard's name; `number` counts from 1.

    >>> str(Shard("big", 1, 3))
    'big-00001-of-00003'
    """

    stem: str
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.stem}-{self.number:05}-of-{self.count:05}"


def parse(name: str) -> Shard | None:
    """Return the parts of `name`, which has no suffix; None if it is not the name of a shard.

    >>> parse("big-Q4_K_M-00001-of-00003")
    Shard(stem='big-Q4_K_M', number=1, count=3)
    """
    match = _NUMBERED.fullmatch(name)
    return Shard(match[1], int(match[2]), int(match[3])) if match else None


def all_of(stem: str, count: int) -> list[Shard]:
    """Return the `count` shards of the model `stem`, in order."""
    return [Shard(stem, i + 1, count) for i in range(count)]


def stem_of(name: str) -> str:
    """Return `name`, which has no suffix, without a shard's numbers."""
    shard = parse(name)
    return shard.stem if shard else name


def shards_in(folder: Path, stem: str, suffix: str) -> list[Path]:
    """Return all shards of the model `stem` in `folder`, whatever their count, sorted by name."""
    named = ((path, parse(path.name.removesuffix(suffix))) for path in folder.glob(f"*{suffix}"))
    return sorted(path for path, shard in named if shard and shard.stem == stem)
