"""llamalite compare: what each quantization of a model costs, against the model itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamalite.cli import _options
from llamalite.cli.convert import complete_quant_types, quant_types

if TYPE_CHECKING:
    from llamalite.evaluation.comparison import Comparison, Standing


_WRITTEN = ("csv_file", "html_file", "plot_file")


@click.command("compare")
@click.argument("reference")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("-f", "--file", "text_file", required=True, metavar="TEXT",
              help="The text, taken as bytes; - reads standard input.")  # fmt: skip
@click.option("-t", "--type", "qtypes", multiple=True, metavar="TYPE", callback=quant_types,
              shell_complete=complete_quant_types,
              help="Make a model of this type from REFERENCE and compare it; repeatable.")  # fmt: skip
@click.option("--imatrix", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="An importance matrix for what -t makes.")  # fmt: skip
@click.option("--keep", "folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False),
              help="Keep what -t makes in DIR (default: it is removed at the end).")  # fmt: skip
@click.option("--ctx", "n_ctx", type=_options.COUNT, default=512, show_default=True, metavar="N",
              help="Tokens in a chunk.")  # fmt: skip
@click.option("--chunks", type=_options.COUNT, metavar="N", help="Stop after N chunks (default: all).")
@click.option("--batch", "n_batch", type=_options.COUNT, default=2048, show_default=True, metavar="N",
              help="Tokens in a batch; several chunks share one.")  # fmt: skip
@click.option("--exact", is_flag=True, help="F32 cache, no flash attention: figures that agree across machines.")
@_options.threads("n_threads")
@_options.gpu("0")
@click.option("--kld-budget", type=_options.Number(0, 1000), metavar="X",
              help="Name the smallest model whose mean KLD is at most X and that fits into the memory.")  # fmt: skip
@click.option("--budget-ctx", type=_options.COUNT, default=4096, show_default=True, metavar="N",
              help="Tokens of context that --kld-budget plans memory for.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--csv", "csv_file", metavar="FILE", type=click.Path(path_type=Path), help="Write the table as CSV.")
@click.option("--html", "html_file", metavar="FILE", type=click.Path(path_type=Path),
              help="Write one page with the table and charts, which needs nothing beside it.")  # fmt: skip
@click.option("--plot", "plot_file", metavar="FILE", type=click.Path(path_type=Path),
              help="Draw a picture, .png, .svg or .pdf; needs matplotlib (the extra plot).")  # fmt: skip
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

    A MODEL is a GGUF file, a name in the models folder, the folder of a checkpoint, or org/name[:TYPE]. So is
    REFERENCE; a checkpoint is taken as it is there, not quantized, and -t makes models of it to compare. Ctrl-C prints
    what has been measured so far.

    \b
    Examples:
      llamalite compare demo-BF16 demo-Q8_0 demo-Q4_K_M -f wiki.test.raw --chunks 32
      llamalite compare ./checkpoint -t Q8_0 -t Q4_K_M -t Q2_K -f wiki.test.raw --html study.html
      llamalite compare ./checkpoint -t Q6_K -t Q4_K_M -t Q3_K_M -f wiki.test.raw --kld-budget 0.05
    """
    from llamalite.cli import _hub
    from llamalite.evaluation.comparison import iter_compare
    from llamalite.evaluation.decoding import EvalProtocol
    from llamalite.evaluation.matplotlib_charts import check_plot
    from llamalite.evaluation.windows import without_newline

    if not models and not qtypes:
        raise click.UsageError("nothing to compare REFERENCE with: name models, or types to make with -t")
    if options["plot_file"]:
        check_plot(options["plot_file"])
    for path in filter(None, (options[name] for name in _WRITTEN)):
        _options.check_writable(path)
    offload = _options.offload(options)
    names = ("n_ctx", "n_batch", "chunks", "exact", "n_threads")
    protocol = EvalProtocol(**{name: options[name] for name in names})
    raw = sys.stdin.buffer.read() if text_file == "-" else Path(text_file).read_bytes()
    hidden = ctx.obj["quiet"] or not sys.stderr.isatty()
    standing: Standing | None = None
    stopped: BaseException | None = None
    named = [_hub.model(ctx, model) for model in models]
    with _candidates(ctx, reference, qtypes, imatrix, folder, hidden) as (base, made):
        run = iter_compare(base, [*made, *named], without_newline(raw), protocol, **offload)
        from tqdm import tqdm

        with tqdm(unit="chunk", leave=False, disable=hidden) as bar:
            try:
                for standing in run:
                    bar.total = standing.n_chunks
                    name, kld = list(standing.mean_kld().items())[-1]
                    bar.set_postfix_str(f"{name} KLD {kld:.5f}", refresh=False)
                    bar.update(standing.chunks_done - bar.n)
            except (KeyboardInterrupt, SystemExit) as signalled:  # Ctrl-C, SIGTERM: what stands is printed
                stopped = signalled
        if standing is not None:
            text = {"path": text_file, "sha256": hashlib.sha256(raw).hexdigest(), "n_bytes": len(raw)}
            _show(standing.comparison(), text, kld_budget, budget_ctx, as_json, options, ctx.obj["quiet"])
    if stopped is not None:
        raise stopped


