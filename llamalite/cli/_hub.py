"""What the verbs share about the hub: an ``org/name`` is fetched, and every request is announced on standard error."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from llamalite import hub


def checkpoint(ctx: click.Context, source: str, revision: str | None) -> Path:
    """Return the folder or file that `source` names, fetched from the hub where it is ``org/name`` and no path."""
    if not hub.is_repo_id(source):
        if revision is not None:
            raise click.UsageError(f"--revision is for a repository of the hub, and {source} is none")
        return Path(source)
    return hub.fetch_checkpoint(source, revision, announce=_announcer(ctx), progress=_bars(ctx))


def model(ctx: click.Context, reference: str) -> str:
    """Return what `reference` names: itself, or for ``org/name-GGUF[:TYPE]`` the path of the file that was fetched."""
    repo_id, qtype = hub.split_type(reference)
    if not hub.is_repo_id(repo_id):
        return reference
    return str(hub.fetch_gguf(repo_id, qtype, announce=_announcer(ctx), progress=_bars(ctx)))


def _announcer(ctx: click.Context) -> hub.Announce | None:
    return None if ctx.obj["quiet"] else lambda line: click.echo(line, err=True)


def _bars(ctx: click.Context) -> bool:
    return not ctx.obj["quiet"] and sys.stderr.isatty()
