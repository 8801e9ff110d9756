"""The header of a GGUF file: its keys and its table of tensors.

    header = read_header("stories260k-F32.gguf")
    header.architecture, header.n_layer, header.n_vocab      # ('llama', 5, 512)
    header.metadata["tokenizer.ggml.tokens"][:3]             # ['<unk>', '<s>', '</s>'], decoded when first asked for
    header.tensors[0]        # TensorInfo('token_embd.weight', TensorType('F32', ...), shape=(64, 512), offset=..., ...)

`llamalite.gguf_check.llama` checks what a model must have in its header.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llamalite.errors import GGUFError
from llamalite.gguf_check.strings import Spans
from llamalite.quant_types import FILE_TYPES, TensorType

DAMAGED = "the file is damaged or incomplete: download or convert it again"


class TensorInfo(NamedTuple):
    """One tensor of the table."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    """In GGUF's order (ggml's ``ne``): the row length, along which memory is contiguous, comes first."""
    offset: int
    """Of its first byte, from the start of the file."""
    nbytes: int

    @property
    def n_params(self) -> int:
        """How many weights it holds."""
        return self.nbytes // self.type.block_bytes * self.type.block_size


@dataclass
class Entry:
    """A value as the file holds it; `Metadata` decodes it."""

    type: str  # "uint32", "string", "array[float32]", ...
    value: Any = None  # for an array, None until it is first asked for
    n: int = 1
    start: int = 0
    spans: Spans | None = None


class Metadata(Mapping[str, Any]):
    """The keys of a file: int, float, bool and str for scalars, NumPy arrays and lists of str for arrays.

    Arrays are decoded when they are first asked for. Bytes that are not valid UTF-8 become U+FFFD.
    """

    def __init__(self, entries: dict[str, Entry], buffer: bytes) -> None:
        self._entries = entries
        self._buffer = buffer

    def __getitem__(self, key: str) -> Any:
        entry = self._entries[key]
        if entry.value is None:
            if entry.spans is not None:
                pairs = zip(entry.spans[:, 0].tolist(), entry.spans[:, 1].tolist(), strict=True)
                entry.value = [self._buffer[start:end].decode("utf-8", "replace") for start, end in pairs]
            else:
                dtype = np.dtype(entry.type[6:-1]).newbyteorder("<")
                entry.value = np.frombuffer(self._buffer, dtype, entry.n, entry.start)
        return entry.value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:  # Mapping's own would decode the value
        return key in self._entries

    def type_of(self, key: str) -> str:
        """Return the type of `key`'s value, such as ``"uint32"`` or ``"array[string]"``; ``""`` without that key."""
        return self._entries[key].type if key in self._entries else ""

    def length_of(self, key: str) -> int:
        """Return how many elements the array under `key` has, without decoding it; 0 without that key."""
        return self._entries[key].n if key in self._entries else 0

    def strings(self, key: str) -> tuple[bytes, Spans]:
        """Return the header's bytes, and in them the start and end of each string of `key`'s array: int64 [n, 2]."""
        spans = self._entries[key].spans
        if spans is None:
            raise ValueError(f"{key} is not an array of strings")
        return self._buffer, spans


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself. Properties raise ``GGUFError`` if their key is missing or not a number.

    They can be relied on after `checked_header`; after `read_header` alone they are what the file claims.
    """

    path: Path
    version: int
    alignment: int
    metadata: Metadata = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    data_offset: int
    """Where the first tensor's bytes begin, from the start of the file."""
    n_bytes_file: int
    rest: tuple[Header, ...] = field(default=(), repr=False)
    """The other files of a split model, in their order; empty after `read_header`, filled by `checked_header`."""

    @property
    def all_tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors of all files of the model."""
        return self.tensors + tuple(tensor for other in self.rest for tensor in other.tensors)

    def _number(self, key: str, default: int | None = None) -> int:
        key = key.replace("{arch}", self.architecture)
        value = self.metadata.get(key, default)
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.size and value.dtype.kind in "iu":
            return int(value.max())  # one number per layer: the largest
        if isinstance(value, bool) or not isinstance(value, int):
            actual = self.metadata.type_of(key) or "nothing"
            raise GGUFError(f"{self.path}: key {key} should be a whole number, found {actual}; {DAMAGED}")
        return value

    @property
    def architecture(self) -> str:
        """``general.architecture``, such as ``"llama"``."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str) or not value:
            raise GGUFError(f"{self.path}: key general.architecture is missing or not a string; {DAMAGED}")
        return value

    @property
    def name(self) -> str | None:
        """``general.name``; None if the file has none."""
        value = self.metadata.get("general.name")
        return value if isinstance(value, str) else None

    @property
    def file_type(self) -> str | None:
        """The name of ``general.file_type``, such as ``"Q4_K_M"``; None if the file does not say."""
        number = self.metadata.get("general.file_type")
        return next((t.name for t in FILE_TYPES.values() if isinstance(number, int) and t.ftype == number), None)

    @property
    def n_params(self) -> int:
        """How many weights the tensors hold."""
        return sum(tensor.n_params for tensor in self.all_tensors)

    @property
    def tensor_bytes(self) -> int:
        """How many bytes the tensors take, without the padding between them."""
        return sum(tensor.nbytes for tensor in self.all_tensors)

    @property
    def model_bytes(self) -> int:
        """The size of all files of the model."""
        return self.n_bytes_file + sum(other.n_bytes_file for other in self.rest)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight; 0.0 for a file without tensors (a vocabulary alone)."""
        return 8 * self.tensor_bytes / self.n_params if self.all_tensors else 0.0

    @property
    def n_ctx_train(self) -> int:
        """The context length the model was trained with, in tokens."""
        return self._number("{arch}.context_length")

    @property
    def n_embd(self) -> int:
        """The width of the residual stream."""
        return self._number("{arch}.embedding_length")

    @property
    def n_layer(self) -> int:
        return self._number("{arch}.block_count")

    @property
    def n_head(self) -> int:
        """Query heads per layer (the most, where layers differ)."""
        return self._number("{arch}.attention.head_count")

    @property
    def n_head_kv(self) -> int:
        """Key and value heads per layer (the most, where layers differ)."""
        return self._number("{arch}.attention.head_count_kv", self.n_head)

    @property
    def n_embd_head_k(self) -> int:
        """The width of one key head: the values that the KV cache holds per token, layer and head."""
        return self._number("{arch}.attention.key_length", self.n_embd // max(1, self.n_head))

    @property
    def n_embd_head_v(self) -> int:
        """The width of one value head."""
        return self._number("{arch}.attention.value_length", self.n_embd // max(1, self.n_head))

    @property
    def n_ff(self) -> int:
        """The inner width of the feed-forward network (the largest, where layers differ)."""
        return self._number("{arch}.feed_forward_length")

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary; ``vocab_size`` if the file has no tokens."""
        return self.metadata.length_of("tokenizer.ggml.tokens") or self._number("{arch}.vocab_size", 0)

    @property
    def chat_template(self) -> str | None:
        """``tokenizer.chat_template``; None if the file has none."""
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) else None
