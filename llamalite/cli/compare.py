"""``llamalite compare``: measures what each quantization of a model costs, compared with the model itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamalite.cli import _options, _text
from llamalite.cli._progress import progress_bar
from llamalite.cli._table import print_table
from llamalite.cli._wrapping import print_labelled, print_wrapped
from llamalite.cli.convert import complete_quant_types, quant_types
from llamalite.files.replacing import replacing

if TYPE_CHECKING:
    from llamalite.evaluation.comparison import Comparison, ComparisonProgress
    from llamalite.evaluation.recommendation import BudgetResult


_WRITTEN = ("csv_file", "html_file", "plot_file")


@click.command("compare")
@click.argument("reference")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("-f", "--file", "text_file", required=True, metavar="TEXT",
              help="The text to score, read as bytes; - is standard input.")  # fmt: skip
@click.option("-t", "--type", "qtypes", multiple=True, metavar="TYPE", callback=quant_types,
              shell_complete=complete_quant_types,
              help="Convert REFERENCE to this type and compare the result; repeatable.")  # fmt: skip
@click.option("--imatrix", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="An importance matrix for the models that -t makes.")  # fmt: skip
@click.option("--keep", "folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False),
              help="Keep the models that -t makes in DIR. Default: delete them at the end.")  # fmt: skip
@click.option("--ctx", "n_ctx", type=_options.COUNT, default=512, show_default=True, metavar="N",
              help="Tokens in a chunk.")  # fmt: skip
@click.option("--chunks", type=_options.COUNT, metavar="N", help="Stop after N chunks. Default: all.")
@click.option("--batch", "n_batch", type=_options.COUNT, default=2048, show_default=True, metavar="N",
              help="Tokens in a batch; several chunks share one.")  # fmt: skip
@click.option("--exact", is_flag=True, help="F32 cache, no flash attention: figures that agree across machines.")
@_options.threads("n_threads")
@_options.gpu("0")
@click.option("--kld-budget", type=_options.Number(0, 1000), metavar="X",
              help="Name the smallest model that fits into free memory with a mean KLD of at most X.")  # fmt: skip
@click.option("--budget-ctx", type=_options.COUNT, default=4096, show_default=True, metavar="N",
              help="Tokens of context for the memory of --kld-budget.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--csv", "csv_file", metavar="FILE", type=click.Path(path_type=Path), help="Write the table as CSV.")
@click.option("--html", "html_file", metavar="FILE", type=click.Path(path_type=Path),
              help="Write a page with tables and charts, in one file.")  # fmt: skip
@click.option("--plot", "plot_file", metavar="FILE", type=click.Path(path_type=Path),
              help="Draw charts as .png, .svg or .pdf; needs matplotlib (the extra plot).")  # fmt: skip
@click.pass_context
def command(
    ctx: click.Context,
    /,
    reference: str,
    models: tuple[str, ...],
    text_file: str,
    qtypes: tuple[str, ...],
    imatrix: Path | None,
    folder: Path | None,
    kld_budget: float | None,
    budget_ctx: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure what quantization cost: each MODEL against REFERENCE on the same text, in quality, size and speed.

    MODEL and REFERENCE are GGUF files, names in the models folder, folders of checkpoints, or org/name[:TYPE]. If
    REFERENCE is a checkpoint, it is used unquantized, and -t makes models from it to compare. Ctrl-C prints the results
    so far.

    \b
    Examples:
      llamalite compare demo-BF16 demo-Q8_0 demo-Q4_K_M -f wiki.test.raw --chunks 32
      llamalite compare ./checkpoint -t Q8_0 -t Q4_K_M -t Q2_K -f wiki.test.raw --html report.html
      llamalite compare ./checkpoint -t Q6_K -t Q4_K_M -t Q3_K_M -f wiki.test.raw --kld-budget 0.05
    """
    from llamalite.cli import _model
    from llamalite.evaluation.comparison import iter_compare
    from llamalite.evaluation.matplotlib_charts import check_plot
    from llamalite.evaluation.protocol import EvalProtocol
    from llamalite.evaluation.windows import without_newline

    if not models and not qtypes:
        raise click.UsageError("nothing to compare REFERENCE with: name models, or types to convert it to with -t")
    if options["plot_file"]:
        check_plot(options["plot_file"])
    for path in filter(None, (options[name] for name in _WRITTEN)):
        _options.check_writable(path)
    offload = _options.offload(options)
    names = ("n_ctx", "n_batch", "chunks", "exact", "n_threads")
    protocol = EvalProtocol(**{name: options[name] for name in names})
    raw = sys.stdin.buffer.read() if text_file == "-" else Path(text_file).read_bytes()
    progress: ComparisonProgress | None = None
    stopped: BaseException | None = None
    named = [_model.obtain(ctx, model) for model in models]
    with _made_candidates(ctx, reference, qtypes, imatrix, folder) as (base, made):
        run = iter_compare(base, [*made, *named], without_newline(raw), protocol, **offload)
        with progress_bar(ctx.obj, "chunk") as bar:
            try:
                for progress in run:
                    name, kld = list(progress.mean_kld().items())[-1]
                    bar.move_to(progress.chunks_done, progress.n_chunks, f"{name} KLD {kld:.5f}")
            except (KeyboardInterrupt, SystemExit) as signalled:  # Ctrl-C, SIGTERM: print the results so far
                stopped = signalled
        if progress is not None:
            text = {"path": text_file, "sha256": hashlib.sha256(raw).hexdigest(), "n_bytes": len(raw)}
            _report(progress.comparison(), text, kld_budget, budget_ctx, as_json, options, ctx.obj["quiet"])
    if stopped is not None:
        raise stopped


