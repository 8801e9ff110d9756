"""``llamalite list``: lists the models in the models folder.

The module is not called ``list``: as an attribute of the package, it would hide Python's own ``list`` there.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from llamalite.cli import _text
from llamalite.cli._progress import is_watched
from llamalite.cli._table import print_table


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def command(settings: dict[str, Any], as_json: bool) -> None:
    """List the models in the models folder, and whether they fit into the free memory.

    The folder is LLAMALITE_MODELS, or else in the user's data folder. FITS says whether the weights, and the context
    that `llamalite run` uses by default, fit into the memory that is free now.

    \b
    Examples:
      llamalite list
      llamalite list --json
    """
    from llamalite import hardware, store
    from llamalite.store.inspection import summary

    free = hardware.free_memory_bytes()
    rows = [summary(path, free) for path in store.list_models()]
    if as_json:
        click.echo(json.dumps({"folder": str(store.models_folder()), "models": rows}, indent=2, allow_nan=False))
        return
    if not rows:
        folder = _text.clean(str(store.models_folder()))
        click.echo(f"no models in {folder} yet: llamalite run demo, or llamalite convert CHECKPOINT")
        return
    print_table(
        ("NAME", "SIZE", "TYPE", "BPW", "CONTEXT", "TEMPLATE", "FITS"), [_cells(row) for row in rows], left=(0, 2, 5, 6)
    )
    for row in rows:
        if row["problem"] and not settings["quiet"]:
            click.echo(f"{_text.clean(row['name'])}: {_text.clean(row['problem'])}", err=True)
    if is_watched(settings, sys.stdout):
        total = _text.size(sum(row["n_bytes"] for row in rows))
        click.echo(f"\n{_text.count(len(rows), 'model')}, {total}, in {_text.clean(str(store.models_folder()))}")
        click.echo("Next: llamalite run NAME, llamalite inspect NAME, llamalite remove NAME")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    fits = {True: "yes", False: "no", None: "-"}[row["fits"]]
    if row["problem"]:
        fits = "damaged" if row["type"] is None else "no model"
    n_ctx = row["n_ctx_train"]
    return (
        _text.clean(row["name"]),
        _text.size(row["n_bytes"]),
        row["type"] or "-",
        f"{row['bits_per_weight']:.2f}" if row["bits_per_weight"] else "-",
        str(n_ctx) if n_ctx else "-",
        {True: "yes", False: "no", None: "-"}[row["has_template"]],
        fits,
    )
