"""A grammar for tool calls: the format's fixed texts, and arguments that match the schema of the tool that is called.

    print(grammar_of_calls(call_format(None), tools, parallel=False))
    root ::= call
    call ::= "\\n{\\"name\\": \\"" "add" "\\", \\"arguments\\": " tool0-root "}\\n</tool_call>"
    tool0-root ::= ...

The opening text is not part of it: it is in the prompt by then.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamalite.generation.json_schema import grammar_of
from llamalite.tool_calls.formats import CallFormat
from llamalite.tool_calls.gbnf import literal, renamed
from llamalite.tool_calls.pythonic import python_arguments
from llamalite.tool_calls.tools import Tool

_ANY_OBJECT = {"type": "object"}


def grammar_of_calls(form: CallFormat, tools: Sequence[Tool], *, parallel: bool) -> str:
    """Return the GBNF grammar of one call of `tools`, or of several with `parallel` where the format has that.

    A schema that a grammar cannot express is relaxed to any object; ``ValueError`` if that tool is strict.
    """
    rules, calls = [], []
    for i, tool in enumerate(tools):
        grammar = _arguments(form, tool)
        rules.append(renamed(grammar, f"tool{i}-"))
        name, middle, tail = literal(tool.name), literal(form.middle), literal(form.tail)
        calls.append(f"{name} {middle} tool{i}-root {tail}")
    # Python writes one "[" before all calls, JSON formats a head before each.
    is_python = form.name.startswith("pythonic")
    first = "" if is_python else f"{literal(form.head)} "
    call = f"{first}({' | '.join(calls)})"
    more = f" ({literal(form.separator)} call)*" if parallel and form.allows_several else ""
    opening = literal("[") if is_python or form.name == "mistral" else '""'
    closing = literal(form.closing)
    if form.short_ids:
        tail = f'", \\"id\\": \\"" [a-zA-Z0-9] [a-zA-Z0-9] {"[a-zA-Z0-9] " * 7}"\\"}}"'
        call = call.replace(f" {literal(form.tail)}", f" {tail}")
    return "\n".join([f"root ::= {opening} call{more} {closing}", f"call ::= {call}", *rules])


def _arguments(form: CallFormat, tool: Tool) -> str:
    write = python_arguments if form.name.startswith("pythonic") else grammar_of
    schema = dict(tool.parameters)
    if "type" not in schema and not {"$ref", "anyOf", "oneOf", "allOf"} & set(schema):
        schema["type"] = "object"
    try:
        if schema.get("type", "object") != "object":
            raise ValueError(f"arguments are an object, found the type {schema['type']!r:.40}")
        return write(schema)
    except ValueError as error:
        if tool.is_strict:
            raise ValueError(f"the parameters of tool {tool.name!r}: {error}") from None
        return write(_ANY_OBJECT)
