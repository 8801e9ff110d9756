"""From a checkpoint to finished files: preflight, header, the one pass, proof of the tokens, and a rename at the end.

OUT is written as ``OUT.part`` and renamed when it is complete and on the disk, so that OUT is either absent or whole.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llamalite import gguf_check, hardware
from llamalite.converters import header, mix, output, pipeline
from llamalite.converters.checkpoints import Checkpoint, open_checkpoint
from llamalite.converters.notices import collected, warn
from llamalite.converters.planning import ConversionPlan, QuantizeParams, make_plan
from llamalite.converters.provenance import SourceNotes
from llamalite.converters.vocabulary import Vocabulary, probe, read_vocabulary
from llamalite.errors import CheckpointError, LlamaliteError, OutOfMemoryError, TemplateError
from llamalite.quant_types import FileType, file_type
from llamalite.templates import ChatTemplate

_AS_IT_IS = QuantizeParams()


@dataclass(frozen=True)
class OutputReport:
    """One finished file; of a split one, the first shard's `path` and the bytes of all.

    `bits_per_weight` counts tensors only; `bits_without_fallbacks` is what it would be if all rows filled the blocks of
    their types. `fallbacks` names the tensors whose rows do not, with what they became.
    """

    path: Path
    qtype: str
    n_bytes: int
    n_files: int
    bits_per_weight: float
    bits_without_fallbacks: float
    fallbacks: Mapping[str, str]


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did; `path`, `n_bytes` and `bits_per_weight` are those of its first file.

    `tokens` is the proof that the file tokenizes as the original does; None for a GGUF source, whose vocabulary is
    carried over as it is. `warnings` are what went to the log at level WARNING.
    """

    source: Path
    source_bytes: int
    n_params: int
    n_tensors: int
    seconds: float
    outputs: tuple[OutputReport, ...]
    tokens: probe.ProbeReport | None
    warnings: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.outputs[0].path

    @property
    def n_bytes(self) -> int:
        return self.outputs[0].n_bytes

    @property
    def bits_per_weight(self) -> float:
        return self.outputs[0].bits_per_weight


