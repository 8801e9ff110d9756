"""OpenAI's messages → the messages that a chat template reads: text contents, calls with their arguments as objects.

>>> template_messages([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], call_format(None))
[{'role': 'user', 'content': 'hi'}]
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llamalite.tool_calls.formats import CallFormat, call_format, description
from llamalite.tool_calls.tools import Tool

_SHORT_ID = re.compile("[A-Za-z0-9]{9}")
_TEXT_PARTS = {"text", "input_text", "output_text"}
_MEDIA = {"image_url": "image", "image": "image", "input_image": "image", "input_audio": "audio", "video_url": "video"}


def template_messages(
    messages: Sequence[Mapping[str, Any]], form: CallFormat | None = None, tools: Sequence[Tool] = ()
) -> list[dict[str, Any]]:
    """Return `messages` for a template; if the format describes `tools` itself, in the system message.

    ``ValueError`` names a part that is no text, and a call whose arguments are not JSON.
    """
    form = form or call_format(None)
    read = [_message(f"messages[{i}]", message, form) for i, message in enumerate(messages)]
    if form.describes_tools:
        read = [_spelled(message) for message in read]
        if tools:
            own = read[0].get("content", "") if read and read[0]["role"] == "system" else ""
            text = f"{own}\n\n{description(tools)}" if own else description(tools)
            read = [{"role": "system", "content": text}, *read[1 if own else 0 :]]
    return read


def _message(at: str, message: Mapping[str, Any], form: CallFormat) -> dict[str, Any]:
    read = {key: value for key, value in message.items() if value is not None}
    role = read.get("role")
    if role == "developer":  # OpenAI's newer name, which templates do not know
        read["role"] = "system"
    if "content" in read:
        read["content"] = joined_text(f"{at}.content", read["content"])
    calls = read.pop("tool_calls", None)
    if calls:
        read["tool_calls"] = [_call(f"{at}.tool_calls[{i}]", call, form) for i, call in enumerate(calls)]
    elif role == "assistant":
        read.setdefault("content", "")
    if "tool_call_id" in read:
        read["tool_call_id"] = _id(read["tool_call_id"], form)
    return read


def joined_text(at: str, content: Any) -> str:
    """Return the text of a message's content, whose parts are joined by line ends, as llama-server joins them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ValueError(f"{at} must be a text or a list of parts, found {content!r:.60}")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "refusal":
            texts.append(str(part.get("refusal", "")))
        elif kind in _TEXT_PARTS and isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in _MEDIA:
            raise ValueError(f"{at}[{i}]: {_MEDIA[kind]} input is not supported by this model: it reads text only")
        else:
            raise ValueError(f"{at}[{i}] must be a text part, found the type {kind!r:.40}")
    return "\n".join(texts)


def _call(at: str, call: Any, form: CallFormat) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{at} must have a function with a name, found {call!r:.80}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{at}.function.arguments is not JSON: {error}") from None
    read = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if call.get("id") is not None:
        read["id"] = _id(call["id"], form)
    return read


def _id(given: Any, form: CallFormat) -> str:
    """Return an id as the template wants it: of nine letters and digits for Mistral, the same for the same id."""
    text = str(given)
    return text if not form.short_ids or _SHORT_ID.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:9]


def _spelled(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without the fields that a template without tools does not know: calls as text."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content', '')}\n</tool_response>"}
    if calls := message.pop("tool_calls", None):
        texts = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
        spelled = "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)
        message["content"] = "\n".join(filter(None, [message.get("content", ""), spelled]))
    return message
