"""``llamalite doctor``: what this machine has, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llamalite.cli import _options, _text
from llamalite.cli._progress import progress_bar
from llamalite.cli._table import print_table
from llamalite.cli._wrapping import print_labelled

if TYPE_CHECKING:
    from llamalite.benchmark import Row
    from llamalite.diagnosis import Fitting, Machine
    from llamalite.native.verdict import LibraryVerdict

_ROOM = 12  # columns of a label
_PROMPT, _GENERATED, _REPETITIONS = 64, 32, 2  # of the measurement: seconds, not minutes, on a model of some billions


@click.command("doctor")
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--threads", is_flag=True, help="Measure which number of threads is fastest for MODEL; takes a minute.")
@click.option("--ctx", "n_ctx", type=_options.COUNT, default=8192, show_default=True, metavar="N",
              help="Tokens of context that memory is planned for.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(ctx: click.Context, model: str | None, threads: bool, n_ctx: int, as_json: bool) -> None:
    """Show what this machine has, which models fit it, and how fast they can be.

    A CPU reads all weights from memory for every token that it generates, so the speed of the memory, measured for
    about a second, says how many tokens a second a model can reach at most. With MODEL it tells that of your own too.
    --threads without MODEL measures on the largest model of the models folder that fits, or on demo.

    \b
    Examples:
      llamalite doctor
      llamalite doctor TinyLlama-1.1B
      llamalite doctor TinyLlama-1.1B --threads
    """
    from llamalite import diagnosis
    from llamalite.gguf_check import checked_header
    from llamalite.native import verdict

    if not as_json:
        _trial(verdict.current())  # first: where llama.cpp cannot run, it is all that can be said
    path = _measured_model(ctx, model, threads)
    machine = diagnosis.examine()
    of_model = None
    if path is not None:
        header = checked_header(path)
        of_model = diagnosis.fitting(header, machine, n_ctx=min(n_ctx, header.n_ctx_train))
    rows = _measure(ctx, path, diagnosis.thread_counts(machine)) if threads and path is not None else []
    best = diagnosis.best_threads(row for _, row in rows) if rows else None
    largest = diagnosis.shapes_that_fit(machine, n_ctx=n_ctx)
    usual = diagnosis.usual_type(machine, n_ctx=n_ctx)
    if as_json:
        document = machine.to_json() | {"threads": best.n_threads if best else machine.n_usable}
        document |= {"largest": [vars(one) for one in largest], "usual": [vars(one) for one in usual]}
        document |= {"model": vars(of_model) if of_model else None}
        document |= {"measured": [row.to_json() for both in rows for row in both]}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    _machine(machine)
    _follows(machine, largest, of_model, best)
    _fitting(largest, usual)
    if best is not None and of_model is not None and path is not None:
        _threads(rows, best, of_model.name, path)


def _measured_model(ctx: click.Context, model: str | None, threads: bool) -> Path | None:
    """Return the file of MODEL; where threads are to be measured without one, the largest that there is."""
    from llamalite import hardware, store
    from llamalite.cli import _model

    if model is not None or not threads:
        return _model.obtain(ctx, model) if model is not None else None
    most = hardware.free_memory_bytes() // 2
    fitting = [path for path in store.list_models() if path.stat().st_size < most]
    found = max(fitting, key=lambda path: path.stat().st_size, default=None) or _model.obtain(ctx, "demo")
    if found.stat().st_size < 100e6 and not ctx.obj["quiet"]:
        click.echo(f"{found.name} is small, and the caches hold it: name a larger MODEL to know what counts", err=True)
    return found


def _measure(ctx: click.Context, path: Path, counts: list[int]) -> list[tuple[Row, Row]]:
    """Return for each number of threads how fast a prompt is read, and how fast tokens are generated."""
    from llamalite.benchmark import Plan, iter_bench

    plan = Plan(n_prompt=_PROMPT, n_generate=_GENERATED, repetitions=_REPETITIONS, n_threads=counts)
    with progress_bar(ctx.obj, "test", path.name, total=2 * len(counts)) as bar:
        rows = []
        for row in iter_bench(path, plan):
            rows.append(row)
            bar.move_to(len(rows))
    return list(zip(rows[::2], rows[1::2], strict=True))


def _line(label: str, text: str) -> None:
    print_labelled(label, text, _ROOM)


def _trial(verdict: LibraryVerdict) -> None:
    """Show what the installed llama.cpp did when it was tried on this processor."""
    from llamalite.native import building

    click.secho("llama.cpp on this processor", bold=True)
    if verdict.untried is not None:
        _line("not tried", verdict.untried)
    elif not verdict.n_types:
        _line("not tried", "LLAMALITE_TRIAL is off")
    elif not verdict.faults:
        _line("tried", f"{verdict.n_types} weight types, a prompt and an answer of each: all right")
    for line in verdict.lines():
        _line("fails", line)
    if not verdict.extra_buffers:
        _line("left off", f"{verdict.buffers}: prompts are read more slowly")
    elif verdict.uses_amx:
        _line("uses", "AMX")
    if verdict.faults:
        _line("mend it", building.command())
    click.echo()


def _machine(machine: Machine) -> None:
    from llamalite.native import devices

    cores = f"{machine.n_cores} physical" if machine.n_cores else "physical unknown"
    click.secho("This machine", bold=True)
    _line("processor", machine.processor)
    _line(
        "cores",
        f"{cores}, {machine.n_usable} usable here; {_text.count(machine.n_hardware_threads, 'hardware thread')}",
    )
    _line("uses", " ".join(one.name for one in machine.features if one.used) or "no vector instructions known")
    _line("misses", " ".join(machine.missed) or ("nothing" if machine.features else "unknown"))
    if machine.unknown:
        _line("unknown", f"whether there is {' '.join(machine.unknown)}: this system does not tell")
    total = _text.size(machine.total_bytes) if machine.total_bytes else "size unknown"
    _line("memory", f"{total}, {_text.size(machine.free_bytes)} free; {machine.bandwidth_bytes_per_s / 1e9:.1f} GB/s "
                    f"measured with {_text.count(machine.n_usable, 'thread')}")  # fmt: skip
    _line("backends", ", ".join(devices.backends()))
    for one in machine.devices:
        if one.kind != "cpu":
            memory = f", {_text.size(one.free_bytes)} of {_text.size(one.total_bytes)} free" if one.total_bytes else ""
            _line("device", f"{one.name}: {one.description} ({one.kind}){memory}")
    _line("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items()))


def _follows(machine: Machine, found: list[Fitting], of_model: Fitting | None, best: Row | None) -> None:
    from llamalite.native import building, devices

    click.secho("\nWhat follows", bold=True)
    if best is None:
        _line("threads", f"{machine.n_usable}, the default; llamalite doctor MODEL --threads measures it")
    if machine.missed:
        _line("instructions", f"{' '.join(machine.missed)} would be used by a build made here: "
                              f"{building.command()}")  # fmt: skip
    if machine.supports_gpu:
        _line("GPU", "used for all layers; --gpu-layers and --device say otherwise")
    elif devices.gpu_at_hand():
        _line("GPU", f"this build does not use it; for one that does: {devices.reinstall()}")
    else:
        _line("GPU", "none found, and none in this build; with one see docs/install.md, A GPU")
    if of_model is not None:
        fits = "fits" if of_model.fits else "does not fit"
        _line("model", f"{of_model.name} needs {_text.size(of_model.needed_bytes)} with {of_model.n_ctx:,} tokens of "
                       f"context and {fits}; expected: at most {_speed(of_model.tok_per_s)} tokens/s")  # fmt: skip
    largest = max((one for one in found if one.fits), key=lambda one: one.n_params, default=None)
    if largest is None:
        _line("models", f"not even {found[0].name} as {found[0].qtype} fits: free memory, or plan a shorter --ctx")
    else:
        _line("largest", f"{largest.name} as {largest.qtype}, with {largest.n_ctx:,} tokens of context")


def _fitting(largest: list[Fitting], usual: list[Fitting]) -> None:
    def best(one: Fitting) -> tuple[str, str, str]:
        if not one.fits:
            return "none fits", "-", "-"
        return one.qtype or "-", _text.size(one.needed_bytes), _speed(one.tok_per_s)

    click.echo()
    rows = [
        (one.name, f"{one.n_ctx:,}", *best(one), _text.size(other.needed_bytes),
         _speed(other.tok_per_s) if other.fits else "too large")
        for one, other in zip(largest, usual, strict=True)
    ]  # fmt: skip
    print_table(("MODEL", "CONTEXT", "BEST TYPE", "NEEDS", "TOKENS/S", "Q4_K_M NEEDS", "TOKENS/S"), rows, left=(0, 2))
    click.echo("BEST TYPE: the largest that fits. CONTEXT: --ctx, at most what the model was")
    click.echo("trained for. NEEDS: weights, cache and buffers, and the copy of 4-bit weights")
    click.echo("that llama.cpp makes for this processor. TOKENS/S: generated, at most, given the")
    click.echo("speed of the memory; llamalite bench MODEL measures it.")


def _threads(rows: list[tuple[Row, Row]], best: Row, name: str, path: Path) -> None:
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
