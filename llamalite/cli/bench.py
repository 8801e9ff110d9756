"""``llamalite bench``: measures how fast a model reads and generates here, and the memory that it takes."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click

from llamalite.cli import _options, _text
from llamalite.cli._progress import is_watched, progress_bar
from llamalite.cli._table import markdown_width, print_markdown
from llamalite.cli._wrapping import print_labelled

_SETTINGS = ("n_batch", "n_ubatch", "kv_type", "n_gpu_layers")


def _list_of(kind: Any) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...]]:
    """Return a callback that parses values separated by commas, each of the parameter type `kind`."""

    def parse(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[Any, ...]:
        return () if value is None else tuple(kind.convert(part, param, ctx) for part in value.split(","))

    return parse


def _layers(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int | str, ...]:
    return tuple(_options.layers(part) for part in value.split(","))


@click.command("bench")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("-p", "--prompt", "n_prompt", type=_options.COUNT_OR_NONE, default=512, show_default=True,
              metavar="N", help="Tokens of the prompt; 0 skips this test.")  # fmt: skip
@click.option("-n", "--generate", "n_generate", type=_options.COUNT_OR_NONE, default=128, show_default=True,
              metavar="N", help="Tokens to generate; 0 skips this test.")  # fmt: skip
@click.option("-r", "--repetitions", type=_options.COUNT, default=5, show_default=True, metavar="N",
              help="Measurements of each test, after a warm-up.")  # fmt: skip
@click.option("--threads", "n_threads", callback=_list_of(_options.THREADS), metavar="N,N",
              help="Number of threads. Default: the physical cores.")  # fmt: skip
@click.option("--batch", "n_batch", default="2048", show_default=True, callback=_list_of(_options.COUNT), metavar="N,N",
              help="Tokens in a batch.")  # fmt: skip
@click.option("--ubatch", "n_ubatch", default="512", show_default=True, callback=_list_of(_options.COUNT),
              metavar="N,N", help="Tokens computed together.")  # fmt: skip
@click.option("--kv-type", "kv_types", default="F16", show_default=True, callback=_list_of(_options.KV_TYPE),
              metavar="T,T",
              help="Types of the KV cache: F32, F16, Q8_0, ...")  # fmt: skip
@click.option("--gpu-layers", "n_gpu_layers", default="0", show_default=True, callback=_layers, metavar="N,N",
              help="Layers on the GPU: auto, all, or numbers.")  # fmt: skip
@click.option("--device", metavar="NAME", help="The GPU to use, by its name in llamalite doctor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
    **options: Any,
) -> None:
    """Measure how fast MODEL reads a prompt and generates tokens, as llama-bench does: mean ± standard deviation.

    MODEL is a GGUF file, a name in the models folder, the folder of a checkpoint, or org/name[:TYPE]. For options
    with several values (N,N), every combination is measured. With several models, each runs in its own process, to
    measure its own peak memory.

    \b
    Examples:
      llamalite bench demo
      llamalite bench demo-Q8_0 demo-Q4_K_M --threads 2,4 --json
    """
    from llamalite.cli import _model

    wanted = options.pop("n_gpu_layers")
    offload = [_options.offload({"gpu_layers": layers, "device": options["device"]}) for layers in wanted]
    options["n_gpu_layers"] = tuple(arguments["n_gpu_layers"] for arguments in offload)
    paths = [str(_model.obtain(ctx, model)) for model in models]
    rows = _measure_in_processes(paths, options) if len(paths) > 1 else _measure(paths[0], ctx.obj, options)
    if as_json:
        from llamalite.native import library

        click.echo(json.dumps({"versions": library.version(), "rows": rows}, indent=2))
    elif as_csv:
        click.echo(_csv(rows), nl=False)
    else:
        _print_tables(rows)
        if is_watched(ctx.obj, sys.stdout):
            _print_explanation(options)


def _measure(path: str, settings: dict[str, Any], options: dict[str, Any]) -> list[dict[str, Any]]:
    from llamalite.performance.benchmark import BenchPlan, iter_bench

    plan = BenchPlan(**{name: value for name, value in options.items() if value != ()})
    with progress_bar(settings, "test") as bar:
        rows = []
        for row in iter_bench(path, plan):
            rows.append(row.to_json())
            bar.move_to(len(rows), figures=f"{row.test} {row.tok_per_s:,.1f} tokens/s")
    return rows


def _measure_in_processes(paths: list[str], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Run this command for each model in a process of its own, and return all rows."""
    flags = {"n_prompt": "-p", "n_generate": "-n", "repetitions": "-r", "n_threads": "--threads", "n_batch": "--batch",
             "n_ubatch": "--ubatch", "kv_types": "--kv-type", "n_gpu_layers": "--gpu-layers",
             "device": "--device"}  # fmt: skip
    typed = []
    for name, value in options.items():
        if value != () and value is not None:
            parts = value if isinstance(value, tuple) else (value,)
            typed += [flags[name], ",".join("all" if part == -1 else str(part) for part in parts)]
    from llamalite.native.child import ONLY_INSTALLED

    rows: list[dict[str, Any]] = []
    for path in paths:
        program = [sys.executable, "-c", ONLY_INSTALLED + "from llamalite.cli import main; main()"]
        program += ["bench", path, "--json", *typed]
        child = subprocess.run(program, stdout=subprocess.PIPE, check=False)
        if child.returncode:
            raise click.exceptions.Exit(child.returncode)  # the child has printed the reason on our standard error
        rows += json.loads(child.stdout)["rows"]
    return rows


