"""From a checkpoint to finished files: preflight, headers, the one pass over the weights, and a rename at the end.

OUT is written as ``OUT.part`` and renamed once it is complete and on disk, so OUT is either absent or complete. While
the weights are converted, the file's tokenizer is compared with the original one (`vocabulary.probe`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llamalite import gguf_check, hardware
from llamalite.converters import header, output, pipeline, preflight
from llamalite.converters.checkpoints import Checkpoint, open_checkpoint
from llamalite.converters.importance import Importance
from llamalite.converters.plan import ConversionPlan, QuantizeParams, make_plan
from llamalite.converters.provenance import SourceNotes
from llamalite.converters.vocabulary import probe, read_vocabulary
from llamalite.converters.warning_log import collect_warnings
from llamalite.errors import LlamaliteError
from llamalite.quant_types import FileType, file_type

_DEFAULT_PARAMS = QuantizeParams()


@dataclass(frozen=True)
class OutputReport:
    """A finished output; for a split model, `path` is its first shard and `n_bytes` the size of all shards.

    `bits_per_weight` counts tensors only; `bits_without_fallbacks` is the figure if all rows filled the blocks of their
    types. `fallbacks` maps each tensor whose rows do not fill them to a text such as ``"Q5_0 instead of Q4_K"``.
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
    """What a conversion did; `path`, `n_bytes` and `bits_per_weight` are those of its first output.

    `tokens` compares the file's tokenizer with the original one; None for a GGUF source, whose vocabulary is copied
    unchanged. `warnings` are the messages that were logged at level WARNING.
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
    params: QuantizeParams = _DEFAULT_PARAMS,
    metadata: str | os.PathLike[str] | None = None,
    split_max_bytes: int | None = None,
) -> tuple[ConversionPlan, list[list[gguf_check.Header]]]:
    """Return the plan and, for each type, the headers of the files that `convert` would write."""
    file_types = _file_types(qtype)
    with open_checkpoint(Path(source)) as checkpoint, tempfile.TemporaryDirectory() as scratch:
        plan = make_plan(checkpoint, file_types, params)
        preflight.warn_of_overrides_without_effect(plan, params)
        vocabulary = None
        if checkpoint.carried is None:
            vocabulary = read_vocabulary(checkpoint.tokenizer_folder, checkpoint.config)
        keys = header.keys_of(checkpoint, plan, vocabulary, Path(metadata) if metadata else None)
        headers = []
        for i, path in enumerate(output_paths(checkpoint.name, Path(scratch), file_types, is_folder=True)):
            layout = output.lay_out(plan, i, path, split_max_bytes)
            with output.part_files(layout) as files:
                files.write(keys, params.importance)  # sparse files of full length, which take no room on the disk
                headers.append([gguf_check.read_header(part) for part in files.parts])
        return plan, headers


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    qtype: str | Sequence[str] = "Q4_K_M",
    force: bool = False,
    n_threads: int | None = None,
    params: QuantizeParams = _DEFAULT_PARAMS,
    metadata: str | os.PathLike[str] | None = None,
    split_max_bytes: int | None = None,
    allow_token_mismatch: bool = False,
    progress: pipeline.Progress | None = None,
) -> ConversionReport:
    """Convert the checkpoint at `source` to the GGUF file `out`, or to one file per type in the folder `out`.

    `source` is a folder in Hugging Face's or Meta's format, or a GGUF file (the first of a split model). Several types
    (``qtype=["Q4_K_M", "Q8_0"]``) are made in one pass over the weights, as ``NAME-TYPE.gguf`` in the folder `out`,
    which is created if it does not exist. An existing file is replaced only with `force`. A file in the models folder
    gets a note of its source, ``FILE.source``, beside it (`llamalite.files.source_note`). `params` holds everything
    else that decides the tensors' types, `metadata` is a JSON file of ``general.*`` keys, and with `split_max_bytes`
    the tensors go into shards of at most that size, which llama.cpp loads as one model. `progress` is called in this
    thread with the number of source bytes done and the total; an exception from it cancels the conversion, which then
    leaves nothing behind.

    While the weights are converted, a few thousand texts go through the original tokenizer and the file's: a difference
    raises `VocabularyError`; with `allow_token_mismatch` it is recorded in the file instead. Raises `CheckpointError`,
    `VocabularyError` and `QuantizationError` for input that cannot be converted, if possible before anything is
    written; ``FileExistsError`` if `out` exists, ``ValueError`` for an unknown type.
    """
    started = time.perf_counter()
    file_types = _file_types(qtype)
    n_threads = n_threads or hardware.hardware_threads()
    preflight.check_address_space(n_threads)
    is_folder = not isinstance(qtype, str)
    is_plain = params == _DEFAULT_PARAMS and not (metadata or split_max_bytes or allow_token_mismatch)
    notes = SourceNotes(Path(source), Path(out) if is_folder else Path(out).parent, plain=is_plain)
    with contextlib.ExitStack() as stack:
        warnings = stack.enter_context(collect_warnings())
        checkpoint = stack.enter_context(open_checkpoint(Path(source)))
        if is_folder:
            stack.enter_context(_folder(Path(out)))
        paths = output_paths(checkpoint.name, Path(out), file_types, is_folder=is_folder)
        ready = preflight.prepare(checkpoint, file_types, params, paths, split_max_bytes, force=force)
        keys = header.keys_of(checkpoint, ready.plan, ready.vocabulary, Path(metadata) if metadata else None)
        tokens = _write(
            checkpoint, ready, keys, params.importance, notes,
            n_threads=n_threads, allow_token_mismatch=allow_token_mismatch, progress=progress,
        )  # fmt: skip
        return ConversionReport(
            source=checkpoint.folder,
            source_bytes=ready.plan.source_bytes,
            n_params=ready.plan.n_params,
            n_tensors=len(ready.plan.tensors),
            seconds=time.perf_counter() - started,
            outputs=tuple(_report(ready.plan, i, layout) for i, layout in enumerate(ready.layouts)),
            tokens=tokens,
            warnings=tuple(warnings),
        )


def _write(
    checkpoint: Checkpoint,
    ready: preflight.Preparation,
    keys: header.Keys,
    importance: Importance | None,
    notes: SourceNotes,
    *,
    n_threads: int,
    allow_token_mismatch: bool,
    progress: pipeline.Progress | None,
) -> probe.ProbeReport | None:
    """Write all files, compare the tokens meanwhile, and rename the files when both have succeeded."""
    tokens = None
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(output.part_files(layout)) for layout in ready.layouts]
        if ready.vocabulary is not None and allow_token_mismatch:
            outputs[0].write(keys, importance)
            tokens = _compare_tokens(checkpoint, stack.enter_context(_vocabulary_file(outputs[0], keys)))
            keys = [*keys, *_mismatch_key(tokens)]
        places = [files.write(keys, importance) for files in outputs]
        to_compare = None
        if ready.vocabulary is not None and tokens is None:
            to_compare = stack.enter_context(_vocabulary_file(outputs[0], keys))
        with _comparing_tokens(checkpoint, to_compare) as comparison:
            watch = functools.partial(_watch, comparison, progress)
            try:
                pipeline.run(ready.plan, places, n_threads=n_threads, progress=watch)
            except LlamaliteError:
                checkpoint.check_unchanged()  # another program may still be writing a file that ends early or holds NaN
                raise
            if comparison is not None:
                tokens = comparison.result()
                tokens.raise_for_differences()
        checkpoint.check_unchanged()
        for files in outputs:
            files.finish()
        output.remove_old(ready.replaced)
        notes.write({layout.paths[0]: layout.file_type.name for layout in ready.layouts}, ready.replaced)
    return tokens


def output_paths(name: str, out: Path, file_types: Sequence[FileType], *, is_folder: bool) -> list[Path]:
    """Return where each file goes: `out` itself, or ``NAME-TYPE.gguf`` in the folder `out`."""
    if not is_folder:
        return [out]
    return [out / f"{name}-{kind.name}.gguf" for kind in file_types]


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Create the folder `path` if it does not exist, and remove it again if the conversion fails."""
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in created:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def _file_types(qtype: str | Sequence[str]) -> list[FileType]:
    names = [qtype] if isinstance(qtype, str) else list(qtype)
    file_types = [file_type(name) for name in names]
    if not file_types or len({kind.name for kind in file_types}) != len(names):
        raise ValueError(f"expected one or more different types, found {', '.join(names) or 'none'}")
    return file_types


