"""Finds and loads MODEL for all verbs (`llamalite.store`), and shows what it downloads, converts or loads."""

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

_DELAY_S = 0.5


def checkpoint(ctx: click.Context, source: str, revision: str | None) -> Path:
    """Return the folder or file `source`; if it is ``org/name`` and not a path, download it from the hub."""
    from llamalite.store import hub

    if not hub.is_repo_id(source):
        if revision is not None:
            raise click.UsageError(f"--revision needs a repository on the hub (org/name), found {source}")
        return Path(source)
    with _announcing(ctx) as announce:
        return hub.fetch_checkpoint(source, revision, announce=announce, progress=is_watched(ctx.obj, sys.stderr))


def obtain(ctx: click.Context, model: str) -> Path:
    """Return the GGUF file that `model` means (`llamalite.store.obtain`), downloaded and converted if necessary."""
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
    """Yield a function that prints a line on standard error; None with -q.

    On a terminal, a `llamalite.store.hub.Question` is shown at once and wiped if an error follows, so that a failure is
    one line. Elsewhere, it is printed only once it has been answered.
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
    """Load the `llamalite.Model` at `path`; a terminal shows "Loading NAME …" if that takes long."""
    from llamalite.model import Model

    with _waiting(ctx, f"Loading {path.name} …"):
        return Model(path, **options)


@contextlib.contextmanager
def _waiting(ctx: click.Context, text: str) -> Iterator[None]:
    """Show `text` on a terminal while the block runs, after half a second."""
    if ctx.obj["verbose"] or not is_watched(ctx.obj, sys.stderr):  # with -v the log shows what happens
        yield
        return
    import threading

    line = _text.short(_text.clean(text), _text.width() - 1)
    was_shown = threading.Event()

    def show() -> None:
        was_shown.set()
        click.echo(line, err=True, nl=False)

    timer = threading.Timer(_DELAY_S, show)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if was_shown.is_set():
            _wipe(line)


def _wipe(line: str) -> None:
    """Erase `line`, which is the only text on the terminal's current line."""
    # With spaces: click removes escape sequences if NO_COLOR is set.
    click.echo(f"\r{' ' * _text.columns(line)}\r", err=True, nl=False)
