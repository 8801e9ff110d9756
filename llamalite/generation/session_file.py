"""Saves what a context holds to a file, so that another process continues a conversation without reading it again.

    LLAMALITE-SESSION 1\\n | length, JSON of the facts | length, int32 tokens | length, state | sha256 of all before

llama.cpp's own state file does not name its model, and a truncated one aborts the process. This file also has the
model's fingerprint, all lengths and a digest; if any of them does not match, it is refused before llama.cpp reads it.
The digest detects damage, not forgery: code that loads a session must check its content, as with any untrusted file.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llamalite.errors import LlamaliteError
from llamalite.files.replacing import replacing

_MAGIC = b"LLAMALITE-SESSION 1\n"
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class SavedSession:
    """The `tokens` of a sequence, llama.cpp's `state` for them, and the `facts` that both depend on (model, ...)."""

    facts: dict[str, Any]
    tokens: list[int]
    state: npt.NDArray[np.uint8]


def fingerprint(path: Path, data_offset: int) -> str:
    """Return a digest that identifies a GGUF file: of its size, its header and 256 samples of its tensors.

    Reading a whole file of gigabytes would take longer than reading the saved conversation again.
    """
    import hashlib

    digest, size = hashlib.sha256(), path.stat().st_size
    digest.update(struct.pack("<Q", size))
    with path.open("rb") as file:
        digest.update(file.read(data_offset))
        for i in range(256):
            file.seek(data_offset + (size - data_offset) * i // 256)
            digest.update(file.read(4096))
    return digest.hexdigest()


def check_place(path: Path) -> None:
    """Raise ``LlamaliteError`` if no session can be saved at `path`; any other kind of file is not overwritten."""
    if path.exists():
        if not path.is_file():
            raise LlamaliteError(f"{path} is not a regular file: a session cannot be saved there")
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise LlamaliteError(f"{path} is not a llamalite session: name another file")
    if not path.parent.is_dir():
        raise LlamaliteError(f"{path} cannot be saved: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise LlamaliteError(f"{path} cannot be saved: the folder {path.parent} cannot be written to")


def write(path: Path, session: SavedSession) -> None:
    """Write `session` to `path`, whole or not at all."""
    import hashlib

    try:
        with replacing(path) as part, part.open("wb") as file:
            digest = hashlib.sha256()
            for block in _blocks(session):
                digest.update(block)
                file.write(block)
            file.write(digest.digest())
    except OSError as error:  # the system's error, of a full disk for instance, does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from None


def _blocks(session: SavedSession) -> Iterable[bytes | memoryview]:
    yield _MAGIC
    facts = json.dumps(session.facts, ensure_ascii=False).encode()
    for block in (facts, np.array(session.tokens, "<i4").tobytes(), session.state.data):
        yield struct.pack("<Q", len(block))
        yield block


def read(path: Path, expected: dict[str, Any]) -> SavedSession:
    """Return the session in `path`; ``LlamaliteError`` if it is damaged or differs from one of the `expected` facts."""
    import hashlib

    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise LlamaliteError(f"{path} is not a llamalite session: begin a new one")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(_MAGIC)) != _MAGIC:
            raise LlamaliteError(f"{path} is not a llamalite session: begin a new one")
        facts_json = _block(path, file, size)
        try:
            facts = json.loads(facts_json)
        except (ValueError, RecursionError):
            raise _damaged(path) from None
        if not isinstance(facts, dict):
            raise _damaged(path)
        for name, value in expected.items():
            if facts.get(name) != value:
                raise LlamaliteError(
                    f"{path} was saved with another {name.replace('_', ' ')} ({facts.get(name)!r:.60}, here "
                    f"{value!r:.60}): begin a new session"
                )
        tokens, state = _block(path, file, size), _block(path, file, size)
        end = file.tell()
        if size != end + _DIGEST_BYTES:
            raise _damaged(path)
        written = file.read()
        file.seek(0)
        digest = hashlib.sha256()
        while (left := end - file.tell()) > 0:
            digest.update(file.read(min(left, 1 << 20)))
        if digest.digest() != written or len(tokens) % 4:
            raise _damaged(path)
    return SavedSession(facts, np.frombuffer(tokens, "<i4").tolist(), np.frombuffer(state, np.uint8))


def _block(path: Path, file: BinaryIO, size: int) -> bytes:
    head = file.read(8)
    if len(head) < 8 or (n := struct.unpack("<Q", head)[0]) > size - file.tell() - _DIGEST_BYTES:
        raise _damaged(path)
    return file.read(n)


def _damaged(path: Path) -> LlamaliteError:
    return LlamaliteError(f"{path} is truncated or damaged: begin a new session")
