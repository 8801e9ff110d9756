"""``llamalite remove``: deletes models from the models folder."""

from __future__ import annotations

import sys
from typing import Any

import click

from llamalite.cli import _text


@click.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-y", "--yes", is_flag=True, help="Delete without asking.")
@click.pass_obj
def command(settings: dict[str, Any], names: tuple[str, ...], yes: bool) -> None:
    """Delete the models NAME from the models folder: all files of each, with its note.

    `llamalite list` shows the names. Nothing outside the folder is deleted, not even what a link in it points to. On
    a terminal you are asked first; elsewhere --yes is required.

    \b
    Examples:
      llamalite remove demo-Q2_K
      llamalite remove demo-BF16 demo-Q8_0 --yes
    """
    from llamalite import store

    # All names are looked up before anything is deleted, as one may be wrong.
    files_by_name = {name: store.files_to_remove(name) for name in dict.fromkeys(names)}
    files = list(dict.fromkeys(path for paths in files_by_name.values() for path in paths))
    n_bytes = sum(path.lstat().st_size for path in files)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("this deletes files, and there is no terminal for a question: add --yes")
        for path in files:
            click.echo(f"  {_text.size(path.lstat().st_size):>10}  {_text.clean(str(path))}", err=True)
        question = f"Delete {'it' if len(files) == 1 else f'these {len(files)} files'}?"
        if not click.confirm(question, default=False, err=True):
            click.echo("Nothing removed.", err=True)
            raise click.exceptions.Exit(1)  # the exit code of click's own `abort`
    for path in files:
        path.unlink()
    if not settings["quiet"]:
        removed = _text.count(len(files_by_name), "model")
        click.echo(f"{removed} removed, {_text.size(n_bytes)} freed in {_text.clean(str(store.models_folder()))}")