@contextlib.contextmanager
def _made_candidates(
    ctx: click.Context, reference: str, qtypes: tuple[str, ...], imatrix: Path | None, folder: Path | None
) -> Iterator[tuple[Path, list[Path]]]:
    """Yield the paths of the reference and of a candidate for each of `qtypes`.

    Without `folder`, files made here exist only while the block runs.
    """
    from llamalite.cli import _model
    from llamalite.converters import Importance
    from llamalite.evaluation.candidates import make_candidates

    importance = Importance.load(imatrix) if imatrix else None
    source = _model.locate(ctx, reference)
    if source.is_file() and not qtypes:
        yield source, []
        return
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llamalite-")))
        with progress_bar(ctx.obj, "iB", "converting") as bar:
            made = make_candidates(source, qtypes, folder, bar.move_to, importance)
        yield made


def _report(
    comparison: Comparison,
    text: dict[str, Any],
    kld_budget: float | None,
    budget_ctx: int,
    as_json: bool,
    options: dict[str, Any],
    quiet: bool,
) -> None:
    """Print the comparison, and write the files that `options` ask for."""
    from llamalite.evaluation.csv_report import to_csv
    from llamalite.evaluation.html_report import to_html
    from llamalite.evaluation.matplotlib_charts import plot
    from llamalite.evaluation.recommendation import check_budgets, recommend
    from llamalite.hardware import free_memory_bytes

    free = free_memory_bytes()
    results: list[BudgetResult] = []
    if kld_budget:
        results = check_budgets(comparison, kld_budget=kld_budget, n_ctx=budget_ctx, free_bytes=free)
    if as_json:
        document = {"text": text} | comparison.to_json()
        if results:
            document["budget"] = {
                "kld_budget": kld_budget,
                "n_ctx": budget_ctx,
                "free_bytes": free,
                "chosen": next((result.candidate.name for result in results if result.chosen), None),
                "candidates": [result.to_json() for result in results],
            }
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        _print_quality(comparison, _text_name(text["path"]), quiet)
        if results:
            _print_budgets(results, kld_budget or 0.0, budget_ctx, free)
        elif not quiet:
            click.echo()
            print_wrapped(recommend(comparison))
    if options["csv_file"]:
        with replacing(options["csv_file"]) as part:
            part.write_text(to_csv(comparison), encoding="utf-8", newline="")
    if options["html_file"]:
        description = f"{_text_name(text['path'])} (sha256 {text['sha256']})"
        with replacing(options["html_file"]) as part:
            part.write_text(to_html(comparison, text=description), encoding="utf-8")
    if options["plot_file"]:
        plot(comparison, options["plot_file"])
    for path in filter(None, (options[name] for name in _WRITTEN)):
        if not quiet:
            click.echo(f"wrote {path}", err=True)


def _text_name(text_file: str) -> str:
    return "standard input" if text_file == "-" else Path(text_file).name