def preview(
    source: str | os.PathLike[str],
    qtype: str | Sequence[str] = "Q4_K_M",
    *,
    params: QuantizeParams = _AS_IT_IS,
    metadata: str | os.PathLike[str] | None = None,
    split_max_bytes: int | None = None,
) -> tuple[ConversionPlan, list[list[gguf_check.Header]]]:
    """Return the plan and, for each type, the headers of the files that `convert` would write."""
    file_types = _file_types(qtype)
    with open_checkpoint(Path(source)) as checkpoint, tempfile.TemporaryDirectory() as scratch:
        planned = make_plan(checkpoint, file_types, params)
        _warn_of_idle_overrides(planned, params)
        vocabulary = None
        if checkpoint.carried is None:
            vocabulary = read_vocabulary(checkpoint.tokenizer_folder, checkpoint.config)
        keys = header.keys_of(checkpoint, planned, vocabulary, Path(metadata) if metadata else None)
        headers = []
        for i, path in enumerate(output_paths(checkpoint.name, Path(scratch), file_types, is_folder=True)):
            layout = output.lay_out(planned, i, path, split_max_bytes)
            with output.part_files(layout) as files:
                files.write(keys, params.importance)  # files of full length that take no room: all zeros, never written
                headers.append([gguf_check.read_header(part) for part in files.parts])
        return planned, headers


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    qtype: str | Sequence[str] = "Q4_K_M",
    force: bool = False,
    n_threads: int | None = None,
    params: QuantizeParams = _AS_IT_IS,
    metadata: str | os.PathLike[str] | None = None,
    split_max_bytes: int | None = None,
    allow_token_mismatch: bool = False,
    progress: pipeline.Progress | None = None,
) -> ConversionReport:
    """Convert the checkpoint at `source` to the GGUF file `out`, or to one file a type in the folder `out`.

    `source` is a Hugging Face folder, one of Meta's, or a GGUF file (the first of a split model). Several types
    (``qtype=["Q4_K_M", "Q8_0"]``) are made in one read of the weights, as ``NAME-TYPE.gguf`` in the folder `out`, which
    is made where there is none. An existing file is replaced only with `force`. Beside a file in the models folder
    ``FILE.source`` says what it was made of (`llamalite.files.source_note`). `params` say what else decides the
    tensors' types, `metadata` is a JSON file of ``general.*`` keys, and with `split_max_bytes` the tensors go into
    shards of that size, which llama.cpp loads as one model. `progress` is called in this thread with source bytes done
    and in all; an exception from it cancels, and leaves nothing behind.

    While the weights are converted, a few thousand texts go through the original tokenizer and the file's: a
    difference is a `VocabularyError`, unless `allow_token_mismatch`, which is then recorded in the file. Raises
    `CheckpointError`, `VocabularyError` and `QuantizationError` for what cannot be converted, before anything is
    written where that can be known, ``FileExistsError`` for an `out` that stands, ``ValueError`` for an unknown type.
    """
    started = time.perf_counter()
    file_types = _file_types(qtype)
    n_threads = n_threads or hardware.hardware_threads()
    _check_address_space(n_threads)
    is_folder = not isinstance(qtype, str)
    is_plain = params == _AS_IT_IS and not (metadata or split_max_bytes or allow_token_mismatch)
    notes = SourceNotes(Path(source), Path(out) if is_folder else Path(out).parent, plain=is_plain)
    with contextlib.ExitStack() as stack:
        warnings = stack.enter_context(collected())
        checkpoint = stack.enter_context(open_checkpoint(Path(source)))
        if is_folder:
            stack.enter_context(_folder(Path(out)))
        paths = output_paths(checkpoint.name, Path(out), file_types, is_folder=is_folder)
        planned, vocabulary, layouts, replaced = _preflight(
            checkpoint, file_types, params, paths, split_max_bytes, force=force
        )
        keys = header.keys_of(checkpoint, planned, vocabulary, Path(metadata) if metadata else None)
        held = [stack.enter_context(output.part_files(layout)) for layout in layouts]
        tokens = None
        if vocabulary is not None and allow_token_mismatch:
            held[0].write(keys, params.importance)
            tokens = _prove(checkpoint, stack.enter_context(_vocabulary_file(held[0], keys)))
            keys = [*keys, *_mismatch_recorded(tokens)]
        places = [one.write(keys, params.importance) for one in held]
        to_prove = None
        if vocabulary is not None and tokens is None:
            to_prove = stack.enter_context(_vocabulary_file(held[0], keys))
        with _proof(checkpoint, to_prove) as proof:
            watch = functools.partial(_watch, proof, progress)
            try:
                pipeline.run(planned, places, n_threads=n_threads, progress=watch)
            except LlamaliteError:
                checkpoint.check_unchanged()  # a file that ends early, or NaN, may be one that is still written
                raise
            if proof is not None:
                tokens = proof.result()
                tokens.raise_for_differences()
        checkpoint.check_unchanged()
        for one in held:
            one.finish()
        output.remove_old(replaced)
        notes.write({layout.paths[0]: type_.name for layout, type_ in zip(layouts, file_types, strict=True)}, replaced)
        return ConversionReport(
            source=checkpoint.folder,
            source_bytes=planned.source_bytes,
            n_params=planned.n_params,
            n_tensors=len(planned.tensors),
            seconds=time.perf_counter() - started,
            outputs=tuple(_report(planned, i, layout) for i, layout in enumerate(layouts)),
            tokens=tokens,
            warnings=tuple(warnings),
        )


