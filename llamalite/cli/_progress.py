"""The progress bar of all verbs, and whether a person is there to see it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from llamalite.cli import _text

if TYPE_CHECKING:
    from tqdm import tqdm


def is_watched(settings: dict[str, Any], stream: IO[str]) -> bool:
    """Return whether a person may be watching `stream`: it is a terminal, and -q is not given."""
    return not settings["quiet"] and stream.isatty()


class ProgressBar:
    """A progress bar whose total may become known later."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def move_to(self, done: int, total: int | None = None, figures: str = "") -> None:
        """Show `done` of `total`, followed by `figures`."""
        if total is not None:
            self._bar.total = total
        if figures:
            self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update(done - self._bar.n)

    def clear(self) -> None:
        """Erase the bar, so that a message can be printed; the next `move_to` draws it again."""
        self._bar.clear()


@contextmanager
def progress_bar(
    settings: dict[str, Any], unit: str, doing: str = "", total: int | None = None
) -> Iterator[ProgressBar]:
    """Show a bar on standard error while the block runs, if `is_watched`. The `unit` of bytes is "iB"."""
    from tqdm import tqdm

    with tqdm(
        desc=doing or None,
        total=total,
        unit=unit,
        unit_scale=unit == "iB",
        unit_divisor=1024,
        leave=False,
        ncols=min(_text.width(), _text.MAX_COLUMNS),
        disable=not is_watched(settings, sys.stderr),
    ) as bar:
        yield ProgressBar(bar)
