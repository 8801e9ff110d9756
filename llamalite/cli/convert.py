"""``llamalite convert``: converts a checkpoint to a GGUF file, or to one for each of several types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from llamalite.cli import _text
from llamalite.cli._progress import progress_bar
from llamalite.quant_types import FILE_TYPES, NO_WEIGHTS, TENSOR_TYPES, TensorType, nearest_type, type_name

if TYPE_CHECKING:
    from llamalite.converters import ConversionReport


def quant_types(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the file types `values`; an unknown or repeated one is wrong usage (exit code 2)."""
    for value in values:
        if type_name(value) not in FILE_TYPES:
            near = nearest_type(value)
            nearest = f"; did you mean {near}?" if near else ""
            raise click.BadParameter(f"unknown type {value!r}{nearest} (--list-types lists them)", ctx, param)
    names = tuple(map(type_name, values))
    if len(set(names)) < len(names):
        raise click.BadParameter(f"a type is repeated in {', '.join(names)}", ctx, param)
    return names


def tensor_types(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, TensorType], ...]:
    """Return each ``REGEX=TYPE`` as (regular expression, type), in lower case as in llama-quantize."""
    from llamalite.converters.mix import name_pattern

    parsed = []
    known = [name for name in TENSOR_TYPES if name not in NO_WEIGHTS]
    for value in values:
        pattern, _, name = value.rpartition("=")
        if not pattern or name.upper() not in known:
            types = ", ".join(known)
            raise click.BadParameter(f"expected REGEX=TYPE, found {value!r}; tensor types are {types}", ctx, param)
        try:
            name_pattern(pattern.lower())
        except ValueError as error:
            raise click.BadParameter(f"{pattern!r} is not a regular expression: {error}", ctx, param) from None
        parsed.append((pattern.lower(), TENSOR_TYPES[name.upper()]))
    return tuple(parsed)


def size_in_bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return the number of bytes of ``500M`` or ``2G``, in powers of 1000 as in llama-gguf-split."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]+)([MG])B?", value, re.IGNORECASE)
    if not match or not int(match[1]):
        raise click.BadParameter(f"expected a size such as 500M or 2G, found {value!r}", ctx, param)
    return int(match[1]) * (10**6 if match[2].upper() == "M" else 10**9)


