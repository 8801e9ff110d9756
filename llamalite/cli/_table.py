"""The tables of all verbs, in aligned columns or in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from llamalite.cli import _text

Row = Sequence[str]


def print_table(
    head: Row | None,
    rows: Sequence[Row],
    left: Sequence[int] = (0,),
    *,
    optional: Sequence[int] = (),
    shrinking: int = 0,
    keep_end: bool = False,
    indent: int = 0,
) -> list[str]:
    """Print `rows` under `head`, with the columns `left` left-aligned; return the heads of the omitted columns.

    A table that is too wide for the terminal loses its `optional` columns one by one; then its column `shrinking` is
    cut at the end, or with `keep_end` at the beginning. In a pipe it is printed whole. Two spaces separate columns.
    Cells may be styled by click.
    """
    lines = [*([head] if head else []), *rows]
    if not lines:
        return []
    widths = _widths(lines)
    shown = list(range(len(widths)))
    if sys.stdout.isatty():
        for column in optional:
            if indent + sum(widths[i] + 2 for i in shown) - 2 >= _text.width():
                shown.remove(column)
        others = sum(widths[i] + 2 for i in shown if i != shrinking)
        widths[shrinking] = min(widths[shrinking], max(12, _text.width() - 1 - indent - others))
        lines = [_shortened(line, shrinking, widths[shrinking], keep_end=keep_end) for line in lines]
    for line in lines:
        cells = [_padded(line[i], widths[i], to_left=i in left) for i in shown]
        click.secho((" " * indent + "  ".join(cells)).rstrip(), bold=True if line is lines[0] and head else None)
    return [head[i] for i in range(len(widths)) if i not in shown] if head else []


def print_markdown(head: Row, rows: Sequence[Row]) -> None:
    """Print a table in Markdown, the first column aligned to the left, the others to the right."""
    widths = _widths([head, *rows])
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    titles = [_padded(cell, width, to_left=True) for cell, width in zip(head, widths, strict=True)]
    lines = [titles, rule, *([_padded(row[i], widths[i], to_left=i == 0) for i in range(len(widths))] for row in rows)]
    for line in lines:
        click.echo(f"| {' | '.join(line)} |")


def markdown_width(head: Row, rows: Sequence[Row]) -> int:
    """Return the width of the table that `print_markdown` prints."""
    return sum(width + 3 for width in _widths([head, *rows])) + 1


def _widths(lines: Sequence[Row]) -> list[int]:
    return [max(map(_width, column)) for column in zip(*lines, strict=True)]


def _width(cell: str) -> int:
    return len(click.unstyle(cell))


def _padded(cell: str, width: int, *, to_left: bool) -> str:
    space = " " * (width - _width(cell))
    return cell + space if to_left else space + cell


def _shortened(line: Row, column: int, width: int, *, keep_end: bool) -> list[str]:
    return [_text.short(cell, width, end=keep_end) if i == column else cell for i, cell in enumerate(line)]
