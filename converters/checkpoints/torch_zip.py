"""The zip archives of ``torch.save``: uncompressed members, read at their positions.

    pytorch_model.bin:  archive/data.pkl    archive/byteorder    archive/data/0    archive/data/1    ...

Python's ``zipfile`` reads only the directory at the archive's end. It is checked against the file: every member must be
stored uncompressed, lie inside the file, share no bytes with another, and have a unique name. torch never writes
anything else, so anything else is refused: a zip bomb needs compression or members that share bytes.
"""

from __future__ import annotations

import os
import struct
import zipfile
from dataclasses import dataclass

import numpy as np

from llamalite.converters.checkpoints.interface import SourceFile
from llamalite.errors import CheckpointError

MAGIC = b"PK\x03\x04"
MAX_DIRECTORY_BYTES = 1 << 20  # a 70B model in one file has about 100 KB

_LOCAL = struct.Struct("<4s22x2H")  # of a member's own header: magic, lengths of name and extra field (APPNOTE 4.3.7)


@dataclass(frozen=True)
class Member:
    """A member of the archive, with the position and number of its bytes."""

    name: str
    offset: int
    n_bytes: int


def read_members(file: SourceFile) -> dict[str, Member]:
    """Return the members of an open archive by name; `CheckpointError` says what is wrong with it."""
    try:
        with zipfile.ZipFile(_Stream(file)) as archive:
            entries, directory, comment = archive.infolist(), archive.start_dir, archive.comment
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise _damaged(file, str(error)) from None
    if comment:
        raise _damaged(file, "it does not end with a zip's directory")
    members: dict[str, Member] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name, first = entry.filename, entry.header_offset
        _check_stored(file, entry)
        if name in members:
            raise CheckpointError(f"{file.path} holds {name!r} twice: it is unclear which one is meant")
        if first < end:
            raise _damaged(
                file, f"{name!r} begins at byte {first:,}, inside the member before it, which ends at {end:,}"
            )
        members[name] = member = Member(name, _data_offset(file, name, first), entry.file_size)
        end = member.offset + member.n_bytes
    if end > directory:
        raise _damaged(file, f"its last member ends at byte {end:,}, after the directory begins at {directory:,}")
    return members


def read_bytes(file: SourceFile, offset: int, n_bytes: int) -> bytes:
    """Return `n_bytes` bytes at `offset`; `CheckpointError` if the file is too short."""
    if offset + n_bytes > file.n_bytes:
        raise _damaged(file, f"byte {offset + n_bytes:,} is needed, but the file has {file.n_bytes:,}")
    buffer = np.empty(n_bytes, np.uint8)
    file.read_into(offset, buffer)
    return buffer.tobytes()


class _Stream:
    """A source file with the interface that ``zipfile`` needs; it limits the size of the directory."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.n_bytes}[whence]
        if at < 0:
            raise zipfile.BadZipFile("its directory begins before the file does")
        self._at = at
        return at

    def read(self, n: int = -1) -> bytes:
        n_left = max(0, self._file.n_bytes - self._at)
        n = n_left if n < 0 else min(n, n_left)
        if n > MAX_DIRECTORY_BYTES:
            raise CheckpointError(
                f"{self._file.path}: a zip directory of {n:,} bytes, expected at most {MAX_DIRECTORY_BYTES:,}"
            )
        content = read_bytes(self._file, self._at, n)
        self._at += n
        return content


def _check_stored(file: SourceFile, entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise CheckpointError(
            f"{file.path}: {entry.filename!r} is compressed ({entry.compress_size:,} bytes for {entry.file_size:,}), "
            "which torch.save never does: load and save it again with torch"
        )
    if entry.flag_bits & 0x1:
        raise CheckpointError(f"{file.path}: {entry.filename!r} is encrypted")


def _data_offset(file: SourceFile, name: str, header: int) -> int:
    magic, n_name, n_extra = _LOCAL.unpack(read_bytes(file, header, _LOCAL.size))
    if magic != MAGIC:
        raise _damaged(file, f"{name!r} does not begin at byte {header:,}, as its directory says")
    return int(header + _LOCAL.size + n_name + n_extra)


def _damaged(file: SourceFile, problem: str) -> CheckpointError:
    return CheckpointError(f"{file.path} is truncated or not a file of torch.save: {problem}; download it again")
