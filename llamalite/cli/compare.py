"""llamalite compare: what each quantization of a model costs, against the model itself."""

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

from llamalite.cli import _options
from llamalite.cli.convert import complete_quant_types, quant_types

if TYPE_CHECKING:
    from llamalite.evaluation.comparison import Comparison, Standing


@click.command("compare")
@click.argument("reference")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("-f", "--file", "text_file", required=True, metavar="TEXT",
              help="The text, taken as bytes; - reads standard input.")  # fmt: skip
@click.option("-t", "--type", "qtypes", multiple=True, metavar="TYPE", callback=quant_types,
              shell_complete=complete_quant_types,
              help="Make a candidate of this type from REFERENCE; repeatable.")  # fmt: skip
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
              help="Name the smallest candidate whose mean KLD is at most X and that fits this machine.")  # fmt: skip
@click.option("--budget-ctx", type=_options.COUNT, default=4096, show_default=True, metavar="N",
              help="The context that --kld-budget plans memory for.")  # fmt: skip
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
    """Compare MODELs with REFERENCE over the same text: perplexity, KL divergence, top tokens, size and speed.

    MODELs are GGUF files, names in the models folder, folders of checkpoints, or org/name[:TYPE], and so is REFERENCE,
    whose checkpoint is compared with as it is, not quantized; -t makes candidates from it. All models are computed in
    lockstep, and no logits are stored. Ctrl-C prints what stands.

    \b
    Examples:
      llamalite compare demo-BF16 demo-Q8_0 demo-Q4_K_M -f wiki.test.raw --chunks 32
      llamalite compare ./checkpoint -t Q8_0 -t Q4_K_M -t Q2_K -f wiki.test.raw --html study.html
      llamalite compare ./checkpoint -t Q6_K -t Q4_K_M -t Q3_K_M -f wiki.test.raw --kld-budget 0.05
    """
    from llamalite.cli import _hub
    from llamalite.evaluation.comparison import iter_compare
    from llamalite.evaluation.decoding import Protocol
    from llamalite.evaluation.plots import check_plot
    from llamalite.evaluation.windows import without_newline

    if not models and not qtypes:
        raise click.UsageError("nothing to compare REFERENCE with: name models, or types to make with -t")
    if options["plot_file"]:
        check_plot(options["plot_file"])  # now, not after an hour
    offload = _options.offload(options)
    names = ("n_ctx", "n_batch", "chunks", "exact", "n_threads")
    protocol = Protocol(**{name: options[name] for name in names})
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
            _show(standing.comparison(), text, kld_budget, budget_ctx, as_json, options)
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
    from llamalite.evaluation.study import make_candidates

    importance = Importance.load(imatrix) if imatrix else None
    source = Path(reference) if Path(reference).is_dir() else _hub.located(ctx, reference)
    if source.is_file() and not qtypes:
        yield source, []
        return
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llamalite-")))
        with tqdm(unit="B", unit_scale=True, leave=False, disable=hidden, desc="converting") as bar:

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
) -> None:
    from llamalite.evaluation.page import to_csv, to_html
    from llamalite.evaluation.plots import plot
    from llamalite.evaluation.study import judge
    from llamalite.hardware import free_memory_bytes

    free = free_memory_bytes()
    verdicts = judge(comparison, kld_budget=kld_budget, n_ctx=budget_ctx, free_bytes=free) if kld_budget else []
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
        _table(comparison)
        if verdicts:
            _budget(verdicts, kld_budget or 0.0, budget_ctx, free)
    if options["csv_file"]:
        options["csv_file"].write_text(to_csv(comparison), encoding="utf-8", newline="")
    if options["html_file"]:
        options["html_file"].write_text(to_html(comparison), encoding="utf-8")
    if options["plot_file"]:
        plot(comparison, options["plot_file"])


def _table(comparison: Comparison) -> None:
    scored = comparison.candidates[0].divergence
    assert scored is not None  # a candidate always has one
    base = comparison.reference
    state = "" if comparison.complete else ", stopped early"
    click.echo(f"{scored.n_tokens:,} tokens scored in chunks of {comparison.protocol['n_ctx']}{state}\n")
    heading = f"{'model':<24}{'MiB':>9}{'bpw':>6}{'PPL':>19}{'PPL, paired':>19}{'mean KLD':>21}{'99% KLD':>9}"
    click.secho(f"{heading}{'same top':>10}{'RMS Δp':>8}", bold=True)
    for one in (base, *comparison.candidates):
        line = f"{_short(one.name, 23):<24}{one.n_bytes / 2**20:>9,.1f}{one.bits_per_weight:>6.2f}"
        if (found := one.divergence) is None:
            line += f"{_pm(scored.ppl_base, scored.ppl_base_err):>19}"
        else:
            line += f"{_pm(found.ppl, found.ppl_err):>19}{_pm(found.ppl_diff, found.ppl_diff_err, sign='+'):>19}"
            line += f"{_pm(found.mean_kld, found.mean_kld_err, 6):>21}{found.p99_kld:>9.4f}"
            line += f"{found.same_top_p:>10.2%}{found.rms_delta_p:>8.2%}"
        click.echo(line)
    click.secho(f"\n{'model':<24}{'prompt t/s':>12}{'generated t/s':>15}{'load s':>9}{'memory MiB':>12}", bold=True)
    for one in (base, *comparison.candidates):
        run = one.running
        line = f"{_short(one.name, 23):<24}{run.pp_tok_per_s:>12,.1f}{run.tg_tok_per_s:>15,.1f}{run.load_s:>9.2f}"
        click.echo(f"{line}{run.memory_bytes / 2**20:>12,.0f}")


def _pm(value: float, error: float, digits: int = 4, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f} ± {error:.{digits}f}"


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[1 - width :]


def _budget(verdicts: list[Any], kld_budget: float, n_ctx: int, free: int) -> None:
    click.echo(f"\nwithin a mean KLD of {kld_budget:g}, and {free / 2**30:.2f} GiB of free memory at {n_ctx} tokens:")
    for one in verdicts:
        kld = f"KLD {one.mean_kld:.6f} {'≤' if one.within_budget else '>'} {kld_budget:g}"
        need = f"needs {one.needed.total_bytes / 2**30:.2f} GiB {'≤' if one.fits else '>'} {free / 2**30:.2f}"
        mark = "→" if one.chosen else " "
        click.echo(f"{mark} {_short(one.candidate.name, 27):<28}{kld:<28}{need}")
    if not any(one.chosen for one in verdicts):
        click.echo("none of them: allow a larger budget, add larger types with -t, or free memory")