def output_paths(name: str, out: Path, file_types: Sequence[FileType], *, is_folder: bool) -> list[Path]:
    """Return where each file goes: `out` itself, or ``NAME-TYPE.gguf`` in the folder `out`."""
    if not is_folder:
        return [out]
    return [out / f"{name}-{one.name}.gguf" for one in file_types]


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the folder `path` where there is none, and remove it again if nothing comes of it."""
    made = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for one in made:
            with contextlib.suppress(OSError):  # something lies in it
                one.rmdir()
        raise


def _file_types(qtype: str | Sequence[str]) -> list[FileType]:
    names = [qtype] if isinstance(qtype, str) else list(qtype)
    found = [file_type(name) for name in names]
    if not found or len({one.name for one in found}) != len(names):
        raise ValueError(f"expected one or several different types, found {', '.join(names) or 'none'}")
    return found


def _check_address_space(n_threads: int) -> None:
    """Raise where RLIMIT_AS would stop threads or buffers half-way: sentencepiece ends the process on that."""
    needed = (256 + 64 * n_threads) << 20  # as measured: the tokenizers' libraries, their threads, the workers' buffers
    if (left := hardware.address_space_left()) < needed:
        raise OutOfMemoryError(
            f"a conversion with {n_threads} threads takes {needed >> 20} MiB of address space, and the limit on it "
            f"(ulimit -v) leaves {left >> 20}: raise it, or pass fewer threads"
        )


def _preflight(
    checkpoint: Checkpoint,
    file_types: Sequence[FileType],
    params: QuantizeParams,
    paths: Sequence[Path],
    split_max_bytes: int | None,
    *,
    force: bool,
) -> tuple[ConversionPlan, Vocabulary | None, list[output.Layout], list[Path]]:
    """Return what the conversion needs, or raise with all that speaks against it: weights, vocabulary, files, disk.

    The last are the files of a split model of that name that the new one replaces.
    """
    problems: list[Exception] = []
    planned = vocabulary = None
    layouts: list[output.Layout] = []
    replaced: list[Path] = []
    try:
        planned = make_plan(checkpoint, file_types, params)
        layouts = [output.lay_out(planned, i, path, split_max_bytes) for i, path in enumerate(paths)]
        _warn_of_idle_overrides(planned, params)
    except LlamaliteError as error:
        problems.append(error)
    try:
        if checkpoint.carried is None:
            vocabulary = read_vocabulary(checkpoint.tokenizer_folder, checkpoint.config)
            _warn_of_template(vocabulary)
    except (LlamaliteError, FileNotFoundError) as error:
        problems.append(error)
    outputs = [list(layout.paths) for layout in layouts] or [[path] for path in paths]
    try:
        if split_max_bytes is not None:
            replaced = [old for path, new in zip(paths, outputs, strict=True) for old in output.old_shards(path, new)]
        _check_disk(paths[0].parent, sum(layout.n_data_bytes for layout in layouts))
    except OSError as error:
        problems.append(error)
    problems += [fault for one in (*outputs, replaced) if (fault := _fault_of(one, checkpoint, force=force))]
    if planned is None or problems:
        told = list(dict.fromkeys(map(str, problems)))
        if len(told) == 1:
            raise problems[0]
        kind = type(problems[0]) if len({type(problem) for problem in problems}) == 1 else CheckpointError
        raise kind("; and ".join(told)) from problems[0]
    return planned, vocabulary, layouts, replaced


def _warn_of_template(vocabulary: Vocabulary) -> None:
    if vocabulary.chat_template is None:
        return
    try:
        ChatTemplate(vocabulary.chat_template)
    except TemplateError as error:
        warn("the chat template is carried over, but will not work: %s", error)


def _warn_of_idle_overrides(planned: ConversionPlan, params: QuantizeParams) -> None:
    """Say which ``--tensor-type`` changes nothing, which llama-quantize does not: a mistyped name would go unseen."""
    if not params.overrides:
        return
    if not any(one.tensor_type.is_quantized for one in planned.file_types):
        warn("--tensor-type changes nothing in %s", " or ".join(one.name for one in planned.file_types))
        return
    shapes = [mix.TensorShape(one.name, one.shape, one.stored) for one in planned.tensors]
    if told := mix.idle_overrides(shapes, params.overrides):
        warn("--tensor-type: %s", "; ".join(told))


def _fault_of(paths: Sequence[Path], checkpoint: Checkpoint, *, force: bool) -> OSError | None:
    """Return why the first of `paths` that cannot be written cannot, or that it is the source."""
    for path in paths:
        if path.is_dir():
            return IsADirectoryError(f"{path} is a folder: name a file (convert -o)")
        if path.exists() and not path.is_file():  # the rename would put a file in the device's place
            return FileExistsError(f"{path} is a device, not a file: pass the name of a file with -o")
        for mine in (path, output.part_path(path)):
            if _is_of_source(mine, checkpoint):
                return FileExistsError(f"{mine} belongs to the source, which would be lost: pass another name with -o")
        if path.exists() and not force:
            return FileExistsError(f"{path} exists: pass --force to replace it, or another name with -o")
        if not path.parent.is_dir():
            return FileNotFoundError(f"the folder {path.parent} does not exist: make it first, or pass another -o")
        if not os.access(path.parent, os.W_OK):
            return PermissionError(f"the folder {path.parent} is not writable: write elsewhere (convert -o)")
    return None


def _check_disk(folder: Path, needed: int) -> None:
    if not folder.is_dir():
        return  # which is told of its files
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e6:,.1f} MB free, needed are {needed / 1e6:,.1f} MB: make room, or write elsewhere "
            "(convert -o)"
        )


def _is_of_source(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether writing `path` would destroy a file of `checkpoint`; GGUF files in its folder are not of it."""
    if not path.exists():
        return False
    if any(path.samefile(one.path) for one in checkpoint.files):
        return True
    beside = checkpoint.folder.is_dir() and path.parent.samefile(checkpoint.folder)
    return beside and path.suffix not in (".gguf", ".part")


