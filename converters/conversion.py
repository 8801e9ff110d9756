"""From a checkpoint to finished files: preflight, header, the one pass, and a rename when all is well.

OUT is written as ``OUT.part`` and renamed when it is complete and on the disk, so that OUT is either absent or whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from llamalite.converters import carried, pipeline
from llamalite.converters.checkpoints import Checkpoint, open_checkpoint
from llamalite.converters.planning import Plan, make_plan
from llamalite.converters.vocabulary import Vocabulary, read_vocabulary
from llamalite.errors import CheckpointError
from llamalite.quant_types import FileType, TensorType, file_type

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutputReport:
    """One finished file. `bits_per_weight` counts tensors only; `fallbacks` had rows that their type cannot hold."""

    path: Path
    qtype: str
    n_bytes: int
    bits_per_weight: float
    fallbacks: Mapping[str, str]


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did; `path`, `n_bytes` and `bits_per_weight` are those of its first file."""

    source: Path
    source_bytes: int
    n_params: int
    n_tensors: int
    seconds: float
    outputs: tuple[OutputReport, ...]

    @property
    def path(self) -> Path:
        return self.outputs[0].path

    @property
    def n_bytes(self) -> int:
        return self.outputs[0].n_bytes

    @property
    def bits_per_weight(self) -> float:
        return self.outputs[0].bits_per_weight


def plan(source: str | os.PathLike[str], qtype: str | Sequence[str] = "Q4_K_M") -> Plan:
    """Return what `convert` would do with the checkpoint at `source`, reading only headers and configs."""
    with open_checkpoint(Path(source)) as checkpoint:
        return make_plan(checkpoint, _file_types(qtype))


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    qtype: str | Sequence[str] = "Q4_K_M",
    force: bool = False,
    n_threads: int | None = None,
    importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
    overrides: Sequence[tuple[str, TensorType]] = (),
    pure: bool = False,
    allow_requantize: bool = False,
    progress: pipeline.Progress | None = None,
) -> ConversionReport:
    """Convert the checkpoint at `source` to the GGUF file `out`, or to one file a type in the folder `out`.

    `source` is a Hugging Face folder, one of Meta's, or a GGUF file (the first of a split model), which may be
    quantized already only with `allow_requantize`.

    Several types (``qtype=["Q4_K_M", "Q8_0"]``) are made in one read of the weights, as ``NAME-TYPE.gguf`` in the
    folder `out`. An existing file is replaced only with `force`. `progress` is called in this thread with source bytes
    done and in all; an exception from it cancels, and leaves nothing behind.

    Raises `CheckpointError`, `VocabularyError` and `QuantizationError` for what cannot be converted, before anything is
    written where that can be known, ``FileExistsError`` for an `out` that stands, ``ValueError`` for an unknown type.
    """
    started = time.perf_counter()
    file_types = _file_types(qtype)
    with open_checkpoint(Path(source)) as checkpoint:
        planned = make_plan(
            checkpoint,
            file_types,
            importance=importance,
            overrides=overrides,
            pure=pure,
            allow_requantize=allow_requantize,
        )
        vocabulary = None
        if checkpoint.carried is None:
            vocabulary = read_vocabulary(checkpoint.tokenizer_folder, checkpoint.config)
        paths = output_paths(checkpoint.name, Path(out), file_types, is_folder=not isinstance(qtype, str))
        _check_room(planned, paths, force=force)
        with _part_files(paths) as parts:
            starts = [_write_header(checkpoint, planned, vocabulary, i, part) for i, part in enumerate(parts)]
            with contextlib.ExitStack() as stack:
                outputs = [
                    stack.enter_context(contextlib.closing(pipeline.OutputFile(part, start)))
                    for part, start in zip(parts, starts, strict=True)
                ]
                pipeline.run(
                    planned,
                    outputs,
                    n_threads=n_threads or _usable_cores(),
                    importance=importance,
                    progress=progress,
                )
            checkpoint.check_unchanged()
            for part, path in zip(parts, paths, strict=True):
                part.replace(path)
        return ConversionReport(
            source=checkpoint.folder,
            source_bytes=planned.source_bytes,
            n_params=planned.n_params,
            n_tensors=len(planned.tensors),
            seconds=time.perf_counter() - started,
            outputs=tuple(_report(planned, i, path) for i, path in enumerate(paths)),
        )


def output_paths(name: str, out: Path, file_types: Sequence[FileType], *, is_folder: bool) -> list[Path]:
    """Return where each file goes: `out` itself, or ``NAME-TYPE.gguf`` in the folder `out`."""
    if not is_folder:
        return [out]
    return [out / f"{name}-{one.name}.gguf" for one in file_types]


