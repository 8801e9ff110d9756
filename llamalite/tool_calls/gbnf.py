"""Texts of GBNF, llama.cpp's language of grammars: literals, and grammars that can stand beside each other."""

from __future__ import annotations

import re

_PARTS = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[a-zA-Z][a-zA-Z0-9-]*|.', re.DOTALL)


def renamed(grammar: str, prefix: str) -> str:
    """Return `grammar` with `prefix` before the name of every rule, so that it can stand beside others.

    >>> renamed('root ::= "a" [a-z] rest\\nrest ::= "root"', "x-")
    'x-root ::= "a" [a-z] x-rest\\nx-rest ::= "root"'
    """
    return _PARTS.sub(lambda part: prefix + part[0] if part[0][0].isalpha() else part[0], grammar)


def literal(text: str) -> str:
    """Return `text` as a literal of GBNF."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
