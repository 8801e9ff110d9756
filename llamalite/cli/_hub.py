"""What the verbs share about models: MODEL becomes a file, and what is fetched or converted for it is told."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamalite import store
from llamalite.cli import _text

if TYPE_CHECKING:
    from llamalite.model import Model

_PATIENCE_S = 0.5


def checkpoint(ctx: click.Context, source: str, revision: str | None) -> Path:
    """Return the folder or file that `source` names, fetched from the hub where it is ``org/name`` and no path."""
    from llamalite import hub

    if not hub.is_repo_id(source):
        if revision is not None:
            raise click.UsageError(f"--revision is for a repository of the hub, and {source} is none")
        return Path(source)
    with _telling(ctx) as announce:
        return hub.fetch_checkpoint(source, revision, announce=announce, progress=_bars(ctx))


def model(ctx: click.Context, reference: str) -> Path:
    """Return the GGUF file that `reference` means (`llamalite.kept.obtain`), fetched and converted where need be."""
    if store.is_path(reference) and Path(reference).is_file():
        return Path(reference)  # nothing is imported for what is plain
    from llamalite import kept

    with _telling(ctx) as announce, contextlib.ExitStack() as stack:
        bar = None

        def show(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                from tqdm import tqdm

                bar = stack.enter_context(tqdm(unit="B", unit_scale=True, desc="converting", leave=False))
            bar.total = total
            bar.update(done - bar.n)

        return kept.obtain(reference, announce=announce, bars=_bars(ctx), progress=show if _bars(ctx) else None)


def located(ctx: click.Context, reference: str) -> Path:
    """Return the GGUF file or the checkpoint's folder that `reference` means, fetched where need be, not converted."""
    from llamalite import hub, kept

    repo_id, qtype = hub.split_type(reference)
    if not hub.is_repo_id(repo_id):
        found = kept.locate(reference)
        if found.is_file() and not store.is_path(reference) and store.is_checkpoint(Path(reference)):
            here = f"./{_text.clean(reference)}"
            click.echo(f"{here[2:]} is {found.name} of the models folder; the checkpoint here is {here}", err=True)
        return found
    with _telling(ctx) as announce:
        return hub.fetch_model(repo_id, qtype, announce=announce, progress=_bars(ctx))


@contextlib.contextmanager
def _telling(ctx: click.Context) -> Iterator[Callable[[str], None] | None]:
    """Yield what shows a line on standard error, None if quiet.

    "asking ..." is shown while the answer is waited for, and stays only if there is one: what went wrong is one line.
    """
    if ctx.obj["quiet"]:
        yield None
        return
    waiting, on_terminal = "", sys.stderr.isatty()

    def say(line: str) -> None:
        nonlocal waiting
        settle()
        if line.startswith("asking "):
            waiting = line
            click.echo(_text.clean(line) if on_terminal else "", err=True, nl=False)
        else:
            click.echo(_text.clean(line), err=True)

    def settle() -> None:
        nonlocal waiting
        if waiting:
            click.echo("" if on_terminal else waiting, err=True)
        waiting = ""

    try:
        yield say
        settle()
    except BaseException:
        if waiting and on_terminal:
            _wipe(waiting)
        raise


def _bars(ctx: click.Context) -> bool:
    return not ctx.obj["quiet"] and sys.stderr.isatty()


def load(ctx: click.Context, path: Path, **options: Any) -> Model:
    """Return the `llamalite.Model` of `path`; a terminal shows "Loading NAME …" while that takes long."""
    from llamalite.model import Model

    with _waiting(ctx, f"Loading {path.name} …"):
        return Model(path, **options)


@contextlib.contextmanager
def _waiting(ctx: click.Context, text: str) -> Iterator[None]:
    """Show `text` on a terminal from half a second on, as long as the block lasts."""
    if ctx.obj["quiet"] or ctx.obj["verbose"] or not sys.stderr.isatty():  # with -v the log tells what happens
        yield
        return
    import threading

    shown = _text.short(_text.clean(text), _text.width() - 1)
    told: list[bool] = []

    def tell() -> None:
        told.append(True)
        click.echo(shown, err=True, nl=False)

    timer = threading.Timer(_PATIENCE_S, tell)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if told:
            _wipe(shown)


def _wipe(line: str) -> None:
    """Take `line` away again, before which the cursor was at a line's begin."""
    # Spaces, no escape sequence: click would leave that out where NO_COLOR is set.
    click.echo(f"\r{' ' * _text.columns(line)}\r", err=True, nl=False)
