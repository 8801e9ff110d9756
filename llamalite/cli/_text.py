"""How the verbs write sizes, counts and tables, and read texts."""

from __future__ import annotations

import itertools
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import click

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def size(n_bytes: float) -> str:
    """Return a size for people, in powers of 1024 as llama.cpp's tools print it.

    >>> size(668_788_096), size(25e9), size(980), size(3_781_216)
    ('638 MiB', '23.3 GiB', '980 bytes', '3.61 MiB')
    """
    for unit, name in _UNITS:
        if n_bytes >= 0.9995 * unit:
            value = n_bytes / unit
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {name}"
    return f"{n_bytes:.0f} bytes"


def sums(rows: Sequence[Sequence[int]]) -> tuple[str, list[list[str]]]:
    """Return a unit, and each of `rows` (bytes) as numbers in it with their sum behind them: as printed, they add up.

    >>> sums([[1_400_000, 1_400_000, 2_900_000]])
    ('MiB', [['1.34', '1.33', '2.77', '5.44']])
    """
    largest = max(sum(row) for row in rows)
    unit, name = next((one for one in _UNITS if largest >= one[0]), _UNITS[-1])
    shown = []
    for row in rows:
        # Running sums are rounded and the parts are what lies between, at most a hundredth from what they would be.
        ends = [round(100 * sum(row[:n]) / unit) for n in range(len(row) + 1)]
        hundredths = [end - start for start, end in itertools.pairwise(ends)]
        shown.append([f"{one / 100:,.2f}" for one in (*hundredths, ends[-1])])
    return name, shown


def count(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun.

    >>> count(1, "token"), count(0, "token"), count(1200, "token")
    ('1 token', '0 tokens', '1,200 tokens')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def width() -> int:
    """Return the columns that there are: the terminal's, without one 80."""
    return shutil.get_terminal_size().columns


def columns(text: str) -> int:
    """Return how many columns a terminal gives `text`: two to a wide character, none to a mark on another one.

    >>> columns("llama"), columns("羊驼"), columns("e\u0301")
    (5, 4, 1)
    """
    return sum(_columns(one) for one in text)


def _columns(one: str) -> int:
    if " " <= one <= "~":
        return 1
    if one == "\t":
        return 8  # at the most
    if unicodedata.category(one) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(one) in ("W", "F") else 1


def read(path: Path) -> str:
    """Return the text in the file at `path`: UTF-8, with or without a mark at its start, lines that end in any way.

    ``ValueError`` names the file and the first byte that is no UTF-8.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        hint = ", which looks like UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ValueError(f"{path} is no UTF-8 text: {found}{hint}; save it as UTF-8") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def clean(text: str) -> str:
    """Return `text` in one line without what would steer the terminal: it may come from a stranger's file."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def short(text: str, room: int, *, end: bool = False) -> str:
    """Return `text` cut to `room` columns: its beginning, or its `end`, where a model's name has the type."""
    if len(text) <= room:
        return text
    return "…" + text[len(text) - max(0, room - 1) :] if end else text[: max(0, room - 1)] + "…"


def labelled(label: str, text: str, room: int) -> None:
    """Print `text` behind `label`, which takes `room` columns, wrapped between words; from a file it may come."""
    import textwrap

    lines = textwrap.wrap(
        clean(text), max(30, min(width(), 100) - room - 3), break_on_hyphens=False, break_long_words=False
    )
    for n, line in enumerate(lines or [""]):
        click.echo(f"  {label if n == 0 else '':{room}}{line}")


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[int] = (0,),
    *,
    optional: Sequence[int] = (),
    end: bool = False,
) -> list[str]:
    """Print `rows` in columns under `head`, those in `left` to the left; on a terminal they keep to its width.

    There the columns `optional` are left out one by one, then the first column gives way (of a name that is too long
    its `end` is kept, or its beginning). In a pipe nothing is cut. Spaces part the columns, no tabs and no lines.
    Return the names of the columns left out.
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    shown = list(range(len(head)))
    if sys.stdout.isatty():
        for i in optional:
            if sum(widths[one] + 2 for one in shown) - 2 >= width():
                shown.remove(i)
        rest = sum(widths[i] + 2 for i in shown[1:])
        widths[0] = min(widths[0], max(12, width() - 1 - rest))
    for n, row in enumerate((head, *rows)):
        first = short(row[0], widths[0], end=end) if sys.stdout.isatty() else row[0]
        cells = [first, *row[1:]]
        line = "  ".join(cells[i].ljust(widths[i]) if i in left else cells[i].rjust(widths[i]) for i in shown)
        click.secho(line.rstrip(), bold=True if n == 0 else None)
    return [head[i] for i in range(len(head)) if i not in shown]
