"""``llamalite verify``: checks that a GGUF file has the contents of its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llamalite.cli._progress import progress_bar
from llamalite.cli._wrapping import print_wrapped

if TYPE_CHECKING:
    from llamalite.converters import QuantizeParams


@click.command(name="verify")
@click.argument("model", metavar="GGUF")
@click.option(
    "--against",
    metavar="CHECKPOINT",
    type=click.Path(path_type=Path),
    help="The checkpoint that the file was made from. Default: the one in the note beside the file.",
)
@click.option(
    "--imatrix",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The importance matrix that the file was made with, if any.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--threads", type=click.IntRange(1, 512), metavar="N", help="Number of threads. Default: the physical cores."
)
@click.pass_context
def command(
    ctx: click.Context, model: str, against: Path | None, imatrix: Path | None, as_json: bool, threads: int | None
) -> None:
    """Check that GGUF has the contents of the checkpoint that it was made from.

    Five things are compared: the keys, the chat template, all tensors, the tokens of a few thousand texts, and the
    logits for a fixed text, from llama.cpp and from a plain NumPy forward pass. The exit code is 1 if anything is
    wrong.

    \b
    Examples:
      llamalite verify TinyLlama-1.1B-Q4_K_M
      llamalite verify tiny.gguf --against ./TinyLlama-1.1B --json
    """
    from llamalite.cli import _model
    from llamalite.converters import Importance, QuantizeParams
    from llamalite.files import source_note

    path = _model.obtain(ctx, model)
    if against is None:
        note = source_note.read(path)  # even if the file has changed since: that is for verify to find
        if note is None:
            raise click.UsageError(f"no note beside {path.name} names its checkpoint: give it with --against DIR")
        against = Path(note.folder)
    params = QuantizeParams(importance=Importance.load(imatrix) if imatrix else None)
    if not run(ctx, path, against, params, threads, as_json=as_json):
        ctx.exit(1)


def run(
    ctx: click.Context,
    path: Path,
    against: Path,
    params: QuantizeParams,
    n_threads: int | None,
    *,
    as_json: bool = False,
) -> bool:
    """Verify, print the report, and return whether every check passed."""
    from llamalite.evaluation.verification import verify

    with progress_bar(ctx.obj, "iB", "verifying") as bar:
        report = verify(path, against, params=params, n_threads=n_threads, progress=bar.move_to)
    if as_json:
        click.echo(report.to_json())
        return report.ok
    for check in report.checks:
        word = click.style("ok   ", fg="green") if check.ok else click.style("WRONG", fg="red", bold=True)
        print_wrapped(check.text, label=f"{word}  {check.name:8}  ", label_width=17)
    if report.ok:
        click.echo(f"{path} matches {against}.")
    else:
        click.echo(f"{path} does NOT match {against}: convert it again.")
    return report.ok