def _csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    flat = [row | {"samples_s": " ".join(f"{sample:.6f}" for sample in row["samples_s"])} for row in rows]
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _print_explanation(options: dict[str, Any]) -> None:
    n_prompt, n_generate = options["n_prompt"], options["n_generate"]
    tests = [f"pp{n_prompt}: a prompt of {_text.count(n_prompt, 'token')} is read"] if n_prompt else []
    tests += [f"tg{n_generate}: {_text.count(n_generate, 'token')} generated, one at a time"] if n_generate else []
    share = "; bandwidth: bytes read to generate, and their share of the memory's bandwidth" if n_generate else ""
    click.echo()
    print_labelled("", f"{'; '.join(tests)}; mean ± standard deviation of {options['repetitions']}{share}.", 0)


def _print_tables(rows: list[dict[str, Any]]) -> None:
    """Print the rows in Markdown, with a column for each setting that differs; as two tables if one is too wide."""
    settings = ["n_threads", *(name for name in _SETTINGS if len({row[name] for row in rows}) > 1)]
    keys, columns = (
        ["model", *settings, "test"],
        ("MiB", "tokens/s", "first token s", "bandwidth", "peak MiB", "load s"),
    )
    cells: dict[str, list[str]] = {name: [] for name in (*keys, *columns)}
    for row in rows:
        share = row["bandwidth_share"]
        texts = {
            "model": row["model"].removesuffix(".gguf"),
            **{name: str(row[name]) for name in settings},
            "test": row["test"],
            "MiB": f"{row['n_bytes'] / 2**20:,.1f}",
            "tokens/s": f"{row['tok_per_s']:,.2f} ± {row['tok_per_s_sd']:.2f}",
            "first token s": "" if row["ttft_s"] is None else f"{row['ttft_s']:.3f}",
            "bandwidth": "" if share is None else f"{row['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, {share:.0%}",
            "peak MiB": f"{row['peak_memory_bytes'] / 2**20:,.0f}",
            "load s": f"{row['load_s']:.2f}",
        }
        for name, cell in texts.items():
            cells[name].append(cell)
    room = _text.width() if sys.stdout.isatty() else sys.maxsize
    wide = ["model", "MiB", *settings, "test", *columns[1:]]
    if _width(cells, wide) < room:
        _print(cells, wide)
        return
    # If even two tables are too wide, names are cut at the beginning: they end with the type.
    tables = [[*keys, "tokens/s", "first token s"], [*keys, "bandwidth", "MiB", "peak MiB", "load s"]]
    excess = max(0, max(_width(cells, names) for names in tables) - room + 1)
    longest = max(12, max(map(len, cells["model"])) - excess)
    cells["model"] = [_text.short(name, longest, end=True) for name in cells["model"]]
    _print(cells, tables[0])
    click.echo()
    _print(cells, tables[1])


def _rows(cells: dict[str, list[str]], names: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*(cells[name] for name in names), strict=True))


def _width(cells: dict[str, list[str]], names: list[str]) -> int:
    return markdown_width(names, _rows(cells, names))


def _print(cells: dict[str, list[str]], names: list[str]) -> None:
    print_markdown(names, _rows(cells, names))
