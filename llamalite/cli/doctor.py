"""``llamalite doctor``: shows this machine, which models fit, and how fast they can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llamalite.cli import _options, _text
from llamalite.cli._progress import progress_bar
from llamalite.cli._table import print_table
from llamalite.cli._wrapping import print_labelled, print_wrapped

if TYPE_CHECKING:
    from llamalite.native.verdict import LibraryVerdict
    from llamalite.performance.benchmark import BenchRow
    from llamalite.performance.forecast import Forecast
    from llamalite.performance.machine import Machine

_LABEL_WIDTH = 12  # columns of a label
_PROMPT, _GENERATED, _REPETITIONS = 64, 32, 2  # measures a model of some billions of weights in seconds, not minutes


@click.command("doctor")
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--threads", is_flag=True, help="Measure which number of threads is fastest for MODEL; takes a minute.")
@click.option("--ctx", "n_ctx", type=_options.COUNT, default=8192, show_default=True, metavar="N",
              help="Tokens of context to plan memory for.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(ctx: click.Context, model: str | None, threads: bool, n_ctx: int, as_json: bool) -> None:
    """Show this machine, which models fit into its memory, and how fast they can be.

    To generate a token, a CPU reads all weights from memory. The memory's speed, which is measured for about a second,
    therefore limits the tokens per second of a model. With MODEL, that model is shown too. --threads without MODEL
    measures with the largest model in the models folder that fits, or with demo.

    \b
    Examples:
      llamalite doctor
      llamalite doctor TinyLlama-1.1B
      llamalite doctor TinyLlama-1.1B --threads
    """
    from llamalite.gguf_check import checked_header
    from llamalite.native import verdict
    from llamalite.performance.benchmark import best_threads, thread_counts
    from llamalite.performance.forecast import as_q4_k_m, forecast, largest_that_fit
    from llamalite.performance.machine import examine

    if not as_json:
        _print_trial(verdict.current())  # first: if llama.cpp cannot run, nothing below works
    path = _model_to_measure(ctx, model, threads)
    machine = examine()
    of_model = None
    if path is not None:
        header = checked_header(path)
        of_model = forecast(header, machine, n_ctx=min(n_ctx, header.n_ctx_train))
    rows = _measure(ctx, path, thread_counts(machine)) if threads and path is not None else []
    best = best_threads(generation for _, generation in rows) if rows else None
    largest = largest_that_fit(machine, n_ctx=n_ctx)
    q4_k_m = as_q4_k_m(machine, n_ctx=n_ctx)
    if as_json:
        document = machine.to_json() | {"threads": best.n_threads if best else machine.n_usable}
        document |= {
            "largest": [vars(expected) for expected in largest],
            "usual": [vars(expected) for expected in q4_k_m],
        }
        document |= {"model": vars(of_model) if of_model else None}
        document |= {"measured": [row.to_json() for both in rows for row in both]}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    _print_machine(machine)
    _print_conclusions(machine, largest, of_model, best)
    _print_models(largest, q4_k_m)
    if best is not None and of_model is not None and path is not None:
        _print_threads(rows, best, of_model.name, path)


def _model_to_measure(ctx: click.Context, model: str | None, threads: bool) -> Path | None:
    """Return the file of MODEL; to measure threads without MODEL, the largest that fits from the models folder."""
    from llamalite import hardware, store
    from llamalite.cli import _model

    if model is not None or not threads:
        return _model.obtain(ctx, model) if model is not None else None
    most = hardware.free_memory_bytes() // 2
    candidates = [path for path in store.list_models() if path.stat().st_size < most]
    path = max(candidates, key=lambda path: path.stat().st_size, default=None) or _model.obtain(ctx, "demo")
    if path.stat().st_size < 100e6 and not ctx.obj["quiet"]:
        click.echo(
            f"{path.name} is small and stays in the processor's caches: name a larger MODEL for a meaningful result",
            err=True,
        )
    return path


def _measure(ctx: click.Context, path: Path, counts: list[int]) -> list[tuple[BenchRow, BenchRow]]:
    """Return, for each number of threads, the row of a prompt and the row of a generation."""
    from llamalite.performance.benchmark import BenchPlan, iter_bench

    plan = BenchPlan(n_prompt=_PROMPT, n_generate=_GENERATED, repetitions=_REPETITIONS, n_threads=counts)
    with progress_bar(ctx.obj, "test", path.name, total=2 * len(counts)) as bar:
        rows = []
        for row in iter_bench(path, plan):
            rows.append(row)
            bar.move_to(len(rows))
    return list(zip(rows[::2], rows[1::2], strict=True))


def _print_line(label: str, text: str) -> None:
    print_labelled(label, text, _LABEL_WIDTH)


def _print_trial(verdict: LibraryVerdict) -> None:
    """Print what the trial of the installed llama.cpp on this processor found."""
    from llamalite.native import building

    click.secho("llama.cpp on this processor", bold=True)
    if verdict.untried is not None:
        _print_line("not tried", verdict.untried)
    elif not verdict.n_types:
        _print_line("not tried", "LLAMALITE_TRIAL is off")
    elif not verdict.faults:
        _print_line("tried", f"{verdict.n_types} weight types, with a prompt and an answer each: all correct")
    for line in verdict.lines():
        _print_line("fails", line)
    if not verdict.extra_buffers:
        _print_line("turned off", f"{verdict.buffers}: prompts may be read more slowly")
    elif verdict.uses_amx:
        _print_line("uses", "AMX")
    if verdict.faults:
        _print_line("to fix it", building.command())
    click.echo()


def _print_machine(machine: Machine) -> None:
    from llamalite.native import devices

    cores = f"{machine.n_cores} physical" if machine.n_cores else "physical unknown"
    click.secho("This machine", bold=True)
    _print_line("processor", machine.processor)
    _print_line(
        "cores",
        f"{cores}, {machine.n_usable} usable here; {_text.count(machine.n_hardware_threads, 'hardware thread')}",
    )
    _print_line(
        "uses", " ".join(feature.name for feature in machine.features if feature.used) or "no vector instructions known"
    )
    _print_line("misses", " ".join(machine.missed) or ("nothing" if machine.features else "unknown"))
    if machine.unknown:
        _print_line("unknown", f"whether there is {' '.join(machine.unknown)}: the operating system does not say")
    total = _text.size(machine.total_bytes) if machine.total_bytes else "size unknown"
    bandwidth = (
        f"{machine.bandwidth_bytes_per_s / 1e9:.1f} GB/s measured with {_text.count(machine.n_usable, 'thread')}"
    )
    _print_line("memory", f"{total}, {_text.size(machine.free_bytes)} free; {bandwidth}")
    _print_line("backends", ", ".join(devices.backends()))
    for device in machine.devices:
        if device.kind != "cpu":
            free = f", {_text.size(device.free_bytes)} of {_text.size(device.total_bytes)} free"
            memory = free if device.total_bytes else ""
            _print_line("device", f"{device.name}: {device.description} ({device.kind}){memory}")
    _print_line("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items()))


def _print_conclusions(
    machine: Machine, largest: list[Forecast], of_model: Forecast | None, best: BenchRow | None
) -> None:
    from llamalite.native import building, devices

    click.secho("\nConclusions", bold=True)
    if best is None:
        _print_line("threads", f"{machine.n_usable} by default; llamalite doctor MODEL --threads measures it")
    if machine.missed:
        _print_line("instructions", f"{' '.join(machine.missed)} would be used by a build made here: "
                              f"{building.command()}")  # fmt: skip
    if machine.supports_gpu:
        _print_line("GPU", "used for all layers, unless --gpu-layers and --device say otherwise")
    elif devices.has_gpu_driver():
        _print_line("GPU", f"this build does not use it; for one that does: {devices.gpu_install_command()}")
    else:
        _print_line("GPU", "none found, and this build uses none; to add one, see docs/install.md, A GPU")
    if of_model is not None:
        fits = "fits" if of_model.fits else "does not fit"
        needed = f"{of_model.name} needs {_text.size(of_model.needed_bytes)} with {of_model.n_ctx:,} tokens of context"
        _print_line("model", f"{needed} and {fits}; expected: at most {_speed(of_model.tok_per_s)} tokens/s")
    fitting = [expected for expected in largest if expected.fits]
    if not fitting:
        smallest = f"{largest[0].name} as {largest[0].qtype}"
        _print_line("models", f"not even {smallest} fits: free memory, or plan a shorter --ctx")
    else:
        most = max(fitting, key=lambda expected: expected.n_params)
        _print_line("largest", f"{most.name} as {most.qtype}, with {most.n_ctx:,} tokens of context")


def _print_models(largest: list[Forecast], q4_k_m: list[Forecast]) -> None:
    def best_type(expected: Forecast) -> tuple[str, str, str]:
        if not expected.fits:
            return "none fits", "-", "-"
        return expected.qtype or "-", _text.size(expected.needed_bytes), _speed(expected.tok_per_s)

    click.echo()
    rows = [
        (best.name, f"{best.n_ctx:,}", *best_type(best), _text.size(q4.needed_bytes),
         _speed(q4.tok_per_s) if q4.fits else "too large")
        for best, q4 in zip(largest, q4_k_m, strict=True)
    ]  # fmt: skip
    print_table(("MODEL", "CONTEXT", "BEST TYPE", "NEEDS", "TOKENS/S", "Q4_K_M NEEDS", "TOKENS/S"), rows, left=(0, 2))
    print_wrapped(
        "BEST TYPE: the largest that fits. CONTEXT: --ctx, or what the model was trained for, if that is less. NEEDS: "
        "weights, cache, buffers, and the copy of 4-bit weights that llama.cpp makes for this processor. TOKENS/S: the "
        "most that the memory's speed allows to generate; llamalite bench MODEL measures it.",
        in_pipes=True,
    )


def _print_threads(rows: list[tuple[BenchRow, BenchRow]], best: BenchRow, name: str, path: Path) -> None:
    from llamalite import store

    click.secho(f"\nThreads, measured on {_text.clean(name)}", bold=True)
    shown = [
        (str(row.n_threads), f"{prompt.tok_per_s:.1f}", f"{row.tok_per_s:.1f} ± {row.tok_per_s_sd:.1f}",
         f"{row.bandwidth_share:.0%}" if row.bandwidth_share is not None else "-", "best" if row is best else "")
        for prompt, row in rows
    ]  # fmt: skip
    print_table(("THREADS", "PROMPT", "TOKENS/S", "OF THE BANDWIDTH", ""), shown, left=(4,))
    click.echo(f"\nNext: llamalite run --threads {best.n_threads} {_text.clean(store.as_argument(path))}")


def _speed(tok_per_s: float) -> str:
    return f"{tok_per_s:,.1f}" if tok_per_s < 20 else f"{tok_per_s:,.0f}"
