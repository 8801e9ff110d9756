"""``llamalite remove``: delete models from the models folder."""

from __future__ import annotations

import sys
from typing import Any

import click

from llamalite.cli import _text


@click.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def command(settings: dict[str, Any], names: tuple[str, ...], yes: bool) -> None:
    """Delete the models NAME from the models folder: all files of a split one, and what lies beside it.

    Names are those that `llamalite list` shows; nothing outside that folder is touched, and a link there is deleted
    without what it points to. On a terminal it asks first; elsewhere it wants --yes.

    \b
    Examples:
      llamalite remove demo-Q2_K
      llamalite remove demo-BF16 demo-Q8_0 --yes
    """
    from llamalite import store

    files_by_name = {
        name: store.files_to_remove(name) for name in dict.fromkeys(names)
    }  # before any is deleted: a name may be wrong
    files = list(dict.fromkeys(path for paths in files_by_name.values() for path in paths))
    n_bytes = sum(path.lstat().st_size for path in files)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("this deletes files, and nobody can be asked here: add --yes")
        for path in files:
            click.echo(f"  {_text.size(path.lstat().st_size):>10}  {_text.clean(str(path))}", err=True)
        question = f"Delete {'it' if len(files) == 1 else f'these {len(files)} files'}?"
        if not click.confirm(question, default=False, err=True):
            click.echo("Nothing removed.", err=True)
            raise click.exceptions.Exit(1)  # as click's own `abort` exits
    for path in files:
        path.unlink()
    if not settings["quiet"]:
        removed = _text.count(len(files_by_name), "model")
        click.echo(f"{removed} removed, {_text.size(n_bytes)} freed in {_text.clean(str(store.models_folder()))}")
