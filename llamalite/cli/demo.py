"""``llamalite demo``: converts, asks and measures the model that comes with llamalite, or your own checkpoint."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamalite.cli import _text
from llamalite.cli._progress import progress_bar
from llamalite.cli._table import print_table
from llamalite.cli._wrapping import StreamWrapper, print_labelled

if TYPE_CHECKING:
    from llamalite.converters import ConversionReport
    from llamalite.generation.completion import Piece, Totals

TYPES = ("BF16", "Q8_0", "Q4_K_M", "Q2_K")
ASKED_TYPE = "Q4_K_M"
QUESTIONS = (
    "What is the capital of France?",
    "How do you say \"good morning\" in German?",
    "Tell me a story about a llama and a hat.",
)  # fmt: skip
OPENINGS = ("The capital of France is", "Once upon a time", "The quick brown fox")  # for a base model
CHUNKS = 8  # for a checkpoint other than the demo's: enough to compare, few enough to wait for


@click.command("demo")
@click.argument("source", metavar="[SRC]", required=False, type=click.Path(path_type=Path))
@click.option("-f", "--file", "text_file", metavar="TEXT", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="The text to measure with. Default: the demo model's held-out text.")  # fmt: skip
@click.pass_obj
def command(settings: dict[str, Any], source: Path | None, text_file: Path | None) -> None:
    """Convert, ask and measure the model that comes with llamalite: the whole workflow in seconds.

    With SRC, do the same with your own checkpoint. The files go into the models folder.

    \b
    Examples:
      llamalite demo
      llamalite demo ./TinyLlama-1.1B -f wiki.test.raw
    """
    from llamalite import store

    started = time.perf_counter()
    text_file = text_file or store.demo_checkpoint() / "heldout.txt"
    text = text_file.read_bytes().removesuffix(b"\n")
    quiet = settings["quiet"]
    if not quiet:
        _heading(
            1, f"Convert {_as_typed(source) if source else 'the demo checkpoint'} to {len(TYPES)} types in one read"
        )
    report = _convert(source or store.demo_checkpoint(), store.models_folder(), settings)
    paths = {output.qtype: output.path for output in report.outputs}
    if not quiet:
        _ask(paths[ASKED_TYPE])
    _measure(report, text, text_file.name, None if source is None else CHUNKS, settings)
    if not quiet:
        _print_next_steps(paths[ASKED_TYPE], time.perf_counter() - started)


def _heading(number: int, text: str) -> None:
    click.secho(f"\n{number}. {text}", bold=True)


def _convert(source: Path, folder: Path, settings: dict[str, Any]) -> ConversionReport:
    from llamalite.converters import convert

    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar(settings, "iB", "   converting") as bar:
        report = convert(source, folder, qtype=list(TYPES), force=True, progress=bar.move_to)
    if not settings["quiet"]:
        click.echo(f"   {report.n_params / 1e6:,.1f} million weights, {_text.size(report.source_bytes)} read "
                   f"in {report.seconds:.1f} s, written to {_as_typed(folder)}")  # fmt: skip
    return report


def _ask(path: Path) -> None:
    from llamalite.model import Model

    _heading(2, f"Ask {path.name}")
    n_generated, seconds = 0, 0.0
    with Model(path) as model:
        for question in QUESTIONS if model.has_chat_template else OPENINGS:
            click.secho(f"   > {question}", fg="cyan")
            prompt: Any = [{"role": "user", "content": question}] if model.has_chat_template else question
            stream = model.stream(prompt, max_tokens=96, temperature=0.0)
            totals = _print_answer(stream, min(_text.width(), _text.MAX_COLUMNS + 1))
            n_generated += totals.n_generated
            seconds += totals.generation_s
    click.echo(f"   {n_generated} tokens, {n_generated / seconds:,.0f} a second")


def _print_answer(stream: Iterable[Piece], columns: int) -> Totals:
    """Print an answer while it is generated, indented and wrapped to `columns`."""
    wrapper = StreamWrapper(lambda: columns, indent="   ", joins_lines=True)
    for piece in stream:
        click.echo(wrapper.add(piece.text), nl=False)
        if piece.totals:
            click.echo(wrapper.end())
            return piece.totals
    raise AssertionError("the last piece of a stream has its totals")


def _measure(
    report: ConversionReport, text: bytes, text_name: str, chunks: int | None, settings: dict[str, Any]
) -> None:
    from llamalite.evaluation.comparison import iter_compare
    from llamalite.evaluation.protocol import EvalProtocol
    from llamalite.evaluation.recommendation import recommend

    if not settings["quiet"]:
        _heading(3, f"Measure what it cost, on {text_name}: perplexity, and divergence from {TYPES[0]}")
    reference, *others = report.outputs
    protocol = EvalProtocol(chunks=chunks)
    with progress_bar(settings, "chunk", "   comparing") as bar:
        for progress in iter_compare(reference.path, [output.path for output in others], text, protocol):
            bar.move_to(progress.chunks_done, progress.n_chunks)
    comparison = progress.comparison()
    divergences = [candidate.divergence for candidate in comparison.candidates]
    first = divergences[0]
    assert first is not None  # only the reference has none
    rows = []
    for output, divergence in zip(report.outputs, [None, *divergences], strict=True):
        ppl, error = (divergence.ppl, divergence.ppl_err) if divergence else (first.ppl_base, first.ppl_base_err)
        rows.append(
            (
                output.qtype,
                _text.size(output.n_bytes),
                f"{output.bits_per_weight:.2f}",
                f"{ppl:.4f} ± {error:.4f}",
                f"{divergence.mean_kld:.5f}" if divergence else "",
                f"{divergence.same_top_p:.1%}" if divergence else "",
            )
        )
    print_table(("TYPE", "SIZE", "BPW", "PERPLEXITY", "MEAN KLD", "SAME TOP"), rows, indent=3)
    if not settings["quiet"]:
        print_labelled("", "BPW: bits per weight. KLD: how far next-token probabilities moved; 0 means not at all.", 1)
        print_labelled("", recommend(comparison), 1)


def _print_next_steps(path: Path, seconds: float) -> None:
    # `make demo` runs llamalite from .venv/bin, with the models folder of the Makefile.
    program = "llamalite" if shutil.which("llamalite") else _as_typed(Path(sys.argv[0]))
    model = _as_typed(path) if "LLAMALITE_MODELS" in os.environ else path.stem.rpartition(f"-{ASKED_TYPE}")[0]
    click.secho(f"\nDone in {seconds:.0f} s. Next:", bold=True)
    click.echo(f"   {program} run {model}")
    click.echo(f"   {program} convert PATH/TO/YOUR/CHECKPOINT")
    click.echo(f"   {program} compare PATH/TO/YOUR/CHECKPOINT -t Q8_0 -t Q4_K_M -f YOUR-TEXT.txt")


def _as_typed(path: Path) -> str:
    """Return `path` as an argument to type in a shell in the current folder."""
    full, here = path.absolute(), Path.cwd()
    return shlex.quote(str(full.relative_to(here) if full.is_relative_to(here) else full))
