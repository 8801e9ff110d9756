"""Keeps what a user typed from becoming a control token.

`guard` puts a mark into every control token that a message spells out. Rendered text then holds a control token only
where the template itself wrote it; `split` cuts the text there and removes the marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_MARK = "\U000f0000"  # a private-use character: ordinary text has none, and no tokenizer gives it a meaning


def strings(value: Any) -> Iterator[str]:
    """Yield every string inside messages or tools, without the keys of dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from strings(member)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


def guard(value: Any, spellings: Iterable[str]) -> Any:
    """Return a copy of messages or tools in which no text contains any of `spellings`, the control tokens.

    The mark comes after the first character of each spelling, so that a template can still test how a text starts or
    ends.
    """
    pattern = _pattern(spellings)

    def mark(text: str) -> str:
        return pattern.sub(lambda match: match[0][0] + _MARK + match[0][1:], text.replace(_MARK, ""))

    def copy(part: Any) -> Any:
        if isinstance(part, str):
            return mark(part)
        if isinstance(part, Mapping):
            return {key: copy(member) for key, member in part.items()}
        if isinstance(part, (list, tuple)):
            return [copy(item) for item in part]
        return part

    return copy(value)


def split(rendered: str, spellings: Iterable[str]) -> list[tuple[str, bool]]:
    """Cut rendered text into parts (text, whether it is a control token), in order, without the marks of `guard`.

    >>> split("<s>hi <\\U000f0000s>", ["<s>"])
    [('<s>', True), ('hi <s>', False)]
    """
    pattern, parts, end = _pattern(spellings), [], 0
    for match in pattern.finditer(rendered):
        parts += [(rendered[end : match.start()], False), (match[0], True)]
        end = match.end()
    parts.append((rendered[end:], False))
    return [(text.replace(_MARK, ""), is_control) for text, is_control in parts if text]


def _pattern(spellings: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