@contextlib.contextmanager
def _candidates(
    ctx: click.Context, reference: str, qtypes: tuple[str, ...], imatrix: Path | None, folder: Path | None, hidden: bool
) -> Iterator[tuple[Path, list[Path]]]:
    """Yield the reference's path and those of the candidates that `qtypes` ask for, which last as long as the block."""
    from tqdm import tqdm

    from llamalite.cli import _hub
    from llamalite.converters import Importance
    from llamalite.evaluation.candidates import make_candidates

    importance = Importance.load(imatrix) if imatrix else None
    source = _hub.located(ctx, reference)
    if source.is_file() and not qtypes:
        yield source, []
        return
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llamalite-")))
        with tqdm(unit="iB", unit_scale=True, unit_divisor=1024, leave=False, disable=hidden, desc="converting") as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            made = make_candidates(source, qtypes, folder, progress, importance)
        yield made


def _show(
    comparison: Comparison,
    text: dict[str, Any],
    kld_budget: float | None,
    budget_ctx: int,
    as_json: bool,
    options: dict[str, Any],
    quiet: bool,
) -> None:
    from llamalite.evaluation.csv_report import to_csv
    from llamalite.evaluation.html_report import to_html
    from llamalite.evaluation.matplotlib_charts import plot
    from llamalite.evaluation.recommendation import check_budgets
    from llamalite.hardware import free_memory_bytes

    free = free_memory_bytes()
    verdicts = check_budgets(comparison, kld_budget=kld_budget, n_ctx=budget_ctx, free_bytes=free) if kld_budget else []
    if as_json:
        document = {"text": text} | comparison.to_json()
        if verdicts:
            document["budget"] = {
                "kld_budget": kld_budget,
                "n_ctx": budget_ctx,
                "free_bytes": free,
                "chosen": next((one.candidate.name for one in verdicts if one.chosen), None),
                "candidates": [one.to_json() for one in verdicts],
            }
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        _tables(comparison, text["path"], quiet)
        if verdicts:
            _budget(verdicts, kld_budget or 0.0, budget_ctx, free)
        elif not quiet:
            _lesson(comparison)
    if options["csv_file"]:
        options["csv_file"].write_text(to_csv(comparison), encoding="utf-8", newline="")
    if options["html_file"]:
        named = f"{_named(text['path'])} (sha256 {text['sha256']})"
        options["html_file"].write_text(to_html(comparison, text=named), encoding="utf-8")
    if options["plot_file"]:
        plot(comparison, options["plot_file"])
    for path in filter(None, (options[name] for name in _WRITTEN)):
        if not quiet:
            click.echo(f"wrote {path}", err=True)


def _named(text_file: str) -> str:
    return "standard input" if text_file == "-" else Path(text_file).name


