"""Everything that could stop a conversion, checked before a byte is written: memory, weights, tokenizer, files, disk.

    ready = prepare(checkpoint, file_types, params, [Path("tiny.Q4_K_M.gguf")], None, force=False)
    ready.plan, ready.vocabulary, ready.layouts

All problems are reported at once, so that nobody fixes one only to meet the next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamalite import hardware
from llamalite.converters import mix, output
from llamalite.converters.checkpoints import Checkpoint
from llamalite.converters.plan import ConversionPlan, QuantizeParams, make_plan
from llamalite.converters.vocabulary import Vocabulary, read_vocabulary
from llamalite.converters.warning_log import warn
from llamalite.errors import CheckpointError, LlamaliteError, OutOfMemoryError, TemplateError
from llamalite.quant_types import FileType
from llamalite.templates import ChatTemplate


@dataclass(frozen=True)
class Preparation:
    """What a conversion starts from.

    `vocabulary` is None for a GGUF source. `replaced` are the files of an older split model of the same name, with
    another number of files, to be removed once the new ones are complete.
    """

    plan: ConversionPlan
    vocabulary: Vocabulary | None
    layouts: list[output.Layout]
    replaced: list[Path]


def check_address_space(n_threads: int) -> None:
    """Raise `OutOfMemoryError` where RLIMIT_AS would fail threads or buffers halfway: sentencepiece would abort."""
    needed = (256 + 64 * n_threads) << 20  # as measured: the tokenizers' libraries, their threads, the workers' buffers
    if (left := hardware.address_space_left()) < needed:
        raise OutOfMemoryError(
            f"a conversion with {n_threads} threads takes {needed >> 20} MiB of address space, and the limit on it "
            f"(ulimit -v) leaves {left >> 20}: raise it, or pass fewer threads"
        )


def prepare(
    checkpoint: Checkpoint,
    file_types: Sequence[FileType],
    params: QuantizeParams,
    paths: Sequence[Path],
    split_max_bytes: int | None,
    *,
    force: bool,
) -> Preparation:
    """Return what the conversion to `paths` needs, or raise one error that lists all problems."""
    problems: list[Exception] = []
    plan = vocabulary = None
    layouts: list[output.Layout] = []
    replaced: list[Path] = []
    try:
        plan = make_plan(checkpoint, file_types, params)
        layouts = [output.lay_out(plan, i, path, split_max_bytes) for i, path in enumerate(paths)]
        warn_of_overrides_without_effect(plan, params)
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
    for files in (*outputs, replaced):
        problem = _write_problem(files, checkpoint, force=force)
        if problem is not None:
            problems.append(problem)
    if plan is None or problems:
        messages = list(dict.fromkeys(map(str, problems)))
        if len(messages) == 1:
            raise problems[0]
        kind = type(problems[0]) if len({type(problem) for problem in problems}) == 1 else CheckpointError
        raise kind("; and ".join(messages)) from problems[0]
    return Preparation(plan, vocabulary, layouts, replaced)


def warn_of_overrides_without_effect(plan: ConversionPlan, params: QuantizeParams) -> None:
    """Warn about each ``--tensor-type`` that changes nothing: a mistyped name. llama-quantize says nothing about it."""
    if not params.overrides:
        return
    if not any(file_type.tensor_type.is_quantized for file_type in plan.file_types):
        warn("--tensor-type changes nothing in %s", " or ".join(file_type.name for file_type in plan.file_types))
        return
    shapes = [mix.TensorShape(tensor.name, tensor.shape, tensor.stored) for tensor in plan.tensors]
    if messages := mix.overrides_without_effect(shapes, params.overrides):
        warn("--tensor-type: %s", "; ".join(messages))


def _warn_of_template(vocabulary: Vocabulary) -> None:
    if vocabulary.chat_template is None:
        return
    try:
        ChatTemplate(vocabulary.chat_template)
    except TemplateError as error:
        warn("the chat template is carried over, but will not work: %s", error)


def _write_problem(paths: Sequence[Path], checkpoint: Checkpoint, *, force: bool) -> OSError | None:
    """Return why a file of `paths` cannot or must not be written, the first problem only; None if all can be."""
    for path in paths:
        if path.is_dir():
            return IsADirectoryError(f"{path} is a folder: name a file (convert -o)")
        if path.exists() and not path.is_file():  # the rename would put a file in the device's place
            return FileExistsError(f"{path} is a device, not a file: pass the name of a file with -o")
        for written in (path, output.part_path(path)):
            if _is_of_source(written, checkpoint):
                return FileExistsError(
                    f"{written} belongs to the source, which would be lost: pass another name with -o"
                )
        if path.exists() and not force:
            return FileExistsError(f"{path} exists: pass --force to replace it, or another name with -o")
        if not path.parent.is_dir():
            return FileNotFoundError(f"the folder {path.parent} does not exist: make it first, or pass another -o")
        if not os.access(path.parent, os.W_OK):
            return PermissionError(f"the folder {path.parent} is not writable: write elsewhere (convert -o)")
    return None


def _is_of_source(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether writing `path` would destroy a file of `checkpoint`: any file in its folder except GGUF files."""
    if not path.exists():
        return False
    if any(path.samefile(file.path) for file in checkpoint.files):
        return True
    in_its_folder = checkpoint.folder.is_dir() and path.parent.samefile(checkpoint.folder)
    return in_its_folder and path.suffix not in (".gguf", ".part")


def _check_disk(folder: Path, needed: int) -> None:
    if not folder.is_dir():
        return  # `_write_problem` reports it
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e6:,.1f} MB free, but the conversion needs {needed / 1e6:,.1f} MB: make room, "
            "or write elsewhere (convert -o)"
        )
