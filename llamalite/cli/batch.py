"""``llamalite batch``: answers a file of prompts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from llamalite.cli import _options, _text
from llamalite.cli._progress import progress_bar

_SAMPLING = ("max_tokens", *_options.SAMPLING, "seed")


@click.command(name="batch")
@click.argument("model", metavar="MODEL")
@click.option(
    "-i",
    "--input",
    "source",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help='JSON Lines: {"prompt": TEXT} or {"messages": [...]} on each line, with options for that line.',
)
@click.option(
    "-o", "--output", "target", required=True, metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
    help="Append answers to this file; lines that have an answer there are skipped.",
)  # fmt: skip
@click.option("--raw", is_flag=True, help="Continue each prompt as it is, without the chat template.")
@click.option(
    "--parallel",
    default=16,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Number of answers generated at a time.",
)
@click.option("-n", "--max-tokens", type=_options.COUNT_OR_NONE, default=256, show_default=True, metavar="N",
              help="Maximum tokens of an answer.")  # fmt: skip
@_options.sampling
@click.option("--seed", type=_options.SEED, metavar="N", help="The seed of lines that have none.")
@click.option(
    "--ctx", "n_ctx", type=_options.COUNT, metavar="N", help="Tokens of all prompts in progress and their answers."
)
@_options.threads()
@_options.gpu()
@click.pass_context
def command(ctx: click.Context, /, model: str, source: Path, target: Path, **options: Any) -> None:
    """Answer every line of a JSON Lines file, many at a time.

    MODEL is a GGUF file, a name in the models folder, the folder of a checkpoint, or org/name[:TYPE].

    A model with a chat template gets each prompt as a user message, as in `llamalite run`.

    A stopped run continues where it was. If a line cannot be used, its number is reported, the others are
    answered, and the exit code is 1.

    \b
    Examples:
      llamalite batch demo -i prompts.jsonl -o answers.jsonl
      llamalite batch demo -i prompts.jsonl -o answers.jsonl --parallel 32 -n 64 --temp 0
    """
    from llamalite.batch_file import answer_file
    from llamalite.cli import _model

    quiet = ctx.obj["quiet"]
    offload = _options.offload(options)
    path = _model.obtain(ctx, model)
    with _model.load(
        ctx, path, n_ctx=options["n_ctx"], n_parallel=options["parallel"], n_threads=options["threads"], **offload
    ) as loaded:
        chosen = {name: options[name] for name in _SAMPLING if options[name] is not None}
        began = time.perf_counter()
        with progress_bar(ctx.obj, "line", "answering") as bar:

            def report_problem(number: int, why: str) -> None:
                bar.clear()
                click.echo(_text.clean(f"{source}, line {number}: {why}"), err=True)

            try:
                report = answer_file(
                    loaded,
                    source,
                    target,
                    parallel=options["parallel"],
                    params=loaded.defaults.replace(**chosen),
                    raw=options["raw"],
                    on_problem=report_problem,
                    on_answer=bar.move_to,
                )
            except (KeyboardInterrupt, SystemExit):  # SystemExit: SIGTERM
                bar.clear()
                if not quiet:
                    kept = f"{_text.clean(str(target))} has the answers so far; run the same command to continue"
                    click.echo(f"stopped: {kept}", err=True)
                raise
        seconds = time.perf_counter() - began
    if not quiet:
        before = f" ({report.n_before} were answered before)" if report.n_before else ""
        click.echo(
            f"{_text.count(report.n_answered, 'line')} answered{before}: "
            f"{_text.count(report.n_tokens, 'token')} in {seconds:.1f} s, "
            f"{report.n_tokens / seconds:.1f} tok/s; {_text.clean(str(target))}",
            err=True,
        )
    if report.n_bad:
        lines = _text.count(report.n_bad, "line")
        raise click.ClickException(f"{lines} of {source} could not be used; correct them and run it again")
