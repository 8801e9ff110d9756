"""Takes GGUF files apart and puts them together byte by byte, so that a test can make any fault.

    file = GgufBytes.of(toy_path)
    file.set("llama.block_count", UINT32, 7)
    path.write_bytes(file.dump())

It knows the layout only, and shares no code with what it tests.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12  # ggml types


@dataclass
class Array:
    """The value of an array key; `claimed` is the number of elements written into the file, if that should be false."""

    type: int
    values: list[Any]
    claimed: int | None = None


@dataclass
class Key:
    name: bytes
    type: int
    value: Any


@dataclass
class Tensor:
    name: bytes
    shape: list[int]
    type: int
    content: bytes
    offset: int | None = None  # None: where it belongs


def _string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        head = struct.pack("<IQ", value.type, len(value.values) if value.claimed is None else value.claimed)
        return head + b"".join(_value(value.type, element) for element in value.values)
    return value if isinstance(value, bytes) else struct.pack("<" + FORMS[kind], value)


@dataclass
class GgufBytes:
    keys: list[Key] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    alignment: int = 32
    n_keys: int | None = None  # None: the true number
    n_tensors: int | None = None

    def key(self, name: str) -> Key:
        return next(key for key in self.keys if key.name == name.encode())

    def set(self, name: str, kind: int, value: Any) -> None:
        """Give `name` a type and value, in its place if it is there and at the end if not."""
        new = Key(name.encode(), kind, value)
        for i, key in enumerate(self.keys):
            if key.name == new.name:
                self.keys[i] = new
                return
        self.keys.append(new)

    def drop(self, name: str) -> None:
        self.keys = [key for key in self.keys if key.name != name.encode()]
        self.tensors = [tensor for tensor in self.tensors if tensor.name != name.encode()]

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name.encode())

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        parts = [b"GGUF", struct.pack("<IQQ", self.version, n_tensors, n_keys)]
        parts += [_string(key.name) + struct.pack("<I", key.type) + _value(key.type, key.value) for key in self.keys]
        offset = 0
        for tensor in self.tensors:
            where = offset if tensor.offset is None else tensor.offset
            parts.append(_string(tensor.name) + struct.pack("<I", len(tensor.shape)))
            parts.append(struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.type, where))
            offset += len(tensor.content) + -len(tensor.content) % self.alignment
        return b"".join(parts)

    def dump(self) -> bytes:
        head = self.header()
        body = [tensor.content + bytes(-len(tensor.content) % self.alignment) for tensor in self.tensors]
        return head + bytes(-len(head) % self.alignment) + b"".join(body)

    @classmethod
    def of(cls, path: Path) -> GgufBytes:
        """Parse a valid file."""
        raw = path.read_bytes()
        at = 4

        def take(form: str) -> Any:
            nonlocal at
            (value,) = struct.unpack_from("<" + form, raw, at)
            at += struct.calcsize("<" + form)
            return value

        def string() -> bytes:
            nonlocal at
            n = take("Q")
            at += n
            return raw[at - n : at]

        def value(kind: int) -> Any:
            if kind == STRING:
                return string()
            if kind == ARRAY:
                element, n = take("I"), take("Q")
                return Array(element, [value(element) for _ in range(n)])
            return take(FORMS[kind])

        version, n_tensors, n_keys = take("I"), take("Q"), take("Q")
        keys = []
        for _ in range(n_keys):
            name, kind = string(), take("I")
            keys.append(Key(name, kind, value(kind)))
        table = []
        for _ in range(n_tensors):
            name, n_dims = string(), take("I")
            table.append((name, [take("Q") for _ in range(n_dims)], take("I"), take("Q")))
        start = at + -at % 32
        ends = [offset for *_, offset in table[1:]] + [len(raw) - start]
        tensors = [
            Tensor(name, shape, kind, raw[start + offset : start + end])
            for (name, shape, kind, offset), end in zip(table, ends, strict=True)
        ]
        return cls(keys, tensors, version)
