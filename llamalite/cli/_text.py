"""How the verbs write sizes, counts and tables."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

import click


def size(n_bytes: float) -> str:
    """Return a size for people, in decimal units as disks are sold.

    >>> size(668_788_096), size(25e9), size(980), size(3_781_216)
    ('669 MB', '25.0 GB', '980 bytes', '3.78 MB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= 0.9995 * unit:
            value = n_bytes / unit
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {name}"
    return f"{n_bytes:.0f} bytes"


def count(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun.

    >>> count(1, "token"), count(0, "token"), count(1200, "token")
    ('1 token', '0 tokens', '1,200 tokens')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def width() -> int:
    """Return the columns that there are: the terminal's, without one 80."""
    return shutil.get_terminal_size().columns


def clean(text: str) -> str:
    """Return `text` in one line without what would steer the terminal: it may come from a stranger's file."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def short(text: str, room: int) -> str:
    """Return `text` cut to `room` columns."""
    return text if len(text) <= room else text[: max(0, room - 1)] + "…"


def labelled(label: str, text: str, room: int) -> None:
    """Print `text` behind `label`, which takes `room` columns, wrapped between words; from a file it may come."""
    import textwrap

    lines = textwrap.wrap(
        clean(text), max(30, min(width(), 100) - room - 3), break_on_hyphens=False, break_long_words=False
    )
    for n, line in enumerate(lines or [""]):
        click.echo(f"  {label if n == 0 else '':{room}}{line}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Print `rows` in columns under `head`, those in `left` to the left; on a terminal the first one gives way.

    Spaces part the columns, no tabs and no lines: the same text in a pipe, where nothing is cut.
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    if sys.stdout.isatty():
        widths[0] = max(12, min(widths[0], width() - 1 - sum(widths[1:]) - 2 * (len(head) - 1)))
    for n, row in enumerate((head, *rows)):
        cells = [short(cell, widths[0]) if i == 0 and sys.stdout.isatty() else cell for i, cell in enumerate(row)]
        line = "  ".join(
            cell.ljust(room) if i in left else cell.rjust(room)
            for i, (cell, room) in enumerate(zip(cells, widths, strict=True))
        )
        click.secho(line.rstrip(), bold=True if n == 0 else None)