def _prove(checkpoint: Checkpoint, part: Path, stop: threading.Event | None = None) -> probe.ProbeReport:
    return probe.compare(checkpoint.tokenizer_folder, checkpoint.config, part, stop=stop)


@contextlib.contextmanager
def _vocabulary_file(files: output.PartFiles, keys: header.Keys) -> Iterator[Path]:
    """Yield a file with the vocabulary that llama.cpp loads; it takes one of several only by its final name."""
    if len(files.parts) == 1:
        yield files.parts[0]
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        header.write(path, keys, 0, [], (), 0)
        yield path


@contextlib.contextmanager
def _proof(checkpoint: Checkpoint, part: Path | None) -> Iterator[Future[probe.ProbeReport] | None]:
    """Compare tokens in a thread of its own while the block runs; yields the report's future; None without `part`."""
    if part is None:
        yield None
        return
    stop = threading.Event()
    with ThreadPoolExecutor(1, "probe") as pool:
        found: Future[probe.ProbeReport] = pool.submit(_prove, checkpoint, part, stop)
        try:
            yield found
        finally:
            stop.set()  # whoever cancels does not wait for the rest of the texts


def _watch(proof: Future[probe.ProbeReport] | None, progress: pipeline.Progress | None, done: int, total: int) -> None:
    """Stop the weights as soon as the tokens are found to differ, and hand the progress on."""
    if proof is not None and proof.done():
        proof.result().raise_for_differences()
    if progress:
        progress(done, total)


def _mismatch_recorded(tokens: probe.ProbeReport) -> header.Keys:
    if not tokens.differences:
        return []
    text = f"{len(tokens.differences)} of {tokens.n_texts} probe texts differ, the shortest: {tokens.differences[0]}"
    return [(b"llamalite.token_mismatch", header.string(text))]


def _report(planned: ConversionPlan, i_output: int, layout: output.Layout) -> OutputReport:
    fallbacks = planned.fallbacks(i_output)
    return OutputReport(
        path=layout.paths[0],
        qtype=planned.file_types[i_output].name,
        n_bytes=sum(path.stat().st_size for path in layout.paths),
        n_files=len(layout.paths),
        bits_per_weight=planned.bits_per_weight(i_output),
        bits_without_fallbacks=planned.bits_without_fallbacks(i_output),
        fallbacks={
            name: f"{choice.type.name} instead of {choice.instead_of.name}"
            for name, choice in fallbacks.items()
            if choice.instead_of
        },
    )
