"""What a GGUF file is, read from its header alone: for ``llamalite list`` and ``llamalite inspect``.

    inspection = inspect("models/demo-Q4_K_M.gguf")
    inspection.header.bits_per_weight, inspection.n_bytes, inspection.has_template
    for needed in inspection.memory_needed(): ...     # `llamalite.hardware.MemoryNeeded` at several context lengths

Any GGUF file can be inspected: models of other families, adapters, importance matrices. A file that llama.cpp would not
load has a `problem`; a file whose header cannot be read raises ``GGUFError``.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llamalite import hardware
from llamalite.errors import GGUFError, OutOfMemoryError
from llamalite.gguf_check import Header, checked_header, read_header
from llamalite.store import names

CONTEXTS = (2048, 8192, 32768, 131072)
"""Context lengths for which the memory is shown, up to the length that the model was trained for."""


@dataclass(frozen=True)
class TypeShare:
    """The number of tensors of one type, and their total sizes."""

    name: str
    n_tensors: int
    n_params: int
    n_bytes: int


@dataclass(frozen=True)
class Inspection:
    """A header, and the reason why llama.cpp would not load the file; None if it would."""

    header: Header
    problem: str | None = None

    @property
    def name(self) -> str:
        """The model's name in the models folder: the file's name without shard numbers."""
        return names.name_of(self.header.path)

    @property
    def paths(self) -> list[Path]:
        """The file; all files of a split model."""
        return [self.header.path, *(header.path for header in self.header.rest)]

    @property
    def n_bytes(self) -> int:
        return self.header.model_bytes

    @property
    def qtype(self) -> str | None:
        """The file's type, such as Q4_K_M; if the header does not say, the type of most of its weights."""
        shares = self.types()
        return self.header.file_type or (max(shares, key=lambda share: share.n_params).name if shares else None)

    @property
    def has_template(self) -> bool:
        return self.header.chat_template is not None

    @property
    def n_ctx_train(self) -> int | None:
        try:
            return self.header.n_ctx_train
        except GGUFError:
            return None

    def types(self) -> list[TypeShare]:
        """Return the share of each tensor type, the largest first."""
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for tensor in self.header.all_tensors:
            for i, n in enumerate((1, tensor.n_params, tensor.nbytes)):
                counts[tensor.type.name][i] += n
        return sorted((TypeShare(name, *n) for name, n in counts.items()), key=lambda share: -share.n_bytes)

    def memory_needed(self) -> Iterator[hardware.MemoryNeeded]:
        """Yield the memory needed with each of `CONTEXTS` up to the trained length, and with that length.

        There is none to yield for a file that is not a model.
        """
        trained = self.n_ctx_train
        if self.problem is not None or not trained or not self.header.all_tensors:
            return
        for n_ctx in sorted({n for n in CONTEXTS if n < trained} | {trained}):
            yield hardware.memory_needed(self.header, n_ctx=n_ctx)

    def planned_memory(self, free_bytes: int) -> hardware.MemoryNeeded:
        """Return the memory needed with the context that `llamalite run` chooses; ``OutOfMemoryError`` if none fits."""
        return hardware.plan_memory(self.header, n_ctx=None, free_bytes=free_bytes)

    def fits(self, free_bytes: int) -> bool | None:
        """Return whether the model runs in `free_bytes`; None if the file is not a model."""
        if self.problem is not None or not self.n_ctx_train:
            return None
        try:
            self.planned_memory(free_bytes)
        except OutOfMemoryError:
            return False
        return True

    def vocabulary(self) -> dict[str, Any]:
        """Return the vocabulary's kind, sizes, and special tokens with their ids."""
        metadata = self.header.metadata
        n = metadata.length_of("tokenizer.ggml.tokens")
        tokens = metadata["tokenizer.ggml.tokens"] if n else []
        special = {}
        for key in metadata:
            if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
                token = metadata[key]
                spelled = tokens[token] if isinstance(token, int) and 0 <= token < n else None
                special[key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")] = {"id": token, "text": spelled}
        return {
            "kind": metadata.get("tokenizer.ggml.model"),
            "pre": metadata.get("tokenizer.ggml.pre"),
            "n_tokens": n,
            "n_merges": metadata.length_of("tokenizer.ggml.merges"),
            "add_bos": metadata.get("tokenizer.ggml.add_bos_token"),
            "special": special,
        }

    def scalars(self) -> dict[str, Any]:
        """Return all keys: scalars unchanged, arrays as ``{"type": ..., "length": ...}``, NaN and Inf as text."""
        metadata = self.header.metadata
        scalars: dict[str, Any] = {}
        for key in metadata:
            kind = metadata.type_of(key)
            if kind.startswith("array"):
                scalars[key] = {"type": kind, "length": metadata.length_of(key)}
            else:
                value = metadata[key]
                scalars[key] = str(value) if isinstance(value, float) and not np.isfinite(value) else value
        return scalars

    def to_json(self, free_bytes: int) -> dict[str, Any]:
        """Return everything about the file as a JSON object."""
        header = self.header
        return self.summary(free_bytes) | {
            "paths": [str(path) for path in self.paths],
            "gguf_version": header.version,
            "architecture": _key(header, "general.architecture"),
            "title": header.name,
            "n_params": header.n_params,
            "n_tensors": len(header.all_tensors),
            "vocabulary": self.vocabulary(),
            "chat_template": header.chat_template,
            "metadata": self.scalars(),
            "types": [vars(share) for share in self.types()],
            "memory": [
                vars(needed) | {"total_bytes": needed.total_bytes, "fits": needed.fits(free_bytes)}
                for needed in self.memory_needed()
            ],
            "tensors": [
                {"name": tensor.name, "type": tensor.type.name, "shape": list(tensor.shape), "n_bytes": tensor.nbytes}
                for tensor in header.all_tensors
            ],
        }

    def summary(self, free_bytes: int) -> dict[str, Any]:
        """Return what a list of models shows of this one, as a JSON object."""
        return {
            "name": self.name,
            "path": str(self.header.path),
            "n_bytes": self.n_bytes,
            "type": self.qtype,
            "bits_per_weight": round(self.header.bits_per_weight, 4),
            "n_ctx_train": self.n_ctx_train,
            "has_template": self.has_template,
            "fits": self.fits(free_bytes),
            "free_bytes": free_bytes,
            "problem": self.problem,
        }


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Read the header of the GGUF file at `path`; for a split model, the headers of all files. No weights are read.

    Raises ``FileNotFoundError``, and ``GGUFError`` for a file whose header cannot be read.
    """
    try:
        return Inspection(checked_header(path))
    except GGUFError as error:
        header = read_header(path)
        return Inspection(header, str(error).removeprefix(f"{header.path}: "))


def summary(path: Path, free_bytes: int) -> dict[str, Any]:
    """Return `Inspection.summary` of a file in the models folder, with the name that finds it there.

    For a file that cannot be read, it has the same keys, None for what is unknown, and the problem.
    """
    try:
        return inspect(path).summary(free_bytes) | {"name": names.shortest_name(path)}
    except (GGUFError, OSError) as error:
        unknown = dict.fromkeys(("type", "bits_per_weight", "n_ctx_train", "has_template", "fits"))
        known = {"name": names.shortest_name(path), "path": str(path), "n_bytes": path.stat().st_size, **unknown}
        return known | {"free_bytes": free_bytes, "problem": str(error).removeprefix(f"{path}: ")}


def _key(header: Header, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) else None