def _tables(comparison: Comparison, text: str, quiet: bool) -> None:
    """Print what each candidate lost, then what each model takes: two tables that 80 columns hold."""
    from llamalite.cli import _text
    from llamalite.evaluation.comparison import N_GENERATED
    from llamalite.evaluation.recommendation import short_names

    scored = comparison.candidates[0].divergence
    assert scored is not None  # a candidate always has one
    base, everyone = comparison.reference, (comparison.reference, *comparison.candidates)
    names = short_names(comparison)
    state = "" if comparison.complete else "; stopped early"
    _wrapped(
        f"{scored.n_tokens:,} tokens of {_text.clean(_named(text))} scored, in chunks of "
        f"{comparison.protocol['n_ctx']}{state}. The reference is {base.name}."
    )
    click.echo()
    rows = [(names[base.path], _pm(scored.ppl_base, scored.ppl_base_err), *[""] * 5)]
    for one in comparison.candidates:
        found = one.divergence
        assert found is not None
        change = f"{100 * (found.ppl_ratio - 1):+.2f} ± {found.ppl_ratio_err:.2%}"
        digits = 5 if found.mean_kld_err >= 5e-6 or found.mean_kld == 0 else 6
        rows.append(
            (names[one.path], _pm(found.ppl, found.ppl_err), change, _pm(found.mean_kld, found.mean_kld_err, digits),
             f"{found.same_top_p:.2%}", f"{found.p99_kld:.4f}", f"{found.rms_delta_p:.2%}")
        )  # fmt: skip
    quality = ("QUALITY", "PPL", "CHANGE", "MEAN KLD", "SAME TOP", "99% KLD", "RMS Δp")
    left_out = _text.table(quality, rows, optional=(6, 5), end=True)
    click.echo()
    running = [
        (names[one.path], _text.size(one.n_bytes), f"{one.bits_per_weight:.2f}", f"{one.running.pp_tok_per_s:,.1f}",
         f"{one.running.tg_tok_per_s:,.1f}", f"{one.running.load_s:.2f}", _text.size(one.running.memory_bytes))
        for one in everyone
    ]  # fmt: skip
    _text.table(("SIZE AND SPEED", "FILE", "BPW", "PROMPT t/s", "GENERATED t/s", "LOAD s", "MEMORY"), running, end=True)
    if quiet:
        return
    click.echo()
    _text.labelled("PPL", "perplexity, and its CHANGE from the reference: lower is better", 10)
    _text.labelled("MEAN KLD", "how far next-token probabilities moved, in nats: lower is better", 10)
    _text.labelled("SAME TOP", "how often the likeliest token stayed the same: higher is better", 10)
    if left_out:
        _text.labelled("", f"{' and '.join(left_out)} in a wider terminal, and in --csv and --json", 10)
    else:
        _text.labelled("99% KLD", "the worst hundredth of the tokens begins here: lower is better", 10)
        _text.labelled("RMS Δp", "how far the text's token changed in probability: lower is better", 10)
    _text.labelled("t/s", f"rough; GENERATED is the median of {N_GENERATED} tokens; see llamalite bench", 10)


def _lesson(comparison: Comparison) -> None:
    from llamalite.evaluation.recommendation import recommend

    click.echo()
    _wrapped(recommend(comparison))


def _wrapped(text: str) -> None:
    """Print `text` in lines of the terminal's width, at most 100 columns; in a pipe in one."""
    from llamalite.cli import _text

    if sys.stdout.isatty():
        text = textwrap.fill(text, min(_text.width(), 101) - 1, break_on_hyphens=False)
    click.echo(text)


def _pm(value: float, error: float, digits: int = 4) -> str:
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _budget(verdicts: list[Any], kld_budget: float, n_ctx: int, free: int) -> None:
    from llamalite.cli import _text

    click.echo()
    _wrapped(
        f"The smallest with a mean KLD of at most {kld_budget:g} that the free memory, {_text.size(free)}, holds "
        f"with {n_ctx:,} tokens of context:"
    )
    room = max(len(one.candidate.name) for one in verdicts)
    room = max(12, min(room, _text.width() - 53)) if sys.stdout.isatty() else room
    for one in verdicts:
        kld = f"KLD {one.mean_kld:.5f} {'≤' if one.within_budget else '>'} {kld_budget:g}"
        need = f"needs {_text.size(one.needed.total_bytes)} {'≤' if one.fits else '>'} {_text.size(free)}"
        mark = "→" if one.chosen else " "
        click.echo(f"{mark} {_text.short(one.candidate.name, room, end=True):{room}}  {kld:<23}{need}")
    if not any(one.chosen for one in verdicts):
        click.echo("None of them: allow a larger budget, add larger types with -t, or free memory.")
