"""How each family of chat templates writes tool calls, and which family a template belongs to.

    >>> call_format("... <tool_call> ... {{ tools }} ...").name
    'hermes'

    family           what the model writes                                                   recognised by
    hermes           <tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>             <tool_call>
    llama3           {"name": "f", "parameters": {...}}, perhaps after <|python_tag|>          "parameters": in a call
    mistral          [TOOL_CALLS][{"name": "f", "arguments": {...}, "id": "a1B2c3D4e"}]        [TOOL_CALLS]
    functionary-v3.1 <function=f>{...}</function>                                            <function=
    functionary-v3.2 f\\n{...} after the prompt's >>>, or all\\ntext                            >>>all
    pythonic         [f(a=1, b="x"), g()]                                                    [func_name1(
    generic          as hermes, and the tools are described in the system message            no tools in the template

A `CallFormat` is a row of such fixed texts: `opening` before the first call, then for each call `head`, its name,
`middle`, its arguments as a JSON object, and `tail`; `separator` between calls and `closing` after the last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llamalite.tool_calls.tools import Tool

Family = Literal[
    "hermes", "llama3", "mistral", "functionary-v3.1", "functionary-v3.2", "pythonic", "pythonic-tagged", "generic"
]


@dataclass(frozen=True)
class CallFormat:
    """The texts between which a family writes names and arguments.

    `markers` are control tokens that belong to the format: the text of an answer leaves control tokens out, and a
    parser has to see these. `allows_several` says whether one answer may hold several calls.
    """

    name: Family
    opening: str
    head: str
    middle: str
    tail: str
    separator: str
    closing: str = ""
    markers: tuple[str, ...] = ()
    allows_several: bool = True
    describes_tools: bool = False
    short_ids: bool = False


_HERMES = ("<tool_call>", '\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n<tool_call>")
_FORMATS: dict[Family, CallFormat] = {
    one.name: one
    for one in (
        CallFormat("hermes", *_HERMES, markers=("<tool_call>", "</tool_call>")),
        CallFormat("generic", *_HERMES, describes_tools=True),
        CallFormat(
            "llama3", "", '{"name": "', '", "parameters": ', "}", "; ",
            markers=("<|python_tag|>",), allows_several=False,
        ),
        CallFormat(
            "mistral", "[TOOL_CALLS]", '{"name": "', '", "arguments": ', "}", ", ", "]",
            markers=("[TOOL_CALLS]",), short_ids=True,
        ),
        CallFormat("functionary-v3.1", "<function=", "", ">", "</function>", "<function="),
        CallFormat("functionary-v3.2", "", "", "\n", "", ">>>", markers=(">>>",)),
        CallFormat("pythonic", "", "[", "(", ")", ", ", "]"),
        CallFormat("pythonic-tagged", "<|python_start|>", "[", "(", ")", ", ", "]", markers=("<|python_start|>",)),
    )
}  # fmt: skip


def call_format(template: str | None) -> CallFormat:
    """Return the format that goes with a chat template's source; None, or a template without tools, is generic."""
    source = template or ""
    signs: tuple[tuple[str, Family], ...] = (
        ("<|python_start|>", "pythonic-tagged"),
        ("[func_name1(", "pythonic"),
        ("pythonic", "pythonic"),
        (">>>all", "functionary-v3.2"),
        ("<function=", "functionary-v3.1"),
        ("[TOOL_CALLS]", "mistral"),
        ("<tool_call>", "hermes"),
        ("<|python_tag|>", "llama3"),
        ('"parameters": dictionary of argument name', "llama3"),
    )
    if "tools" in source:
        for sign, family in signs:
            if sign in source:
                return _FORMATS[family]
    return _FORMATS["generic"]


def description(tools: Sequence[Tool]) -> str:
    """Return the system message that tells a model of tools when its template does not: Hermes' own wording."""
    listed = "\n".join(json.dumps(tool.for_template(), ensure_ascii=False) for tool in tools)
    return (
        "You may call one or more functions to assist with the user query. You are given their signatures within "
        f"<tools></tools> tags:\n<tools>\n{listed}\n</tools>\nFor each function call, return a JSON object with the "
        "function's name and arguments within <tool_call></tool_call> tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )
