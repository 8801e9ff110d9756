"""``llamalite convert --dry-run``: prints what would be written, and the memory needed to run it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from llamalite.cli import _text
from llamalite.cli._table import print_table
from llamalite.converters import ConversionPlan, QuantizeParams, preview
from llamalite.converters.mix import Choice
from llamalite.errors import GGUFError
from llamalite.gguf_check import Header
from llamalite.store.inspection import Inspection

MAX_CONTEXT = 32768  # tokens; `llamalite inspect` also shows what longer contexts need


def print_plan(
    ctx: click.Context,
    source: Path,
    qtype: str | Sequence[str],
    params: QuantizeParams,
    metadata: Path | None,
    split_max_bytes: int | None,
) -> None:
    """Print the plan for `source`: each tensor, and a summary of each file; with -v, every fallback."""
    plan, headers = preview(source, qtype, params=params, metadata=metadata, split_max_bytes=split_max_bytes)
    rows = []
    for tensor in plan.tensors:
        types = [(choice.type.name, _text.size(tensor.n_bytes(i))) for i, choice in enumerate(tensor.types)]
        shape = " x ".join(map(str, tensor.shape))
        rows.append((tensor.name, shape, f"{tensor.stored.name} ->", *(cell for pair in types for cell in pair)))
    type_columns = range(3, 3 + 2 * len(plan.file_types), 2)
    print_table(None, rows, left=(0, 2, *type_columns), keep_end=True)
    click.echo(f"{plan.n_params:,} weights in {len(plan.tensors)} tensors, {_text.size(plan.source_bytes)} to read")
    for i, (kind, files) in enumerate(zip(plan.file_types, headers, strict=True)):
        _print_summary(plan, i, kind.name, files, every_fallback=ctx.obj["verbose"] > 0)
    total = sum(header.n_bytes_file for files in headers for header in files)
    click.echo(f"That is {_text.size(total)} on disk. This was a dry run: nothing was written.")


def _print_summary(
    plan: ConversionPlan, i_output: int, name: str, files: Sequence[Header], *, every_fallback: bool
) -> None:
    n_bytes = sum(header.n_bytes_file for header in files)
    shards = f" in {len(files)} files" if len(files) > 1 else ""
    counts = Counter(tensor.types[i_output].type.name for tensor in plan.tensors)
    kinds = ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
    click.echo(f"{name}: {_text.size(n_bytes)}{shards}, {plan.bits_per_weight(i_output):.2f} bits per weight ({kinds})")
    _print_fallbacks(plan.fallbacks(i_output), every=every_fallback)
    # A split model is its first header with the others as `rest`, as when it is read from files.
    inspection = Inspection(dataclasses.replace(files[0], rest=tuple(files[1:])))
    try:
        memory = [needed for needed in inspection.memory_needed() if needed.n_ctx <= MAX_CONTEXT]
    except GGUFError:
        return  # a GGUF source of another family, whose memory cannot be computed
    if memory:
        amounts = ", ".join(f"{_text.size(needed.total_bytes)} with {needed.n_ctx:,}" for needed in memory)
        click.echo(f"  memory to run it: {amounts} tokens of context")


def _print_fallbacks(fallbacks: Mapping[str, Choice], *, every: bool) -> None:
    """Print the tensors whose type is not the one that the rules name, and why; one line a kind, or one a tensor."""
    kinds: dict[Choice, list[str]] = {}
    for tensor, choice in fallbacks.items():
        kinds.setdefault(choice, []).append(tensor)
    for choice, tensors in kinds.items():
        assert choice.instead_of is not None
        block = f"do not fill the {choice.instead_of.block_size} weights of a block of {choice.instead_of.name}"
        if every:
            for tensor in tensors:
                click.echo(f"  {tensor}: {choice.type.name}, as its rows {block}")
        else:
            count = f"{len(tensors)} tensors, such as {tensors[0]}" if len(tensors) > 1 else tensors[0]
            click.echo(f"  {count}: {choice.type.name}, as rows {block}" + ("" if len(tensors) == 1 else " (-v: all)"))
