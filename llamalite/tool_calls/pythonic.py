"""Calls written as Python, as Llama 3.2 and 4 were taught: ``[weather(city="Paris", days=2), now()]``.

>>> read_python_call('weather(city="Paris", days=2)')
('weather', {'city': 'Paris', 'days': 2})
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from llamalite.generation.json_schema import grammar_of
from llamalite.tool_calls.gbnf import literal, renamed

_JSON_NAMES = {"true": True, "false": False, "null": None}


def read_python_call(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of one call; ``ValueError`` if it is not a call with named literals."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a Python call: {error}") from None
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, (ast.Name, ast.Attribute)):
        raise ValueError(f"not a call with named arguments: {text!r:.80}")
    arguments = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError(f"not a call with named arguments: {text!r:.80}")
        arguments[keyword.arg] = _value(keyword.value)
    return ast.unparse(call.func), arguments


def _value(node: ast.expr) -> Any:
    """Return a literal's value; JSON's names for true, false and null count as literals."""

    class Named(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return ast.Constant(_JSON_NAMES[node.id]) if node.id in _JSON_NAMES else node

    return ast.literal_eval(Named().visit(node))


def end_of_call(text: str, start: int) -> int:
    """Return where the call that begins at `start` ends, after its ")"; -1 while it goes on."""
    depth, quote, at = 0, "", start
    while at < len(text):
        char = text[at]
        if quote:
            if char == "\\":
                at += 1
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return -1


def python_arguments(schema: Mapping[str, Any]) -> str:
    """Return a grammar of ``a=1, b="x"`` for the properties of `schema`; ``ValueError`` as for JSON.

    Required arguments come first, in their order; values are written as in JSON, which is also Python but for three
    names, and those are written as Python does.
    """
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        raise ValueError(f"'properties' must be an object, found {properties!r:.60}")
    required = [name for name in properties if name in schema.get("required", [])]
    optional = [name for name in properties if name not in required]
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    rules, pairs = [], {}
    for i, name in enumerate([*required, *optional]):
        if not name.isidentifier():
            raise ValueError(f"{name!r} cannot be the name of an argument in Python")
        own = properties[name]
        grammar = grammar_of({**own, **shared} if isinstance(own, Mapping) else own)
        grammar = grammar.replace('boolean ::= "true" | "false"', 'boolean ::= "True" | "False"')
        rules.append(renamed(grammar.replace('null ::= "null"', 'null ::= "None"'), f"a{i}-"))
        pairs[name] = f"{literal(name + '=')} a{i}-root"
    body = ' ", " '.join(pairs[name] for name in required)
    if required:
        body += "".join(f' (", " {pairs[name]})?' for name in optional)
    else:  # any of them may come first
        firsts = [
            pairs[name] + "".join(f' (", " {pairs[later]})?' for later in optional[i + 1 :])
            for i, name in enumerate(optional)
        ]
        body = f"({' | '.join(firsts)})?" if firsts else '""'
    return "\n".join([f"root ::= {body}", *rules])
