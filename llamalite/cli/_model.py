"""What the verbs share about MODEL: `llamalite.store` finds it, and the terminal shows what is fetched or converted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamalite import store
from llamalite.cli import _text
from llamalite.cli._progress import is_watched, progress_bar

if TYPE_CHECKING:
    from llamalite.model import Model

_PATIENCE_S = 0.5


def checkpoint(ctx: click.Context, source: str, revision: str | None) -> Path:
    """Return the folder or file that `source` names, fetched from the hub where it is ``org/name`` and no path."""
    from llamalite.store import hub

    if not hub.is_repo_id(source):
        if revision is not None:
            raise click.UsageError(f"--revision is for a repository of the hub, and {source} is none")
        return Path(source)
    with _announcing(ctx) as announce:
        return hub.fetch_checkpoint(source, revision, announce=announce, progress=is_watched(ctx.obj, sys.stderr))


def obtain(ctx: click.Context, model: str) -> Path:
    """Return the GGUF file that `model` means (`llamalite.store.obtain`), fetched and converted where need be."""
    with _announcing(ctx) as announce, contextlib.ExitStack() as stack:
        bar = None

        def show(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(progress_bar(ctx.obj, "iB", "converting"))
            bar.move_to(done, total)

        bars = is_watched(ctx.obj, sys.stderr)
        return store.obtain(model, announce=announce, bars=bars, progress=show if bars else None)


def locate(ctx: click.Context, model: str) -> Path:
    """Return the GGUF file or the checkpoint's folder that `model` means (`llamalite.store.locate`)."""
    with _announcing(ctx) as announce:
        return store.locate(model, announce=announce, bars=is_watched(ctx.obj, sys.stderr))


@contextlib.contextmanager
def _announcing(ctx: click.Context) -> Iterator[Callable[[str], None] | None]:
    """Yield a function that shows a line on standard error, None if quiet.

    What the hub is asked (`llamalite.store.hub.Question`) is shown while the answer is waited for, and stays only if
    there is one: what went wrong is one line.
    """
    if ctx.obj["quiet"]:
        yield None
        return
    from llamalite.store.hub import Question

    pending, on_terminal = "", sys.stderr.isatty()

    def show(line: str) -> None:
        nonlocal pending
        settle()
        if isinstance(line, Question):
            pending = line
            click.echo(_text.clean(line) if on_terminal else "", err=True, nl=False)
        else:
            click.echo(_text.clean(line), err=True)

    def settle() -> None:
        nonlocal pending
        if pending:
            click.echo("" if on_terminal else pending, err=True)
        pending = ""

    try:
        yield show
        settle()
    except BaseException:
        if pending and on_terminal:
            _wipe(pending)
        raise


def load(ctx: click.Context, path: Path, **options: Any) -> Model:
    """Return the `llamalite.Model` of `path`; a terminal shows "Loading NAME …" while that takes long."""
    from llamalite.model import Model

    with _waiting(ctx, f"Loading {path.name} …"):
        return Model(path, **options)


@contextlib.contextmanager
def _waiting(ctx: click.Context, text: str) -> Iterator[None]:
    """Show `text` on a terminal from half a second on, as long as the block lasts."""
    if ctx.obj["verbose"] or not is_watched(ctx.obj, sys.stderr):  # with -v the log tells what happens
        yield
        return
    import threading

    line = _text.short(_text.clean(text), _text.width() - 1)
    was_shown = threading.Event()

    def show() -> None:
        was_shown.set()
        click.echo(line, err=True, nl=False)

    timer = threading.Timer(_PATIENCE_S, show)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if was_shown.is_set():
            _wipe(line)


def _wipe(line: str) -> None:
    """Take `line` away again, before which the cursor was at a line's begin."""
    # Spaces, no escape sequence: click would leave that out where NO_COLOR is set.
    click.echo(f"\r{' ' * _text.columns(line)}\r", err=True, nl=False)
