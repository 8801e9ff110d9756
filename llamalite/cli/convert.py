"""``llamalite convert``: a checkpoint becomes a GGUF file, or one file for each type asked for."""

from __future__ import annotations

import difflib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem
from tqdm import tqdm

from llamalite.quant_types import FILE_TYPES

if TYPE_CHECKING:
    from llamalite.converters import ConversionReport


def quant_types(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the file types `values` in upper case; an unknown one is wrong usage (exit 2)."""
    for value in values:
        if value.upper() not in FILE_TYPES:
            near = difflib.get_close_matches(value.upper(), FILE_TYPES, n=1)
            nearest = f"; near it is {near[0]}" if near else ""
            raise click.BadParameter(f"unknown type {value!r}{nearest} (--list-types lists them)", ctx, param)
    return tuple(value.upper() for value in values)


def complete_quant_types(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The types that a shell offers for what has been typed."""
    return [
        CompletionItem(one.name, help=one.about)
        for one in FILE_TYPES.values()
        if one.name.startswith(incomplete.upper())
    ]


@click.command(name="convert")
@click.argument("source", metavar="SRC", type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Where to write; a folder if several types are made. Default: NAME-TYPE.gguf in the models folder.",
)
@click.option(
    "-t",
    "--type",
    "qtypes",
    metavar="TYPE",
    multiple=True,
    default=["Q4_K_M"],
    show_default=True,
    callback=quant_types,
    shell_complete=complete_quant_types,
    help="The type of the result, repeatable: several are made in one read. See --list-types.",
)
@click.option(
    "--list-types",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    help="List the types and exit.",
    callback=lambda ctx, _param, value: _list_types(ctx) if value else None,
)
@click.option("--revision", metavar="REV", help="The branch, tag or commit of a repository of the hub. Default: main.")
@click.option("--allow-requantize", is_flag=True, help="Quantize a GGUF file again that is quantized already.")
@click.option("-f", "--force", is_flag=True, help="Replace files that stand.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Worker threads. Default: one a usable core.")
@click.pass_context  # fmt: skip
def command(
    ctx: click.Context,
    source: str,
    output: Path | None,
    qtypes: tuple[str, ...],
    revision: str | None,
    allow_requantize: bool,
    force: bool,
    threads: int | None,
) -> None:
    """Convert the LLaMA checkpoint SRC to a quantized GGUF file.

    SRC is the folder of a Hugging Face model (config.json, *.safetensors or pytorch_model*.bin, tokenizer), the folder
    of one of Meta's (params.json, consolidated.*.pth, tokenizer.model), a GGUF file, or org/name, a repository of the
    Hugging Face hub, of which only the files needed are fetched. It is read once, and the result is, byte for byte,
    what llama.cpp's converter and llama-quantize write in two steps.

    \b
    Examples:
      llamalite convert ./TinyLlama-1.1B
      llamalite convert ./TinyLlama-1.1B -t Q8_0 -o tiny.gguf
      llamalite convert ./TinyLlama-1.1B -t Q4_K_M -t Q8_0 -o converted/
      llamalite convert TinyLlama-1.1B-F16.gguf -t Q5_K_M
      llamalite convert HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from llamalite import store
    from llamalite.cli import _hub
    from llamalite.converters import Recipe, convert
    from llamalite.converters.checkpoints import model_name

    folder = _hub.checkpoint(ctx, source, revision)
    types: Any = list(qtypes) if len(qtypes) > 1 else qtypes[0]
    if output is None:
        output = store.models_folder() if len(qtypes) > 1 else store.default_output(model_name(folder), qtypes[0])
        store.models_folder().mkdir(parents=True, exist_ok=True)
    elif len(qtypes) > 1:
        output.mkdir(parents=True, exist_ok=True)
    quiet = ctx.obj["quiet"]
    with tqdm(
        unit="B", unit_scale=True, desc="converting", leave=False, disable=quiet or not sys.stderr.isatty()
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = convert(
            folder,
            output,
            qtype=types,
            force=force,
            n_threads=threads,
            recipe=Recipe(allow_requantize=allow_requantize),
            progress=show,
        )
    if not quiet:
        _print_report(report)


def _print_report(report: ConversionReport) -> None:
    read = f"read {report.source_bytes / 1e9:.2f} GB in {report.seconds:.1f} s"
    for output in report.outputs:
        size = f"{output.n_bytes / 1e9:.2f} GB" if output.n_bytes >= 1e8 else f"{output.n_bytes / 1e6:.2f} MB"
        click.echo(f"{output.qtype}: {size}, {output.bits_per_weight:.2f} bits per weight, {read}")
        if output.fallbacks:
            name, what = next(iter(output.fallbacks.items()))
            others = f" and {len(output.fallbacks) - 1} more" if len(output.fallbacks) > 1 else ""
            click.echo(f"  rows too short for {output.qtype}: {name} is {what}{others}")
    for output in report.outputs:
        click.echo(f"{output.path}: llamalite run {shlex.quote(str(output.path))}")


def _list_types(ctx: click.Context) -> None:
    for one in FILE_TYPES.values():
        click.echo(f"{one.name:9} {one.about}")
    ctx.exit()