def _print_quality(comparison: Comparison, text_name: str, quiet: bool) -> None:
    """Print two tables that fit into 80 columns: what each candidate lost, and what each model takes to run."""
    from llamalite.evaluation.recommendation import short_names

    first = comparison.candidates[0].divergence
    assert first is not None  # a candidate always has one
    reference, names = comparison.reference, short_names(comparison)
    state = "" if comparison.complete else "; stopped early"
    print_wrapped(
        f"{first.n_tokens:,} tokens of {text_name} scored, in chunks of {comparison.protocol['n_ctx']}{state}. "
        f"The reference is {reference.name}."
    )
    click.echo()
    rows = [(names[reference.path], _plus_minus(first.ppl_base, first.ppl_base_err), *[""] * 5)]
    for candidate in comparison.candidates:
        lost = candidate.divergence
        assert lost is not None
        digits = 5 if lost.mean_kld_err >= 5e-6 or lost.mean_kld == 0 else 6
        rows.append(
            (
                names[candidate.path],
                _plus_minus(lost.ppl, lost.ppl_err),
                f"{100 * (lost.ppl_ratio - 1):+.2f} ± {lost.ppl_ratio_err:.2%}",
                _plus_minus(lost.mean_kld, lost.mean_kld_err, digits),
                f"{lost.same_top_p:.2%}",
                f"{lost.p99_kld:.4f}",
                f"{lost.rms_delta_p:.2%}",
            )
        )
    head = ("QUALITY", "PPL", "CHANGE", "MEAN KLD", "SAME TOP", "99% KLD", "RMS Δp")
    left_out = print_table(head, rows, optional=(6, 5), keep_end=True)
    click.echo()
    _print_running(comparison, names)
    if not quiet:
        click.echo()
        _print_explanation(left_out)


def _print_running(comparison: Comparison, names: dict[Path, str]) -> None:
    rows = []
    for model in (comparison.reference, *comparison.candidates):
        running = model.running
        rows.append(
            (
                names[model.path],
                _text.size(model.n_bytes),
                f"{model.bits_per_weight:.2f}",
                f"{running.pp_tok_per_s:,.1f}",
                f"{running.tg_tok_per_s:,.1f}",
                f"{running.load_s:.2f}",
                _text.size(running.memory_bytes),
            )
        )
    head = ("SIZE AND SPEED", "FILE", "BPW", "PROMPT t/s", "GENERATED t/s", "LOAD s", "MEMORY")
    print_table(head, rows, keep_end=True)


def _print_explanation(left_out: list[str]) -> None:
    """Print what the columns of the two tables mean."""
    from llamalite.evaluation.comparison import N_GENERATED

    print_labelled("PPL", "perplexity, and its CHANGE from the reference: lower is better", 10)
    print_labelled("MEAN KLD", "how far next-token probabilities moved, in nats: lower is better", 10)
    print_labelled("SAME TOP", "how often the likeliest token stayed the same: higher is better", 10)
    if left_out:
        print_labelled("", f"{' and '.join(left_out)}: in a wider terminal, and in --csv and --json", 10)
    else:
        print_labelled("99% KLD", "1% of the tokens have a larger KLD: lower is better", 10)
        print_labelled("RMS Δp", "how far the probability of the text's token moved: lower is better", 10)
    print_labelled("t/s", f"rough; GENERATED is the median of {N_GENERATED} tokens; see llamalite bench", 10)


def _plus_minus(value: float, error: float, digits: int = 4) -> str:
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _print_budgets(results: list[BudgetResult], kld_budget: float, n_ctx: int, free: int) -> None:
    click.echo()
    print_wrapped(
        f"The smallest model with a mean KLD of at most {kld_budget:g} that fits into the free memory "
        f"({_text.size(free)}) with {n_ctx:,} tokens of context:"
    )
    rows = []
    for result in results:
        kld = f"KLD {result.mean_kld:.5f} {'≤' if result.within_budget else '>'} {kld_budget:g}"
        memory = f"needs {_text.size(result.needed.total_bytes)} {'≤' if result.fits else '>'} {_text.size(free)}"
        rows.append(("→" if result.chosen else " ", result.candidate.name, kld, memory))
    print_table(None, rows, left=(0, 1, 2, 3), shrinking=1, keep_end=True)
    if not any(result.chosen for result in results):
        click.echo("No model does: allow a larger budget, add larger types with -t, or free memory.")
