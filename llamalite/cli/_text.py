"""How all verbs write sizes, counts and short texts, and read text files."""

from __future__ import annotations

import itertools
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

MAX_COLUMNS = 100  # of text and bars, even on a wider terminal
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def size(n_bytes: float) -> str:
    """Return a readable size, in powers of 1024 as in llama.cpp's tools.

    >>> size(668_788_096), size(25e9), size(980), size(3_781_216)
    ('638 MiB', '23.3 GiB', '980 bytes', '3.61 MiB')
    """
    for unit, name in _UNITS:
        if n_bytes >= 0.9995 * unit:
            value = n_bytes / unit
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {name}"
    return f"{n_bytes:.0f} bytes"


def sums(rows: Sequence[Sequence[int]]) -> tuple[str, list[list[str]]]:
    """Return a unit, and each of `rows` (bytes) as numbers in that unit followed by their sum.

    The numbers are rounded so that they add up as printed.

    >>> sums([[1_400_000, 1_400_000, 2_900_000]])
    ('MiB', [['1.34', '1.33', '2.77', '5.44']])
    """
    largest = max(sum(row) for row in rows)
    unit, name = next(((unit, name) for unit, name in _UNITS if largest >= unit), _UNITS[-1])
    lines = []
    for row in rows:
        # A part is the difference of two rounded running sums, so it is off by a hundredth at most.
        ends = [round(100 * sum(row[:n]) / unit) for n in range(len(row) + 1)]
        hundredths = [end - start for start, end in itertools.pairwise(ends)]
        lines.append([f"{n / 100:,.2f}" for n in (*hundredths, ends[-1])])
    return name, lines


def count(n: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "token"), count(0, "token"), count(1200, "token")
    ('1 token', '0 tokens', '1,200 tokens')
    """
    return f"{n:,} {noun if n == 1 else noun + 's'}"


def width() -> int:
    """Return the columns of the terminal; 80 if there is none."""
    return shutil.get_terminal_size().columns


def columns(text: str) -> int:
    """Return how many columns `text` takes on a terminal: wide characters take two, combining marks none.

    >>> columns("llama"), columns("羊驼"), columns("e\u0301")
    (5, 4, 1)
    """
    return sum(map(_character_columns, text))


def _character_columns(character: str) -> int:
    if " " <= character <= "~":
        return 1
    if character == "\t":
        return 8  # at most
    if unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def read(path: Path) -> str:
    """Return the text of the UTF-8 file `path`, without a byte-order mark, with ``\\n`` line ends.

    ``ValueError`` names the file and the first byte that is not UTF-8.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        hint = ", which looks like UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ValueError(f"{path} is not UTF-8 text: {place}{hint}; save it as UTF-8") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def clean(text: str) -> str:
    """Return `text` with its control characters escaped: an untrusted file must not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(text: str, n_columns: int, *, end: bool = False) -> str:
    """Return `text` cut to `n_columns` columns; `end` keeps its end: a model's name ends with its type."""
    if len(text) <= n_columns:
        return text
    return "…" + text[len(text) - max(0, n_columns - 1) :] if end else text[: max(0, n_columns - 1)] + "…"
