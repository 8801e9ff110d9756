"""Where the tensors of one output go: one file, or shards that llama.cpp loads as one model.

    lay_out(plan, 0, Path("big.gguf"), 2 * 10**9).paths    # big-00001-of-00004.gguf, ...

A `Layout` is arithmetic only. `part_files` holds the files on disk: named ``NAME.part`` until they are finished, locked
against a second conversion to the same name, and removed if the conversion fails.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llamalite.converters import header
from llamalite.converters.header import padded
from llamalite.converters.importance import Importance
from llamalite.converters.pipeline import Bytes, Place
from llamalite.converters.plan import ConversionPlan, PlannedTensor
from llamalite.converters.warning_log import warn
from llamalite.errors import GGUFError
from llamalite.files import shards
from llamalite.gguf_check import read_header
from llamalite.quant_types import FileType

_MAX_KEY_TEXT = 127  # llama_model_kv_override.val_str (llama.h), in which llama-quantize passes these keys


@dataclass(frozen=True)
class Layout:
    """The files of one output: `paths`, and the tensors in each of them, in llama.cpp's order."""

    plan: ConversionPlan
    i_output: int
    paths: tuple[Path, ...]
    shards: tuple[tuple[PlannedTensor, ...], ...]

    @property
    def file_type(self) -> FileType:
        return self.plan.file_types[self.i_output]

    @property
    def n_data_bytes(self) -> int:
        return sum(self.shard_bytes(i) for i in range(len(self.shards)))

    def shard_bytes(self, i_shard: int) -> int:
        return sum(padded(tensor.n_bytes(self.i_output)) for tensor in self.shards[i_shard])


def lay_out(plan: ConversionPlan, i_output: int, path: Path, split_max_bytes: int | None) -> Layout:
    """Return the layout of one file, or of shards of at most `split_max_bytes`; a larger tensor gets its own shard.

    Shards are named as by ``llama_split_path`` (llama.cpp), and filled in order, as by llama-gguf-split.
    """
    parts: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in plan.tensors:
        n_bytes = padded(tensor.n_bytes(i_output))
        if split_max_bytes is not None and parts[-1] and filled + n_bytes > split_max_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(tensor)
        filled += n_bytes
    paths = [path]
    if len(parts) > 1:
        names = shards.all_of(path.name.removesuffix(".gguf"), len(parts))
        paths = [path.with_name(f"{name}.gguf") for name in names]
    return Layout(plan, i_output, tuple(paths), tuple(tuple(part) for part in parts))


def old_shards(path: Path, new_paths: Collection[Path]) -> list[Path]:
    """Return the shards of an older split model named `path` that has a different number of files than `new_paths`.

    Next to the new files they would be a second model of that name. ``FileExistsError`` for a file that has a shard's
    name but not its keys: it may belong to something else, and is not removed.
    """
    old = []
    for file in shards.shards_in(path.parent, path.name.removesuffix(".gguf"), ".gguf"):
        shard = shards.parse(file.stem)
        if file in new_paths or shard is None:
            continue
        try:
            metadata = read_header(file).metadata
            keys = metadata.get("split.no"), metadata.get("split.count")
            is_shard = keys == (shard.number - 1, shard.count)
        except GGUFError:
            is_shard = False
        if not is_shard:
            raise FileExistsError(
                f"{file} is named like a shard of {path}, but its keys say otherwise: move it away, or write elsewhere "
                "(convert -o)"
            )
        old.append(file)
    return old


def remove_old(files: Iterable[Path]) -> None:
    """Remove the files of a replaced model; a failure is only a warning, as the new model is complete."""
    for path in files:
        try:
            path.unlink()
        except OSError as error:  # noqa: PERF203 - each on its own
            warn("%s belongs to the replaced model, but cannot be removed: %s", path, error.strerror)


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Add `path` to an ``OSError`` from the block (disk full, say): the system's error does not name it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


