"""Where in an answer a tool call begins, and what it says, piece by piece.

    finder = CallFinder(form, tools)
    finder.push("Let me look. <tool")       'Let me look. '      "<tool" may be the beginning of a call: held back
    finder.push("_call>")                   ''                   finder.begins_at is 13: a call begins here

From there on, the answer is written under the grammar of `llamalite.tool_calls.grammar`, so that a `CallParser` reads
exactly the format's own texts.

    parser = CallParser(form, tools)
    parser.push('\\n{"name": "add", "arguments": {"a"')     [CallDelta(0, name='add'), CallDelta(0, arguments='{"a"')]
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass

from llamalite.tool_calls.formats import CallFormat
from llamalite.tool_calls.pythonic import end_of_call, read_python_call
from llamalite.tool_calls.tools import Tool

_JSON_CALL = re.compile(r'\{\s*"(?:name|type|function|parameters|arguments)"\s*:')
_MAYBE_JSON_CALL = re.compile(r'\{\s*(?:"[a-z]{0,10}(?:"\s*)?)?')
_STRUCTURE = re.compile(r'["\\{}\[\]]')


@dataclass(frozen=True)
class CallDelta:
    """What one piece adds to call number `index`: its `id` and `name` at first, then its `arguments`, JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class CallFinder:
    """Looks for the beginning of a call in an answer; `begins_at` is its place in the text, None until then.

    What follows ``<|python_tag|>`` without being JSON is a call too, of Llama 3's built-in kind: `is_raw` is then true.
    """

    def __init__(self, form: CallFormat, tools: Sequence[Tool]) -> None:
        self._form = form
        self._names = [tool.name for tool in tools]
        self._text, self._shown = "", 0
        self._may_begin = True  # for formats whose calls stand at the beginning of an answer
        self.begins_at: int | None = None
        self.is_raw = False

    @property
    def text(self) -> str:
        """All of the text so far."""
        return self._text

    def push(self, text: str) -> str:
        """Take the next text; return what is now certain to be no call."""
        self._text += text
        return self._show(self._certain())

    def flush(self) -> str:
        """Return what was held back, when the answer has ended."""
        return self._show(len(self._text))

    def _show(self, end: int) -> str:
        shown, self._shown = self._text[self._shown : end], max(self._shown, end)
        return shown

    def _certain(self) -> int:
        """Return up to where the text is certain, and note where a call begins."""
        if self._form.opening:
            return self._after_opening(self._form.opening)
        if not self._may_begin:
            return len(self._text)
        start = len(self._text) - len(self._text.lstrip())
        rest = self._text[start:]
        if not rest:
            return 0
        if self._form.name == "llama3":
            return self._llama3(start, rest)
        pattern = rf"\[\s*(?:{self._any_name()})\(" if self._form.name == "pythonic" else rf"(?:{self._any_name()})\n"
        longest = max(map(len, self._names), default=0) + 8
        if re.match(pattern, rest):
            self.begins_at = start
        elif len(rest) <= longest and self._may_become(rest):
            return 0
        elif self._form.name == "functionary-v3.2" and rest.startswith("all\n"):
            self._shown = max(self._shown, start + 4)
            return self._after_opening(">>>")
        else:
            self._may_begin = False
            return len(self._text)
        return start

    def _any_name(self) -> str:
        return "|".join(map(re.escape, self._names)) or "(?!)"

    def _may_become(self, rest: str) -> bool:
        if self._form.name == "pythonic":
            return any(f"[{name}(".startswith(rest.replace(" ", "")) for name in self._names)
        return any(f"{name}\n".startswith(rest) for name in (*self._names, "all"))

    def _after_opening(self, opening: str) -> int:
        at = self._text.find(opening, self._shown)
        if at >= 0:
            self.begins_at = at
            return at
        for n in range(min(len(opening) - 1, len(self._text) - self._shown), 0, -1):
            if opening.startswith(self._text[len(self._text) - n :]):
                return len(self._text) - n
        return len(self._text)

    def _llama3(self, start: int, rest: str) -> int:
        tag = "<|python_tag|>"
        if tag.startswith(rest[: len(tag)]) and len(rest) < len(tag):
            return 0
        tagged = rest.startswith(tag)
        json_text = rest.removeprefix(tag).lstrip()
        if _JSON_CALL.match(json_text):
            self.begins_at = start
        elif not json_text or _MAYBE_JSON_CALL.fullmatch(json_text):
            return 0
        elif tagged:
            self.begins_at, self.is_raw = start, True
        else:
            self._may_begin = False
            return len(self._text)
        return start


