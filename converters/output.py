"""Where the tensors of one result go: one file, or shards that llama.cpp loads as one model.

    lay_out(plan, 0, Path("big.gguf"), 2 * 10**9).paths    # big-00001-of-00004.gguf, ...

A `Layout` is arithmetic only. `part_files` holds the files on disk, as ``NAME.part`` until they are finished, locked
against a second conversion to the same name, and removed if it comes to nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llamalite.converters import header
from llamalite.converters.header import padded
from llamalite.converters.importance import Importance
from llamalite.converters.notices import warn
from llamalite.converters.pipeline import OutputFile, Place, named_errors
from llamalite.converters.planning import ConversionPlan, PlannedTensor
from llamalite.errors import GGUFError
from llamalite.files import shards
from llamalite.gguf_check import read_header

_MAX_KEY_TEXT = 127  # llama_model_kv_override.val_str (llama.h), through which llama-quantize hands these keys on


@dataclass(frozen=True)
class Layout:
    """The files of one output: `paths`, and for each the tensors that it holds, in llama.cpp's order."""

    plan: ConversionPlan
    i_output: int
    paths: tuple[Path, ...]
    shards: tuple[tuple[PlannedTensor, ...], ...]

    @property
    def n_data_bytes(self) -> int:
        return sum(self.shard_bytes(i) for i in range(len(self.shards)))

    def shard_bytes(self, i_shard: int) -> int:
        return sum(padded(tensor.n_bytes(self.i_output)) for tensor in self.shards[i_shard])


def lay_out(plan: ConversionPlan, i_output: int, path: Path, split_max_bytes: int | None) -> Layout:
    """Return the layout of one file, or of shards of at most `split_max_bytes`; a larger tensor stands alone.

    Named as ``llama_split_path`` names them (llama.cpp), and filled in order, as llama-gguf-split fills them.
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


def old_shards(path: Path, wanted: Collection[Path]) -> list[Path]:
    """Return the files of split models that are called as `path` is, of another number of files than those `wanted`.

    They would lie beside the new ones as a second model of that name. ``FileExistsError`` for a file that is called so
    and is no such shard by its own keys: it is somebody else's, and not to be removed.
    """
    found = []
    for one in shards.lying_in(path.parent, path.name.removesuffix(".gguf"), ".gguf"):
        name = shards.parse(one.stem)
        if one in wanted or name is None:
            continue
        try:
            metadata = read_header(one).metadata
            keys = metadata.get("split.no"), metadata.get("split.count")
            is_shard = keys == (name.number - 1, name.count)
        except GGUFError:
            is_shard = False
        if not is_shard:
            raise FileExistsError(
                f"{one} is called as a shard of {path}, and is none by its own keys: move it away, or write elsewhere "
                "(convert -o)"
            )
        found.append(one)
    return found


def remove_old(shards: Iterable[Path]) -> None:
    """Remove files of a model that has been replaced; one that cannot be is told, as the new model stands."""
    for path in shards:
        try:
            path.unlink()
        except OSError as error:  # noqa: PERF203 - each for itself
            warn("%s belongs to the model that is replaced, but cannot be removed: %s", path, error.strerror)


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
        n_tensors, ftype = len(layout.plan.tensors), layout.plan.file_types[layout.i_output].ftype
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
        """Put everything on the disk and give the files their names.

        Of several the first, which is the one that is opened, has its name last, and an old one goes first: so that
        files of two conversions are never taken for one model. An interrupt does not leave them halfway.
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
        """Remove `part` if it has not become a file: by then another conversion may have one of that name."""
        if part not in self._named:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []


def part_path(path: Path) -> Path:
    """Where `path` is written until it is finished."""
    return path.with_name(path.name + ".part")


@contextlib.contextmanager
def part_files(layout: Layout) -> Iterator[PartFiles]:
    """Hold ``PATH.part`` for each path of `layout`, and remove what is left of them at the end."""
    parts = [part_path(path) for path in layout.paths]
    files = PartFiles(layout, parts)
    with contextlib.ExitStack() as stack:
        for part in parts:
            if part.is_symlink() or (part.exists() and not part.is_file()):  # a link would lead the writes elsewhere
                raise FileExistsError(
                    f"{part} is in the way and is no plain file: remove it, or write elsewhere (convert -o)"
                )
            is_left = part.exists()
            handle = stack.enter_context(part.open("ab"))
            _lock(handle.fileno(), part)
            if is_left:
                warn("%s is left from a conversion that was stopped; it is replaced", part)
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
    """What llama-quantize records of an importance matrix (tools/quantize/quantize.cpp), in its order."""
    if importance is None:
        return []
    keys = [(b"quantize.imatrix.file", header.string(importance.file[:_MAX_KEY_TEXT]))]
    if importance.dataset is not None:
        keys.append((b"quantize.imatrix.dataset", header.string(importance.dataset[:_MAX_KEY_TEXT])))
    keys.append((b"quantize.imatrix.entries_count", header.uint32(len(importance.rows))))
    if importance.n_chunks > 0:
        keys.append((b"quantize.imatrix.chunks_count", header.uint32(importance.n_chunks)))
    return keys
