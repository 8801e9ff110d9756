"""The zip archives that ``torch.save`` writes: members stored as they are, read at their positions.

    pytorch_model.bin:  archive/data.pkl    archive/byteorder    archive/data/0    archive/data/1    ...

Only the directory at the archive's end is read, with the two headers that point to it (PKWARE APPNOTE 4.3.12 to
4.3.16), and held against the file: every member stored and not compressed, inside the file, apart from the others, its
name unique. What a zip may hold beyond that (compression, encryption, comments, several disks) torch never writes, and
each is refused by name: a zip bomb needs compression or members that share bytes. A test holds this reader equal to
Python's ``zipfile``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from llamalite.converters.checkpoints.interface import SourceFile
from llamalite.errors import CheckpointError

MAGIC = b"PK\x03\x04"
MAX_DIRECTORY_BYTES = 16 << 20  # a 70B model in one file has about 100 KB

_END, _END_MAGIC = struct.Struct("<4s4H2LH"), b"PK\x05\x06"
_LOCATOR, _LOCATOR_MAGIC = struct.Struct("<4sLQL"), b"PK\x06\x07"
_END64, _END64_MAGIC = struct.Struct("<4sQ2H2L4Q"), b"PK\x06\x06"
_ENTRY, _ENTRY_MAGIC = struct.Struct("<4s6H3L5H2L"), b"PK\x01\x02"
_LOCAL = struct.Struct("<4s5H3L2H")
_IN_ZIP64 = 0xFFFFFFFF


@dataclass(frozen=True)
class Member:
    """A member of the archive: where its bytes begin, and how many they are."""

    name: str
    offset: int
    n_bytes: int


def read_members(file: SourceFile) -> dict[str, Member]:
    """Return the members of an open archive by their names; `CheckpointError` says what is wrong with it."""
    start, size, count = _directory(file)
    if size > MAX_DIRECTORY_BYTES:
        raise CheckpointError(
            f"{file.path}: a zip directory of {size:,} bytes, expected {MAX_DIRECTORY_BYTES:,} at most"
        )
    if start + size > file.n_bytes:
        raise _damaged(file, f"its directory ends at byte {start + size:,} of {file.n_bytes:,}")
    directory = read_bytes(file, start, size)
    members: dict[str, Member] = {}
    at = 0
    taken: list[tuple[int, int, str]] = []
    for _ in range(count):
        name, header, n_bytes, at = _entry(file, directory, at)
        if name in members:
            raise CheckpointError(f"{file.path} holds {name!r} twice: which one is meant cannot be told")
        members[name] = member = Member(name, _data_offset(file, name, header), n_bytes)
        taken.append((header, member.offset + n_bytes, name))
    if at != len(directory):
        raise _damaged(file, f"its directory has {len(directory) - at} bytes beyond its {count} entries")
    _check_apart(file, taken, start)
    return members


def read_bytes(file: SourceFile, offset: int, n_bytes: int) -> bytes:
    """Return `n_bytes` at `offset`; `CheckpointError` where the file ends before."""
    if offset + n_bytes > file.n_bytes:
        raise _damaged(file, f"byte {offset + n_bytes:,} is needed and the file has {file.n_bytes:,}")
    buffer = np.empty(n_bytes, np.uint8)
    file.read_into(offset, buffer)
    return buffer.tobytes()


def _directory(file: SourceFile) -> tuple[int, int, int]:
    """Return (offset, bytes, entries) of the central directory."""
    if file.n_bytes < _END.size:
        raise _damaged(file, f"it has {file.n_bytes} bytes")
    end = file.n_bytes - _END.size
    magic, disk, first_disk, here, count, size, start, comment = _END.unpack(read_bytes(file, end, _END.size))
    if magic != _END_MAGIC or comment:
        raise _damaged(file, "it does not end with a zip's directory")
    if end >= _LOCATOR.size:
        magic, disk64, end64, disks = _LOCATOR.unpack(read_bytes(file, end - _LOCATOR.size, _LOCATOR.size))
        if magic == _LOCATOR_MAGIC:
            fields = _END64.unpack(read_bytes(file, end64, _END64.size))
            if fields[0] != _END64_MAGIC or disk64 or disks > 1:
                raise _damaged(file, "its zip64 directory is not where it should be")
            disk, first_disk, here, count, size, start = fields[4:]
    if disk or first_disk or here != count:
        raise _damaged(file, "it is one part of a zip over several files")
    return start, size, count


def _entry(file: SourceFile, directory: bytes, at: int) -> tuple[str, int, int, int]:
    """Return (name, offset of the local header, bytes, position of the next entry)."""
    if at + _ENTRY.size > len(directory):
        raise _damaged(file, "its directory is shorter than its number of entries")
    fields = _ENTRY.unpack_from(directory, at)
    magic, flags, method, packed, n_bytes = fields[0], fields[3], fields[4], fields[8], fields[9]
    n_name, n_extra, n_comment, header = fields[10], fields[11], fields[12], fields[16]
    extra_at = at + _ENTRY.size + n_name
    after = extra_at + n_extra + n_comment
    if magic != _ENTRY_MAGIC or after > len(directory):
        raise _damaged(file, f"its directory is broken at byte {at}")
    try:
        name = directory[at + _ENTRY.size : extra_at].decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(file, f"a name in its directory is not UTF-8, at byte {at}") from None
    if _IN_ZIP64 in (n_bytes, packed, header):
        n_bytes, packed, header = _zip64(file, directory[extra_at : extra_at + n_extra], [n_bytes, packed, header])
    if method != 0 or n_bytes != packed:
        raise CheckpointError(
            f"{file.path}: {name!r} is compressed ({packed:,} bytes for {n_bytes:,}), which torch.save never does: "
            "load and save it again with torch"
        )
    if flags & 0x1:
        raise CheckpointError(f"{file.path}: {name!r} is encrypted")
    return name, header, n_bytes, after


def _zip64(file: SourceFile, extra: bytes, values: list[int]) -> list[int]:
    """Return `values`, those that do not fit into 32 bits replaced by what the zip64 field holds (APPNOTE 4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        kind, n = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wanted = [i for i, value in enumerate(values) if value == _IN_ZIP64]
            if n < 8 * len(wanted) or at + 4 + n > len(extra):
                break
            for i, value in zip(wanted, struct.unpack_from(f"<{len(wanted)}Q", extra, at + 4), strict=True):
                values[i] = value
            return values
        at += 4 + n
    raise _damaged(file, "an entry of its directory lacks its 64-bit sizes")


def _data_offset(file: SourceFile, name: str, header: int) -> int:
    fields = _LOCAL.unpack(read_bytes(file, header, _LOCAL.size))
    if fields[0] != MAGIC:
        raise _damaged(file, f"{name!r} does not begin at byte {header:,}, where its directory says")
    return int(header + _LOCAL.size + fields[9] + fields[10])


def _check_apart(file: SourceFile, taken: list[tuple[int, int, str]], directory: int) -> None:
    end = 0
    for first, last, name in sorted(taken):
        if first < end:
            raise _damaged(
                file, f"{name!r} begins at byte {first:,}, inside the member before it, which ends at {end:,}"
            )
        end = last
    if end > directory:
        raise _damaged(file, f"its last member ends at byte {end:,}, after the directory begins at {directory:,}")


def _damaged(file: SourceFile, what: str) -> CheckpointError:
    return CheckpointError(f"{file.path} is truncated or no file of torch.save: {what}; download it again")