def complete_quant_types(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the types that begin with `incomplete`."""
    return [
        CompletionItem(kind.name, help=kind.about)
        for kind in FILE_TYPES.values()
        if kind.name.startswith(incomplete.upper())
    ]


@click.command(name="convert")
@click.argument("source", metavar="SRC", type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="The file to write, or a folder for several types. Default: NAME-TYPE.gguf in the models folder.",
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
    help="The type to convert to; repeatable: several are made in one read. See --list-types.",
)
@click.option(
    "--list-types",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    help="List the types and exit.",
    callback=lambda ctx, _param, value: _list_types(ctx) if value else None,
)
@click.option("--revision", metavar="REV", help="The branch, tag or commit of a repository on the hub. Default: main.")
@click.option(
    "--imatrix",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An importance matrix of this model (GGUF or .dat), from llama-imatrix or `llamalite imatrix`.",
)
@click.option(
    "--tensor-type",
    "overrides",
    metavar="REGEX=TYPE",
    multiple=True,
    callback=tensor_types,
    help="Use TYPE for tensors whose names match REGEX; repeatable, the first match decides.",
)
@click.option(
    "--pure", is_flag=True, help="Use the same type for every matrix, without the usual mix (Q4_K_M has some Q6_K)."
)
@click.option("--allow-requantize", is_flag=True, help="Allow a GGUF file that is already quantized.")
@click.option(
    "--allow-token-mismatch",
    is_flag=True,
    help="Convert even if the file would tokenize text differently from the original; the file records this.",
)
@click.option(
    "--metadata",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help='A JSON object of general.* keys to set, such as {"general.author": "..."}.',
)
@click.option(
    "--split-max-size",
    "split_max_bytes",
    metavar="SIZE",
    callback=size_in_bytes,
    help="Write shards of at most this size (500M, 2G), which llama.cpp loads as one model.",
)
@click.option(
    "--verify", is_flag=True, help="Compare the result with the checkpoint afterwards: tensors, tokens, logits."
)
@click.option(
    "--dry-run", is_flag=True, help="Print what would be written, and the memory needed to run it; write nothing."
)
@click.option("-f", "--force", is_flag=True, help="Replace existing files.")
@click.option(
    "--threads",
    type=click.IntRange(1, 512),
    metavar="N",
    help="Number of worker threads. Default: one for each usable core.",
)
@click.pass_context
def command(ctx: click.Context, /, source: str, output: Path | None, qtypes: tuple[str, ...], **options: Any) -> None:
    """Convert the LLaMA checkpoint SRC to a quantized GGUF file.

    SRC is the folder of a Hugging Face model (config.json, *.safetensors or pytorch_model*.bin, tokenizer), the folder
    of one of Meta's models (params.json, consolidated.*.pth, tokenizer.model), a GGUF file, or org/name, a repository
    on the Hugging Face hub, from which only the necessary files are downloaded. SRC is read once. The result is, byte
    for byte, what llama.cpp's converter and llama-quantize write in two steps.

    \b
    Examples:
      llamalite convert ./TinyLlama-1.1B
      llamalite convert ./TinyLlama-1.1B -t Q8_0 -o tiny.gguf
      llamalite convert ./TinyLlama-1.1B -t Q4_K_M -t Q8_0 -o converted/
      llamalite convert ./TinyLlama-1.1B -t IQ3_XXS --imatrix imatrix.gguf --tensor-type "attn_v=Q6_K"
      llamalite convert ./TinyLlama-1.1B -t Q6_K --dry-run
      llamalite convert TinyLlama-1.1B-F16.gguf -t Q5_K_M
      llamalite convert HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from llamalite import store
    from llamalite.cli import _dry_run, _model
    from llamalite.converters import Importance, QuantizeParams, convert
    from llamalite.converters.checkpoints import model_name

    folder = _model.checkpoint(ctx, source, options["revision"])
    types: Any = list(qtypes) if len(qtypes) > 1 else qtypes[0]
    params = QuantizeParams(
        importance=Importance.load(options["imatrix"]) if options["imatrix"] else None,
        overrides=options["overrides"],
        pure=options["pure"],
        allow_requantize=options["allow_requantize"],
    )
    if options["dry_run"]:
        _dry_run.print_plan(ctx, folder, types, params, options["metadata"], options["split_max_bytes"])
        return
    if len(qtypes) > 1 and output is not None and output.suffix == ".gguf":
        raise click.UsageError(f"several types make several files: name a folder (-o converted), not {output}")
    if output is None:
        output = store.models_folder() if len(qtypes) > 1 else store.default_output(model_name(folder), qtypes[0])
        store.models_folder().mkdir(parents=True, exist_ok=True)
    quiet = ctx.obj["quiet"]
    with progress_bar(ctx.obj, "iB", "converting") as bar:
        report = convert(
            folder,
            output,
            qtype=types,
            force=options["force"],
            n_threads=options["threads"],
            params=params,
            metadata=options["metadata"],
            split_max_bytes=options["split_max_bytes"],
            allow_token_mismatch=options["allow_token_mismatch"],
            progress=bar.move_to,
        )
    if not quiet:
        _print_report(report)
    if options["verify"]:
        from llamalite.cli import verify

        results = [verify.run(ctx, output.path, folder, params, options["threads"]) for output in report.outputs]
        if not all(results):
            ctx.exit(1)


def _print_report(report: ConversionReport) -> None:
    from llamalite import store

    for output in report.outputs:
        files = f" in {output.n_files} files" if output.n_files > 1 else ""
        click.echo(
            f"wrote {_text.clean(str(output.path))}: {output.qtype}, {_text.size(output.n_bytes)}{files}, "
            f"{output.bits_per_weight:.2f} bits per weight"
        )
        if output.fallbacks:
            name, types = next(iter(output.fallbacks.items()))
            others = f"; so are {len(output.fallbacks) - 1} more tensors" if len(output.fallbacks) > 1 else ""
            excess = output.bits_per_weight / output.bits_without_fallbacks - 1
            larger = f": the file is {excess:.0%} larger than {output.qtype} promises" if excess > 0.05 else ""
            click.echo(f"  {name} is {types}, because its rows do not fill whole blocks{others}{larger}")
    if report.tokens and report.tokens.differences:
        click.echo(f"  {report.tokens.describe()}")
    click.echo(f"It took {report.seconds:.1f} s, for {_text.size(report.source_bytes)} of weights.")
    for output in report.outputs:
        click.echo(f"Next: llamalite run {_text.clean(store.as_argument(output.path))}")


def _list_types(ctx: click.Context) -> None:
    for kind in FILE_TYPES.values():
        click.echo(f"{kind.name:9} {kind.about}")
    ctx.exit()
