"""The warnings of a conversion: each goes to the log, and into the report of its own conversion.

with collect_warnings() as warnings:
    warn("%s has %d pieces for an embedding of %d rows: the last are left out", path, 32001, 32000)
warnings        # ["tokenizer.model has 32001 pieces ..."]
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar

_logger = logging.getLogger(__name__)
_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def warn(message: str, *arguments: object) -> None:
    """Log a warning, with `logging`'s ``%`` placeholders, and add it to the list of `collect_warnings`."""
    _logger.warning(message, *arguments)
    warnings = _collected.get()
    if warnings is not None:
        warnings.append(message % arguments if arguments else message)


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Yield a list that receives the warnings of this thread, and of no other, while the block runs."""
    warnings: list[str] = []
    token = _collected.set(warnings)
    try:
        yield warnings
    finally:
        _collected.reset(token)
