"""Reads a header: every count and length is checked against the file's size before it is used.

These checks do not depend on the architecture. They are those of ``gguf_init_from_reader`` (ggml/src/gguf.cpp of
llama.cpp, as bundled in llama-cpp-python 0.3.36) and a few more: names are UTF-8 without NUL bytes, no dimension is
zero, and the header's size is bounded. No memory is mapped: a file that shrinks while it is read raises an error here
instead of a SIGBUS.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from llamalite.errors import GGUFError
from llamalite.files import git_lfs
from llamalite.gguf_check.header import DAMAGED, Entry, Header, Metadata, TensorInfo
from llamalite.gguf_check.strings import Spans, packed_spans
from llamalite.gguf_check.value_types import ARRAY, SCALARS, STRING
from llamalite.quant_types import TENSOR_TYPES_BY_ID, TensorType

MAX_HEADER_BYTES = 128 << 20  # the largest vocabulary known (262,144 tokens, 514,906 merges) takes 20 MiB
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 21  # in all arrays together; gguf.cpp allows 2**30 in each, the largest vocabulary has 777,000
MAX_KEY_BYTES = 0xFFFF  # GGUF's specification
MAX_NAME_BYTES = 63  # GGML_MAX_NAME (ggml.h) with its closing NUL
MAX_DIMS = 4  # GGML_MAX_DIMS (ggml.h)
MIN_ALIGNMENT = 32  # TENSOR_ALIGNMENT (ggml-impl.h): llama.cpp aborts on a mapped tensor that is aligned to less


class _Reader:
    """Takes bytes from the front of a file, and reads no further into it than it must."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0
        self.n_strings = 0
        self.buffer = file.read(min(1 << 20, self.size))

    def fail(self, text: str) -> NoReturn:
        raise GGUFError(f"{self.path}: {text}")

    def grow(self, needed: int, what: str) -> None:
        """Read on until the buffer reaches byte `needed` of the file; `what` names it in messages."""
        if needed > self.size:
            self.fail(f"the file ends inside {what}: byte {needed} is needed, and it has {self.size}; {DAMAGED}")
        if needed > MAX_HEADER_BYTES:
            self.fail(
                f"{what} reaches byte {needed}, and a header may take at most {MAX_HEADER_BYTES} bytes; no model needs "
                "more: get the file from a source you trust"
            )
        wanted = min(self.size, MAX_HEADER_BYTES, max(needed, len(self.buffer) * 5 // 4 + (1 << 16)))
        self.buffer += self.file.read(wanted - len(self.buffer))
        if len(self.buffer) < needed:
            self.fail(f"the file became shorter while {what} was read; try again once it is complete")

    def take(self, form: str, what: str) -> Any:
        """Return the number of the struct format `form`."""
        return self.take_all(form, what)[0]

    def take_all(self, form: str, what: str) -> tuple[Any, ...]:
        start, self.at = self.at, self.at + struct.calcsize(form)
        if self.at > len(self.buffer):
            self.grow(self.at, what)
        return struct.unpack_from(form, self.buffer, start)

    def take_bytes(self, what: str, most: int) -> bytes:
        length = self.take("<Q", what)
        if length > most:
            self.fail(f"{what} is {length} bytes long, expected at most {most}; {DAMAGED}")
        start, self.at = self.at, self.at + length
        if self.at > len(self.buffer):
            self.grow(self.at, what)
        return self.buffer[start : self.at]

    def take_name(self, what: str, most: int) -> str:
        raw = self.take_bytes(what, most)
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not valid UTF-8: {raw[:80]!r}; {DAMAGED}")
        if not name.isprintable() or not name:  # C would cut it at a NUL, and a terminal would obey control characters
            self.fail(f"{what} is {raw[:80]!r}, expected a name of printable characters; {DAMAGED}")
        return name

    def take_strings(self, n: int, what: str) -> Spans:
        self.n_strings += n
        if self.n_strings > MAX_STRINGS or 8 * n > self.size - self.at:
            self.fail(
                f"{what} claims {n} strings, more than the file can hold or any vocabulary needs ({MAX_STRINGS}); "
                f"{DAMAGED}"
            )
        likely = min(self.at + 20 * n, self.size, MAX_HEADER_BYTES)  # nearly always enough for the search
        if likely > len(self.buffer):
            self.grow(likely, what)
        while (spans := packed_spans(self.buffer, self.at, n)) is None:
            self.grow(len(self.buffer) + 1, what)
        if n:
            self.at = int(spans[-1, 1])
        return spans


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of the GGUF file at `path` and check it against the file's size.

    Raises ``GGUFError``, naming the key or tensor, if the file contradicts itself, ``FileNotFoundError`` if it does not
    exist. Takes about 30 ms for a vocabulary of 128,256 tokens, and reads at most 128 MiB of the file.
    """
    path = Path(path)
    if path.is_dir():
        raise GGUFError(f"{path} is a folder, expected a GGUF file: name the file inside it")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
        raise GGUFError(f"{path} is not a regular file, expected a GGUF file")
    with path.open("rb") as file:
        reader = _Reader(path, file)
        version = _read_version(reader)
        n_tensors = reader.take("<Q", "the number of tensors")
        n_keys = reader.take("<Q", "the number of keys")
        if n_keys > min(MAX_KEYS, reader.size // 14):  # 14 bytes: a length, a byte of name, a type, a byte of value
            reader.fail(f"the header claims {n_keys} keys in a file of {reader.size} bytes; {DAMAGED}")
        if n_tensors > min(MAX_TENSORS, reader.size // 25):
            reader.fail(f"the header claims {n_tensors} tensors in a file of {reader.size} bytes; {DAMAGED}")
        entries: dict[str, Entry] = {}
        for i in range(n_keys):
            key = reader.take_name(f"the name of key {i}", MAX_KEY_BYTES)
            if key in entries:
                reader.fail(f"key {key} occurs twice; {DAMAGED}")
            entries[key] = _read_value(reader, key)
        alignment = _alignment(reader, entries)
        tensors, data_offset = _read_tensors(reader, n_tensors, alignment)
        metadata = Metadata(entries, reader.buffer[: reader.at])
        return Header(path, version, alignment, metadata, tensors, data_offset, reader.size)


def _read_version(reader: _Reader) -> int:
    magic = reader.buffer[:4]
    if magic != b"GGUF":
        hint = "it is empty" if not magic else f"it begins with {magic!r}, not b'GGUF'"
        if reader.buffer.startswith(git_lfs.POINTER):
            hint = "it is a Git LFS pointer: run `git lfs pull` in its folder, or download the file itself"
        reader.fail(f"this is not a GGUF file: {hint}")
    reader.at = 4
    version: int = reader.take("<I", "the version")
    if version and not version & 0xFFFF:
        reader.fail("the file is big-endian; convert it with `gguf-convert-endian FILE little` of the package gguf")
    if version == 1:
        reader.fail("the file is of GGUF version 1, which llama.cpp no longer reads; convert the model again")
    if version not in (2, 3):
        reader.fail(f"the file is of GGUF version {version}, expected 2 or 3; {DAMAGED}")
    return version


def _read_value(reader: _Reader, key: str) -> Entry:
    what = f"key {key}"
    kind = reader.take("<I", what)
    if kind == STRING:
        return Entry("string", reader.take_bytes(what, reader.size - reader.at).decode("utf-8", "replace"))
    if kind == ARRAY:
        return _read_array(reader, what)
    if kind not in SCALARS:
        reader.fail(f"{what} is of type {kind}, expected 0 to 12; {DAMAGED}")
    name, form = SCALARS[kind]
    value = reader.take(form, what)
    if name == "bool":
        if value > 1:
            reader.fail(f"{what} is a bool of value {value}, expected 0 or 1; {DAMAGED}")
        value = bool(value)
    return Entry(name, value)


def _read_array(reader: _Reader, what: str) -> Entry:
    kind = reader.take("<I", what)
    n = reader.take("<Q", what)
    if kind == STRING:
        return Entry("array[string]", n=n, start=reader.at, spans=reader.take_strings(n, what))
    if kind not in SCALARS:
        reader.fail(f"{what} is an array of type {kind}, expected numbers, bools or strings; {DAMAGED}")
    name, form = SCALARS[kind]
    start = reader.at
    size = struct.calcsize(form)
    if n > (reader.size - start) // size:
        reader.fail(f"{what} claims {n} elements of {size} bytes with {reader.size - start} bytes left; {DAMAGED}")
    reader.at += n * size
    if reader.at > len(reader.buffer):
        reader.grow(reader.at, what)
    if name == "bool" and n and max(reader.buffer[start : reader.at]) > 1:
        reader.fail(f"{what} is an array of bools with a value other than 0 and 1; {DAMAGED}")
    return Entry(f"array[{name}]", n=n, start=start)


def _alignment(reader: _Reader, entries: dict[str, Entry]) -> int:
    entry = entries.get("general.alignment")
    if entry is None:
        return MIN_ALIGNMENT  # GGUF_DEFAULT_ALIGNMENT (gguf.h) is the same
    value = entry.value
    if entry.type != "uint32" or value < MIN_ALIGNMENT or value & (value - 1):
        reader.fail(
            f"key general.alignment is {value} ({entry.type}), expected a power of two of at least {MIN_ALIGNMENT} "
            f"(uint32); {DAMAGED}"
        )
    return int(value)


def _read_tensors(reader: _Reader, n_tensors: int, alignment: int) -> tuple[tuple[TensorInfo, ...], int]:
    """Return the table and the offset of the data, which must hold the tensors in order, aligned to `alignment`."""
    table: dict[str, tuple[TensorType, tuple[int, ...], int, int]] = {}
    expected = 0
    for i in range(n_tensors):
        name = reader.take_name(f"the name of tensor {i}", MAX_NAME_BYTES)
        if name in table:
            reader.fail(f"tensor {name} occurs twice; {DAMAGED}")
        what = f"tensor {name}"
        n_dims = reader.take("<I", what)
        if n_dims > MAX_DIMS:
            reader.fail(f"{what} has {n_dims} dimensions, expected at most {MAX_DIMS}; {DAMAGED}")
        *dimensions, number, offset = reader.take_all(f"<{n_dims}QIQ", what)
        shape = tuple(dimensions)
        if number not in TENSOR_TYPES_BY_ID:
            reader.fail(
                f"{what} is of type {number}, which the installed llama.cpp does not know; the file is damaged, or "
                "needs another release of llamalite"
            )
        kind = TENSOR_TYPES_BY_ID[number]
        nbytes = _size(reader, what, kind, shape)
        if offset != expected:
            fault = "overlaps the one before it" if offset < expected else "leaves a gap behind the one before it"
            reader.fail(f"{what} {fault}: it begins at byte {offset} of the data, expected {expected}; {DAMAGED}")
        table[name] = (kind, shape, offset, nbytes)
        expected += -(-nbytes // alignment) * alignment
    start = -(-reader.at // alignment) * alignment if n_tensors else reader.at
    tensors = tuple(TensorInfo(name, t, s, start + offset, size) for name, (t, s, offset, size) in table.items())
    for tensor in tensors:
        if tensor.offset + tensor.nbytes > reader.size:
            reader.fail(
                f"tensor {tensor.name} ends at byte {tensor.offset + tensor.nbytes}, and the file has {reader.size}; "
                f"{DAMAGED}"
            )
    return tensors, start


def _size(reader: _Reader, what: str, kind: TensorType, shape: tuple[int, ...]) -> int:
    """Return the number of bytes of a tensor of `shape` and `kind`, after checking that the file can hold them."""
    n_weights = 1
    for n in shape:
        if n == 0:
            reader.fail(f"{what} has shape {list(shape)}, which holds nothing; {DAMAGED}")
        n_weights *= n  # Python's integers do not overflow
    if (shape[0] if shape else 1) % kind.block_size:
        reader.fail(
            f"{what} has rows of {shape[0] if shape else 1} weights, which do not fill blocks of {kind.block_size} "
            f"({kind.name}); {DAMAGED}"
        )
    nbytes = n_weights // kind.block_size * kind.block_bytes
    if nbytes > reader.size:
        reader.fail(f"{what} of shape {list(shape)} takes {nbytes} bytes, and the file has {reader.size}; {DAMAGED}")
    return nbytes