def _compare_tokens(checkpoint: Checkpoint, part: Path, stop: threading.Event | None = None) -> probe.ProbeReport:
    return probe.compare(checkpoint.tokenizer_folder, checkpoint.config, part, stop=stop)


@contextlib.contextmanager
def _vocabulary_file(files: output.PartFiles, keys: header.Keys) -> Iterator[Path]:
    """Yield a file from which llama.cpp can load the vocabulary: the output, or a scratch file if the output is split.

    llama.cpp refuses a shard that does not have its final name.
    """
    if len(files.parts) == 1:
        yield files.parts[0]
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        header.write(path, keys, 0, [], (), 0)
        yield path


@contextlib.contextmanager
def _comparing_tokens(checkpoint: Checkpoint, part: Path | None) -> Iterator[Future[probe.ProbeReport] | None]:
    """Compare tokens in a thread while the block runs, and yield the future of its report; None without `part`."""
    if part is None:
        yield None
        return
    stop = threading.Event()
    with ThreadPoolExecutor(1, "probe") as pool:
        report: Future[probe.ProbeReport] = pool.submit(_compare_tokens, checkpoint, part, stop)
        try:
            yield report
        finally:
            stop.set()  # a caller that cancels does not wait for the remaining texts


def _watch(
    comparison: Future[probe.ProbeReport] | None, progress: pipeline.Progress | None, done: int, total: int
) -> None:
    """Stop the conversion as soon as tokens are known to differ; otherwise report the progress."""
    if comparison is not None and comparison.done():
        comparison.result().raise_for_differences()
    if progress:
        progress(done, total)


def _mismatch_key(tokens: probe.ProbeReport) -> header.Keys:
    if not tokens.differences:
        return []
    text = f"{len(tokens.differences)} of {tokens.n_texts} probe texts differ, the shortest: {tokens.differences[0]}"
    return [(b"llamalite.token_mismatch", header.string(text))]


def _report(plan: ConversionPlan, i_output: int, layout: output.Layout) -> OutputReport:
    fallbacks = plan.fallbacks(i_output)
    return OutputReport(
        path=layout.paths[0],
        qtype=plan.file_types[i_output].name,
        n_bytes=sum(path.stat().st_size for path in layout.paths),
        n_files=len(layout.paths),
        bits_per_weight=plan.bits_per_weight(i_output),
        bits_without_fallbacks=plan.bits_without_fallbacks(i_output),
        fallbacks={
            name: f"{choice.type.name} instead of {choice.instead_of.name}"
            for name, choice in fallbacks.items()
            if choice.instead_of
        },
    )
