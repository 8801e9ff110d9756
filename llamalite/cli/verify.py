"""``llamalite verify``: is this GGUF file what its checkpoint says?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

if TYPE_CHECKING:
    from llamalite.converters import Recipe


@click.command(name="verify")
@click.argument("model", metavar="GGUF")
@click.option(
    "--against",
    metavar="CHECKPOINT",
    required=True,
    type=click.Path(path_type=Path),
    help="The checkpoint that the file was made of.",
)
@click.option(
    "--imatrix",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The importance matrix that it was made with, if any.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="Threads. Default: the physical cores.")
@click.pass_context
def command(
    ctx: click.Context, model: str, against: Path, imatrix: Path | None, as_json: bool, threads: int | None
) -> None:
    """Compare the file GGUF with the checkpoint that it was made of.

    Keys, chat template, every tensor, token ids of a few thousand texts, and the logits of a fixed text in llama.cpp's
    exact mode beside a plain NumPy forward pass of the checkpoint. Exit code 1 if any of them is not as it should be.

    \b
    Examples:
      llamalite verify TinyLlama-1.1B-Q4_K_M --against ./TinyLlama-1.1B
      llamalite verify tiny.gguf --against ./TinyLlama-1.1B --json
    """
    from llamalite.cli import _hub
    from llamalite.converters import Importance, Recipe

    recipe = Recipe(importance=Importance.load(imatrix) if imatrix else None)
    if not run(ctx, _hub.model(ctx, model), against, recipe, threads, as_json=as_json):
        ctx.exit(1)


def run(
    ctx: click.Context, path: Path, against: Path, recipe: Recipe, n_threads: int | None, *, as_json: bool = False
) -> bool:
    """Verify, print the report, and return whether all is well."""
    from llamalite.evaluation.verification import verify

    hidden = ctx.obj["quiet"] or not sys.stderr.isatty()
    with tqdm(unit="B", unit_scale=True, desc="verifying", leave=False, disable=hidden) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = verify(path, against, recipe=recipe, n_threads=n_threads, progress=show)
    if as_json:
        click.echo(report.to_json())
        return report.ok
    for check in report.checks:
        word = click.style("ok   ", fg="green") if check.ok else click.style("WRONG", fg="red", bold=True)
        click.echo(f"{word}  {check.name:8}  {check.text}")
    if report.ok:
        click.echo(f"{path} is what {against} holds.")
    else:
        click.echo(f"{path} is NOT what {against} holds: convert it again.")
    return report.ok
