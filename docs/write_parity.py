"""Write the parity table in docs/converter.md from what tests/test_conversion_parity.py compares.

    python docs/write_parity.py

A cell says that a test compares the bytes of the whole file with llama.cpp's: ``=`` without an importance matrix, ``≡``
with one. A test compares the page with this program's output.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "converter.md"
BEGIN, END = "<!-- parity table -->", "<!-- end of the parity table -->"


def table() -> str:
    """Return the table: a row for each type and option, a column for each shape."""
    sys.path.insert(0, str(ROOT / "tests"))
    import test_conversion_parity as tests

    from llamalite.quant_types import FILE_TYPES

    shapes = list(tests.SHAPES)
    lines = [f"| type | {' | '.join(shapes)} |", "|---" * (len(shapes) + 1) + "|"]
    for row in (*FILE_TYPES, *tests.RECIPES):
        cells = [tests.compared(shape, row) for shape in shapes]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """Return `text` with the table between its marks renewed."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