class CallParser:
    """Reads calls that were written under the format's grammar; `n_calls` is how many have begun."""

    def __init__(self, form: CallFormat, tools: Sequence[Tool]) -> None:
        self._form = form
        names = "|".join(re.escape(tool.name) for tool in sorted(tools, key=lambda tool: -len(tool.name)))
        is_python = form.name.startswith("pythonic")
        head = "" if is_python else re.escape(form.head)
        self._begin = re.compile(f"{head}({names or '(?!)'}){re.escape(form.middle)}")
        self._is_python = is_python
        self._rest = ""
        self._value: _ObjectScanner | None = None
        self.n_calls = 0

    def push(self, text: str) -> list[CallDelta]:
        """Take the next text; return what it adds to which call."""
        self._rest += text
        deltas: list[CallDelta] = []
        while True:
            if self._value is not None:
                used = self._value.feed(self._rest)
                if used:
                    deltas.append(CallDelta(self.n_calls - 1, arguments=self._rest[:used]))
                self._rest = self._rest[used:]
                if not self._value.is_complete:
                    return deltas
                self._value = None
            begun = self._begin.search(self._rest)
            if begun is None:
                return deltas
            if self._is_python:
                end = end_of_call(self._rest, begun.start())
                if end < 0:
                    return deltas
                name, arguments = read_python_call(self._rest[begun.start() : end])
                deltas += self._whole(name, json.dumps(arguments, ensure_ascii=False))
                self._rest = self._rest[end:]
            else:
                deltas.append(CallDelta(self.n_calls, id=new_call_id(self._form), name=begun[1]))
                self.n_calls += 1
                self._rest = self._rest[begun.end() :]
                self._value = _ObjectScanner()

    def _whole(self, name: str, arguments: str) -> list[CallDelta]:
        self.n_calls += 1
        index = self.n_calls - 1
        return [CallDelta(index, id=new_call_id(self._form), name=name), CallDelta(index, arguments=arguments)]

    def raw(self, text: str, tools: Sequence[Tool]) -> list[CallDelta]:
        """Read all that followed ``<|python_tag|>``: ``NAME.call(query="...")``, or code for a tool that takes code.

        Returns nothing if no tool takes it.
        """
        code = text.removeprefix("<|python_tag|>").strip()
        by_name = {tool.name: tool for tool in tools}
        try:
            name, arguments = read_python_call(code)
            if name.removesuffix(".call") in by_name:
                return self._whole(name.removesuffix(".call"), json.dumps(arguments, ensure_ascii=False))
        except ValueError:
            pass
        for name in ("python", "code_interpreter", "ipython"):
            if name in by_name:
                properties = list(by_name[name].parameters.get("properties", {})) or ["code"]
                return self._whole(name, json.dumps({properties[0]: code}, ensure_ascii=False))
        return []


class _ObjectScanner:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False
        self.is_complete = False

    def feed(self, text: str) -> int:
        """Return how many characters of `text` belong to the object."""
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = _STRUCTURE.search(text, at)
            if found is None:
                return len(text)
            at, char = found.end(), found[0]
            if char == "\\":
                self._escaped = self._in_string
            elif char == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if char in "{[" else -1
                if self._depth == 0:
                    self.is_complete = True
                    return at
        return at


def new_call_id(form: CallFormat) -> str:
    """Return a new id for a call; Mistral's templates want nine letters and digits."""
    n, alphabet = (9, string.ascii_letters + string.digits) if form.short_ids else (24, string.ascii_letters)
    drawn = "".join(secrets.choice(alphabet) for _ in range(n))
    return drawn if form.short_ids else f"call_{drawn}"
