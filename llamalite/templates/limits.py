"""Limits on a chat template's time and text, checked before the text is made.

jinja2's own sandbox limits neither. Every check raises jinja2's ``SecurityError``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError

MAX_SECONDS = 2.0  # of computation for one template; the longest real ones take a hundredth of it
MAX_TEXT = 1 << 24  # characters of any one text that a template makes, including its output
MAX_FILTERED = 1 << 22  # characters that a filter may be given: the clock is not checked while it runs
_MAX_REPEATED = 1_000_000  # characters or items that one `*` of a template may make
_MAX_WIDTH = 100_000  # of padding and indentation
_MAX_BITS = 1 << 13  # of a whole number: Python refuses to write much larger ones in decimals
_MAX_EXPONENT = 64
# Width and precision in a format: digits, or * or {, which mean that an argument sets them.
_SPECS = {
    "%": re.compile(r"%(?:\([^)]*\))?[-+ #0]*([0-9*]*\.?[0-9*]*)"),
    "format": re.compile(r"\{[^{}]*:([^{}]*\{?)"),
}
_PADDING = frozenset("batch center expandtabs indent ljust rjust round slice tojson truncate zfill".split())
_WRITING = frozenset("% format forceescape join replace string tojson translate urlencode".split())


def rough_length(value: Any, budget: int = MAX_TEXT) -> int:
    """Return roughly how many characters `value` takes when written out; counting stops above `budget`."""
    if isinstance(value, str):
        return len(value)
    n = 8
    if isinstance(value, (list, tuple, Mapping)):
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        for part in parts:
            n += 2 + rough_length(part, budget - n)
            if n > budget:
                break
    return n


def check_length(n: int) -> None:
    """Refuse a text of `n` characters if that is more than `MAX_TEXT`."""
    if n > MAX_TEXT:
        raise SecurityError(f"it would make a text of {n} characters or more; at most {MAX_TEXT} are allowed")


def check_written(value: Any) -> Any:
    """Return `value`, which is about to be written out; refuse it if its text would be too long."""
    if not isinstance(value, str):
        check_length(rough_length(value))
    return value


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse ``left operator right`` if the result, a text, a list or a number, would be too large."""
    for sequence, times in ((left, right), (right, left)):
        repeats = isinstance(sequence, (str, list, tuple)) and isinstance(times, int)
        if operator == "*" and repeats and len(sequence) * times > _MAX_REPEATED:
            raise SecurityError(f"it would make a text or list of {len(sequence) * times} parts")
    if operator == "**" and isinstance(right, (int, float)) and abs(right) > _MAX_EXPONENT:
        raise SecurityError(f"it would raise a number to the power of {right}")
    if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        n_bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
        if n_bits > _MAX_BITS:
            raise SecurityError(f"it would make a number of {n_bits} bits")
    if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        check_length(len(left) + len(right))
    if operator == "%" and isinstance(left, str):
        check_call("%", (left, right), {})


def check_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call of a filter or a method of str that would make a text that is too long."""
    arguments = [*args, *kwargs.values()]
    if name in _PADDING and any(isinstance(value, int) and abs(value) > _MAX_WIDTH for value in arguments[1:]):
        raise SecurityError(f"it would call {name!r} with a width above {_MAX_WIDTH}")
    if name in ("expandtabs", "indent", "tojson"):
        n_places = (
            rough_length(arguments[0]) // 8 if name == "tojson" else arguments[0].count("\n") + arguments[0].count("\t")
        )
        widths = [abs(value) if isinstance(value, int) else rough_length(value) for value in arguments[1:]]
        check_length(n_places * max([8, *widths]))
    # jinja2 calls `sum` with its environment and the items first, then the template's arguments.
    if name == "sum" and any(isinstance(value, (list, tuple)) for value in arguments[2:]):
        raise SecurityError("it would call 'sum' on lists")
    if name not in _WRITING:
        return
    texts = [value for value in arguments if isinstance(value, str)]
    check_length(sum(rough_length(value) for value in arguments))
    if name in _SPECS and texts:
        _check_format(name, texts[0])
    if name == "replace" and len(texts) > 2:
        check_length((texts[0].count(texts[1]) + 1) * len(texts[2]) + len(texts[0]))
    if name == "join":
        sequences = [value for value in arguments if isinstance(value, (list, tuple, str, Mapping, range))]
        check_length(max(map(len, sequences), default=0) * max(map(len, texts), default=0))
    if name == "translate" and len(arguments) > 1:
        check_length(len(arguments[0]) * rough_length(arguments[1]))


def _check_format(kind: str, text: str) -> None:
    specs = _SPECS[kind].findall(text)
    if any(character in spec for spec in specs for character in "*{"):
        raise SecurityError("it would use a format whose width an argument sets")
    check_length(sum(int(n[:9]) for spec in specs for n in re.findall("[0-9]+", spec)))