class OutputFile:
    """A file of known size that several threads can write at once, each at its own position.

    On Linux the system starts to write each piece to disk at once, so `flush` has little left to wait for; `flush`
    raises the errors of such writes.
    """

    def __init__(self, path: Path, data_start: int) -> None:
        self.path = path
        self.data_start = data_start
        self._file = path.open("r+b", buffering=0)
        self._lock = threading.Lock()

    def write_at(self, offset: int, data: Bytes) -> None:
        view = data.data.cast("B")
        start, n_bytes = self.data_start + offset, view.nbytes
        with named_errors(self.path):
            while view:
                if hasattr(os, "pwrite"):
                    n = os.pwrite(self._file.fileno(), view, self.data_start + offset)
                else:
                    with self._lock:  # Windows has no positioned write
                        self._file.seek(self.data_start + offset)
                        n = self._file.write(view) or 0
                offset += n
                view = view[n:]
        if sys.platform == "linux":  # starts to write these pages, and drops none before it is written (mm/fadvise.c)
            with contextlib.suppress(OSError):  # this is a hint, which a file system may refuse
                os.posix_fadvise(self._file.fileno(), start, n_bytes, os.POSIX_FADV_DONTNEED)

    def reserve(self, n_bytes: int) -> None:
        """Give the file its full length, all zeros at first; padding stays zero."""
        with named_errors(self.path):
            self._file.truncate(self.data_start + n_bytes)

    def flush(self) -> None:
        """Wait until everything written is on the disk."""
        with named_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class PartFiles:
    """The files of a layout while they are written."""

    def __init__(self, layout: Layout, parts: list[Path]) -> None:
        self._layout = layout
        self.parts = parts
        self._files: list[OutputFile] = []
        self._named: set[Path] = set()

    def write(self, keys: header.Keys, importance: Importance | None) -> list[Place]:
        """Write the headers, give the files their full length, and return each tensor's place."""
        self.close()
        layout, places = self._layout, []
        n_tensors, ftype = len(layout.plan.tensors), layout.file_type.ftype
        for i, (part, tensors) in enumerate(zip(self.parts, layout.shards, strict=True)):
            split = header.Split(i, len(layout.shards), n_tensors) if len(layout.shards) > 1 else None
            last = _importance_keys(importance)
            with named_errors(part):
                start = header.write(part, keys, ftype, last, tensors, layout.i_output, split)
            self._files.append(OutputFile(part, start))
            offset = 0
            for tensor in tensors:
                places.append(Place(self._files[-1], offset))
                offset += padded(tensor.n_bytes(layout.i_output))
            self._files[-1].reserve(offset)
        return places

    def finish(self) -> None:
        """Flush the files to disk and give them their final names. An interrupt does not stop the renaming.

        The first shard is the one that is opened: an old one is removed first, and the new one gets its name last, so
        that files of two conversions are never taken for one model.
        """
        for file in self._files:
            file.flush()
        self.close()
        first, *others = zip(self.parts, self._layout.paths, strict=True)
        renames = [*others, first]
        try:
            if others:
                first[1].unlink(missing_ok=True)
            self._name(renames)
        except BaseException:
            self._name(renames)
            raise

    def _name(self, renames: list[tuple[Path, Path]]) -> None:
        for part, path in renames:
            if part not in self._named:
                part.replace(path)
                self._named.add(part)

    def remove(self, part: Path) -> None:
        """Remove `part` unless it has been renamed: then a file of that name belongs to another conversion."""
        if part not in self._named:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []


def part_path(path: Path) -> Path:
    """Return the path under which `path` is written until it is finished."""
    return path.with_name(path.name + ".part")


@contextlib.contextmanager
def part_files(layout: Layout) -> Iterator[PartFiles]:
    """Open and lock ``PATH.part`` for each path of `layout`; at the end, remove those that were not renamed."""
    parts = [part_path(path) for path in layout.paths]
    files = PartFiles(layout, parts)
    with contextlib.ExitStack() as stack:
        for part in parts:
            if part.is_symlink() or (part.exists() and not part.is_file()):  # a link would lead the writes elsewhere
                raise FileExistsError(
                    f"{part} is in the way and is not a plain file: remove it, or write elsewhere (convert -o)"
                )
            is_leftover = part.exists()
            handle = stack.enter_context(part.open("ab"))
            _lock(handle.fileno(), part)
            if is_leftover:
                warn("%s is left over from a conversion that was stopped; it is replaced", part)
            stack.callback(files.remove, part)
        stack.callback(files.close)
        yield files


def _lock(descriptor: int, part: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return  # Windows refuses the rename of a file that another process has open
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(
            f"{part} is being written by another conversion: wait for it, or write elsewhere (convert -o)"
        ) from None


def _importance_keys(importance: Importance | None) -> header.Keys:
    """Return the keys in which llama-quantize records an importance matrix, in its order (quantize.cpp)."""
    if importance is None:
        return []
    keys = [(b"quantize.imatrix.file", header.string(importance.file[:_MAX_KEY_TEXT]))]
    if importance.dataset is not None:
        keys.append((b"quantize.imatrix.dataset", header.string(importance.dataset[:_MAX_KEY_TEXT])))
    keys.append((b"quantize.imatrix.entries_count", header.uint32(len(importance.rows))))
    if importance.n_chunks > 0:
        keys.append((b"quantize.imatrix.chunks_count", header.uint32(importance.n_chunks)))
    return keys
