"""`Tool`: a function that a model may call, with the JSON schema of its arguments; and which ones it may call.

    >>> read_tools([{"type": "function", "function": {"name": "now"}}])
    [Tool(name='now', description='', parameters={'type': 'object', 'properties': {}}, is_strict=False)]
    >>> read_choice("required", ["now"])
    (['now'], True)

Names and shapes are OpenAI's (platform.openai.com/docs/guides/function-calling).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_TOOLS = 128


@dataclass(frozen=True)
class Tool:
    """A function: `parameters` is the JSON schema of its arguments; with `is_strict`, it must be expressible."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    is_strict: bool = False

    def for_template(self) -> dict[str, Any]:
        """Return the tool as chat templates read it, which is as OpenAI writes it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


def read_tools(tools: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """Return the tools of a request in OpenAI's shape; ``ValueError`` names the one that is wrong."""
    if len(tools) > _MAX_TOOLS:
        raise ValueError(f"tools may hold at most {_MAX_TOOLS} tools, found {len(tools)}")
    read = [_read_tool(f"tools[{i}]", tool) for i, tool in enumerate(tools)]
    names = [tool.name for tool in read]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"tools holds {twice!r} twice: each name must be there once")
    return read


def _read_tool(at: str, tool: Mapping[str, Any]) -> Tool:
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        kind = tool.get("type") if isinstance(tool, Mapping) else tool
        raise ValueError(f"{at}.type must be 'function', found {kind!r:.60}")
    function = tool.get("function", tool)  # the Responses API has the fields at the tool itself
    if not isinstance(function, Mapping):
        raise ValueError(f"{at}.function must be an object, found {function!r:.60}")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{at}.function.name must be 1 to 64 letters, digits, '_', '.' or '-', found {name!r:.80}")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise ValueError(f"{at}.function.parameters must be a JSON schema, found {parameters!r:.60}")
    return Tool(name, str(function.get("description") or ""), parameters, function.get("strict") is True)


def read_choice(choice: str | Mapping[str, Any] | None, names: Sequence[str]) -> tuple[list[str], bool]:
    """Return the names that `choice` (OpenAI's ``tool_choice``) allows, and whether one of them must be called.

    ``ValueError`` names a tool that does not exist.
    """
    if choice in (None, "auto"):
        return list(names), False
    if choice == "none":
        return [], False
    if choice == "required":
        return _one_at_least(names, "required"), True
    if isinstance(choice, Mapping):
        if choice.get("type") == "allowed_tools":
            allowed = choice.get("allowed_tools", choice)
            wanted = [_name_of(tool) for tool in allowed.get("tools", [])]
            return _known(wanted, names), allowed.get("mode") == "required"
        return _known([_name_of(choice)], names), True
    raise ValueError(f"tool_choice must be 'auto', 'none', 'required' or a function, found {choice!r:.80}")


def _name_of(choice: Mapping[str, Any]) -> Any:
    function = choice.get("function", choice)
    return function.get("name") if isinstance(function, Mapping) else function


def _known(wanted: Sequence[Any], names: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in names:
            known = ", ".join(names) or "none"
            raise ValueError(f"tool_choice names {name!r:.80}, which is none of the tools: {known}")
    return _one_at_least(wanted, "a function")


def _one_at_least(names: Sequence[str], what: str) -> list[str]:
    if not names:
        raise ValueError(f"tool_choice is {what}, and there are no tools")
    return list(names)
