"""``llamalite demo``: the whole job on the model that ships with llamalite, or on a checkpoint of your own."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llamalite.answers import Piece, Totals
    from llamalite.converters import ConversionReport

TYPES = ("BF16", "Q8_0", "Q4_K_M", "Q2_K")
ASKED = "Q4_K_M"
QUESTIONS = (
    "What is the capital of France?",
    "How do you say \"good morning\" in German?",
    "Tell me a story about a llama and a hat.",
)  # fmt: skip
OPENINGS = ("The capital of France is", "Once upon a time", "The quick brown fox")  # for a base model
_PERCENT = "{desc} {percentage:3.0f}% |{bar}| {elapsed}"
CHUNKS = 8  # of a checkpoint that is not the demo's own: enough to compare, short enough to wait for


@click.command("demo")
@click.argument("source", metavar="[SRC]", required=False, type=click.Path(path_type=Path))
@click.option("-f", "--file", "text_file", metavar="TEXT", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="The text to measure on. Default: the demo model's held-out text.")  # fmt: skip
@click.pass_obj
def command(settings: dict[str, Any], source: Path | None, text_file: Path | None) -> None:
    """Convert, ask and measure: the whole job in seconds, on the model that ships with llamalite.

    SRC is a checkpoint of your own to do the same with. The files go into the models folder.

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
        _heading(1, f"Convert {_shown(source) if source else 'the demo checkpoint'} to {len(TYPES)} types in one read")
    report = _convert(source or store.demo_checkpoint(), store.models_folder(), quiet)
    paths = {output.qtype: output.path for output in report.outputs}
    if not quiet:
        _ask(paths[ASKED])
    _measure(report, text, text_file.name, None if source is None else CHUNKS, quiet)
    if not quiet:
        _say_what_next(paths[ASKED], time.perf_counter() - started)


def _heading(number: int, text: str) -> None:
    click.secho(f"\n{number}. {text}", bold=True)


@contextmanager
def _bar(quiet: bool, **settings: Any) -> Iterator[Any]:
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    with tqdm(leave=False, disable=hidden, ncols=min(shutil.get_terminal_size().columns, 100), **settings) as bar:
        yield bar


def _convert(source: Path, folder: Path, quiet: bool) -> ConversionReport:
    from llamalite import kept
    from llamalite.cli import _text
    from llamalite.converters import convert

    folder.mkdir(parents=True, exist_ok=True)
    with _bar(quiet, unit="iB", unit_scale=True, unit_divisor=1024, desc="   converting") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = convert(source, folder, qtype=list(TYPES), force=True, progress=show)
    for output in report.outputs:
        kept.note(output.path, source, output.qtype, plain=True)
    if not quiet:
        click.echo(f"   {report.n_params / 1e6:,.1f} million weights, {_text.size(report.source_bytes)} read "
                   f"in {report.seconds:.1f} s, written to {_shown(folder)}")  # fmt: skip
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
            totals = _say(stream, min(shutil.get_terminal_size().columns, 100))
            n_generated += totals.n_generated
            seconds += totals.generation_s
    click.echo(f"   {n_generated} tokens, {n_generated / seconds:,.0f} a second")


def _say(stream: Iterable[Piece], width: int) -> Totals:
    """Print an answer as it comes, each word when it is whole, in indented lines of `width` columns."""
    line, word = "  ", ""
    for piece in stream:
        for letter in piece.text + (" " if piece.totals else ""):
            if not letter.isspace():
                word += letter
            elif word:
                if len(line) + 1 + len(word) > width:
                    click.echo()
                    line = "  "
                click.echo((line if not line.strip() else "") + " " + word, nl=False)
                line, word = line + " " + word, ""
        if piece.totals:
            click.echo()
            return piece.totals
    raise AssertionError("a stream ends in a piece with its totals")


def _measure(report: ConversionReport, text: bytes, name: str, chunks: int | None, quiet: bool) -> None:
    from llamalite.cli import _text
    from llamalite.evaluation.comparison import iter_compare
    from llamalite.evaluation.decoding import EvalProtocol
    from llamalite.evaluation.recommendation import recommend

    if not quiet:
        _heading(3, f"Measure what it cost, on {name}: perplexity, and divergence from {TYPES[0]}")
    base, *others = report.outputs
    with _bar(quiet, total=1, desc="   comparing", bar_format=_PERCENT) as bar:
        for standing in iter_compare(base.path, [one.path for one in others], text, EvalProtocol(chunks=chunks)):
            bar.total = standing.n_chunks
            bar.update(standing.chunks_done - bar.n)
    comparison = standing.comparison()
    found = [one.divergence for one in comparison.candidates]
    first = found[0]
    assert first is not None  # only the reference has none
    click.secho(f"   {'type':8}{'size':>10}{'BPW':>7}{'perplexity':>21}{'mean KLD':>11}{'same top':>10}", dim=True)
    for output, one in zip(report.outputs, [None, *found], strict=True):
        ppl, error = (one.ppl, one.ppl_err) if one else (first.ppl_base, first.ppl_base_err)
        cost = f"{one.mean_kld:>11.5f}{one.same_top_p:>10.1%}" if one else ""
        line = f"   {output.qtype:8}{_text.size(output.n_bytes):>10}{output.bits_per_weight:>7.2f}"
        click.echo(f"{line}{f'{ppl:.4f} ± {error:.4f}':>21}{cost}")
    if not quiet:
        _text.labelled("", "BPW: bits per weight. KLD: how far next-token probabilities moved; 0 is not at all.", 1)
        _text.labelled("", recommend(comparison), 1)


def _say_what_next(path: Path, seconds: float) -> None:
    # Whoever came by `make demo` has llamalite in .venv/bin, and the models where the Makefile said.
    program = "llamalite" if shutil.which("llamalite") else _shown(Path(sys.argv[0]))
    model = _shown(path) if "LLAMALITE_MODELS" in os.environ else path.stem.rpartition(f"-{ASKED}")[0]
    click.secho(f"\nDone in {seconds:.0f} s. Next:", bold=True)
    click.echo(f"   {program} run {model}")
    click.echo(f"   {program} convert PATH/TO/YOUR/CHECKPOINT")
    click.echo(f"   {program} compare PATH/TO/YOUR/CHECKPOINT -t Q8_0 -t Q4_K_M -f YOUR-TEXT.txt")


def _shown(path: Path) -> str:
    """Return `path` as one would type it here."""
    full, here = path.absolute(), Path.cwd()
    return shlex.quote(str(full.relative_to(here) if full.is_relative_to(here) else full))
