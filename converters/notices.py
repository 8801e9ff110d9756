"""What a conversion warns of: it goes to the log, and into the report of the conversion that it belongs to.

with collected() as warnings:
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
    """Log a warning, ``%`` and all as `logging` has it, and note it for `collected`."""
    _logger.warning(message, *arguments)
    warnings = _collected.get()
    if warnings is not None:
        warnings.append(message % arguments if arguments else message)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Gather what this thread warns of meanwhile, and no other one's."""
    warnings: list[str] = []
    token = _collected.set(warnings)
    try:
        yield warnings
    finally:
        _collected.reset(token)
