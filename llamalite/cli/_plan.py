"""``llamalite convert --dry-run``: what would be written, and what it would need to run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from llamalite.cli import _text
from llamalite.converters import ConversionPlan, QuantizeParams, preview
from llamalite.converters.mix import Choice
from llamalite.errors import GGUFError
from llamalite.gguf_check import Header
from llamalite.store.inspection import Inspection

MOST_CONTEXT = 32768  # tokens: what needs more is told by `llamalite inspect`


def show(
    ctx: click.Context,
    source: Path,
    qtype: str | Sequence[str],
    params: QuantizeParams,
    metadata: Path | None,
    split_max_bytes: int | None,
) -> None:
    """Print the plan for `source`, tensor by tensor, and a summary of each file; with -v every fallback."""
    plan, headers = preview(source, qtype, params=params, metadata=metadata, split_max_bytes=split_max_bytes)
    names = [one.name for one in plan.file_types]
    width = max(len(tensor.name) for tensor in plan.tensors)
    for tensor in plan.tensors:
        shape = " x ".join(map(str, tensor.shape))
        sizes = "  ".join(
            f"{choice.type.name:8} {_text.size(tensor.n_bytes(i)):>10}" for i, choice in enumerate(tensor.types)
        )
        click.echo(f"{tensor.name:{width}}  {shape:>15}  {tensor.stored.name} -> {sizes}")
    click.echo(f"{plan.n_params:,} weights in {len(plan.tensors)} tensors, {_text.size(plan.source_bytes)} to read")
    for i, (name, files) in enumerate(zip(names, headers, strict=True)):
        _summary(plan, i, name, files, every_fallback=ctx.obj["verbose"] > 0)
    total = sum(one.n_bytes_file for files in headers for one in files)
    click.echo(f"It takes {_text.size(total)} on disk. This was a dry run: nothing was written.")


def _summary(plan: ConversionPlan, i_output: int, name: str, files: Sequence[Header], *, every_fallback: bool) -> None:
    n_bytes = sum(one.n_bytes_file for one in files)
    shards = f" in {len(files)} files" if len(files) > 1 else ""
    counts = Counter(tensor.types[i_output].type.name for tensor in plan.tensors)
    kinds = ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
    click.echo(f"{name}: {_text.size(n_bytes)}{shards}, {plan.bits_per_weight(i_output):.2f} bits per weight ({kinds})")
    _fallbacks(plan.fallbacks(i_output), every=every_fallback)
    # Of a split model the first header with the others behind it, as it is read from files that are there.
    whole = Inspection(dataclasses.replace(files[0], rest=tuple(files[1:])))
    try:
        needs = [need for need in whole.needs() if need.n_ctx <= MOST_CONTEXT]
    except GGUFError:
        return  # not a LLaMA model: a GGUF source of another family, whose memory is not known
    if needs:
        memory = ", ".join(f"{_text.size(need.total_bytes)} with {need.n_ctx:,}" for need in needs)
        click.echo(f"  memory to run it: {memory} tokens of context")


def _fallbacks(found: Mapping[str, Choice], *, every: bool) -> None:
    """Print which tensors get another type than the rules gave them, and why: a line for each kind, or each tensor."""
    kinds: dict[Choice, list[str]] = {}
    for tensor, choice in found.items():
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