def _file_types(qtype: str | Sequence[str]) -> list[FileType]:
    names = [qtype] if isinstance(qtype, str) else list(qtype)
    found = [file_type(name) for name in names]
    if not found or len(set(names)) != len(names):
        raise ValueError(f"expected one or several different types, found {', '.join(names) or 'none'}")
    return found


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_room(planned: Plan, paths: Sequence[Path], *, force: bool) -> None:
    """Raise unless each path can be written and the disk holds all of them."""
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: pass the name of the file to write with -o")
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists: pass --force to replace it, or another name with -o")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first, or pass another -o")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"the folder {path.parent} is not writable: pass another one with -o")
    needed = sum(planned.tensor_bytes(i) for i in range(len(paths)))
    free = shutil.disk_usage(paths[0].parent).free
    if free < needed:
        raise OSError(f"{paths[0].parent} has {free / 1e9:.1f} GB free, needed are {needed / 1e9:.1f} GB")


@contextlib.contextmanager
def _part_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Hold ``PATH.part`` for each path, locked against a second conversion, and remove what is left of them."""
    parts = [path.with_name(path.name + ".part") for path in paths]
    with contextlib.ExitStack() as stack:
        for part in parts:
            if part.exists():
                _logger.info("%s is left from a conversion that was stopped; it is replaced", part)
            handle = stack.enter_context(part.open("ab"))
            _lock(handle.fileno(), part)
            stack.callback(part.unlink, missing_ok=True)
        yield parts


def _lock(descriptor: int, part: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return  # Windows refuses the rename of a file that another process has open
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(
            f"{part} is being written by another conversion: wait for it, or pass another -o"
        ) from None


def _write_header(
    checkpoint: Checkpoint, planned: Plan, vocabulary: Vocabulary | None, i_output: int, part: Path
) -> int:
    """Write everything before the tensor data into `part`, and return where the data starts.

    The order of keys is that of llama.cpp's two steps: its converter's, with the two keys at the end that
    llama-quantize sets anew (src/llama-quant.cpp, ``llama_model_quantize_impl``).
    """
    if checkpoint.carried is not None:
        return carried.write_header(checkpoint.carried, planned, i_output, part)
    assert planned.config is not None
    assert vocabulary is not None
    writer = gguf.GGUFWriter(path=None, arch="llama")
    for tensor in planned.tensors:
        # The type goes in as a number: gguf-py lags behind the newest types, and only packs it.
        kind = tensor.types[i_output].type.ggml_type
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes(i_output), kind)
    writer.add_type(gguf.GGUFType.MODEL)
    _metadata(checkpoint, writer).set_gguf_meta_model(writer)
    planned.config.write_keys(writer)
    vocabulary.write_keys(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(planned.file_types[i_output].ftype)
    try:
        writer.write_header_to_file(path=part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    return pipeline.padded(part.stat().st_size)


def _metadata(checkpoint: Checkpoint, writer: gguf.GGUFWriter) -> gguf.Metadata:
    """Return what ``general.*`` says of the model: from its card, config and folder name, as llama.cpp's converter."""
    counts = writer.get_total_parameter_count()
    folder = checkpoint.folder.resolve()
    try:
        metadata = gguf.Metadata.load(None, folder, None, counts[0])
        if folder.name != checkpoint.name:  # the hub's cache calls folders after revisions
            card, config = gguf.Metadata.load_model_card(folder), gguf.Metadata.load_hf_parameters(folder)
            named = folder.with_name(checkpoint.name)
            renamed = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, config, named, counts[0])
            metadata = dataclasses.replace(
                metadata,
                **{field: value for field, value in vars(renamed).items() if not field.startswith("sampling_")},
            )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.folder / 'README.md'}: its front matter cannot be read: {error}") from error
    metadata.name = metadata.name or checkpoint.name
    if metadata.size_label is None:
        metadata.size_label = gguf.size_label(*counts)
    return metadata


def _report(planned: Plan, i_output: int, path: Path) -> OutputReport:
    return OutputReport(
        path=path,
        qtype=planned.file_types[i_output].name,
        n_bytes=path.stat().st_size,
        bits_per_weight=planned.bits_per_weight(i_output),
        fallbacks={
            name: f"{choice.type.name} instead of {choice.instead_of.name}"
            for name, choice in planned.fallbacks(i_output).items()
            if choice.instead_of
        },
    )
