"""Tool calls and thinking: what a template asks a model to write, and what that text means.

tools = read_tools([{"type": "function", "function": {"name": "add", "parameters": {...}}}])
form = call_format(template_source)              Hermes, Llama 3 JSON, Mistral, Functionary, pythonic, or a generic one
form.grammar(tools, parallel=True)               GBNF: what may follow once a call has begun
CallParser(form, tools).push(text)               the pieces of the calls, as they arrive

tools       what a tool is, and which ones may or must be called
formats     how each family of templates writes calls
gbnf        literals, and grammars beside each other
grammar     a grammar for calls whose arguments match the tools' schemas
parsing     text → calls, piece by piece; where in a text a call begins
pythonic    calls written as Python: ``[add(a=1, b=2)]``
thinking    text → thoughts and answer
messages    OpenAI's messages → what a template reads

Nothing here knows a model, a thread or a protocol.
"""

from __future__ import annotations

from llamalite.tool_calls.formats import CallFormat, call_format
from llamalite.tool_calls.messages import template_messages
from llamalite.tool_calls.parsing import CallDelta, CallFinder, CallParser
from llamalite.tool_calls.thinking import Thinking, ThinkingSplitter, thinking_of
from llamalite.tool_calls.tools import Tool, read_choice, read_tools

__all__ = [
    "CallDelta",
    "CallFinder",
    "CallFormat",
    "CallParser",
    "Thinking",
    "ThinkingSplitter",
    "Tool",
    "call_format",
    "read_choice",
    "read_tools",
    "template_messages",
    "thinking_of",
]
