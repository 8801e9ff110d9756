"""``POST /v1/messages``: Anthropic's protocol, which coding agents speak.

The shapes are those of docs.anthropic.com/en/api/messages. A request becomes the same `Conversation` as OpenAI's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from llamalite.generation.completion import Totals
from llamalite.server.blocks import Block, BlockEvent, Blocks
from llamalite.server.chatting import Conversation
from llamalite.server.delivery import json_body, serving_of, stream_events, while_listening
from llamalite.server.errors import refusal
from llamalite.server.fields import Fields, read_body
from llamalite.server.figures import stopping_word

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class MessageFields(Fields):
    """One message in Anthropic's shape."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class CountRequest(Fields):
    """The body of ``/v1/messages/count_tokens``, which is most of a `MessagesRequest`."""

    model: str | None = None
    messages: list[MessageFields] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def conversation(self, **sampling: Any) -> Conversation:
        """Return the same in OpenAI's shape."""
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for i, message in enumerate(self.messages):
            messages += _as_openai(f"messages.{i}.content", message)
        fields: dict[str, Any] = {"messages": messages, **sampling}
        if self.tools:
            fields["tools"] = [_tool(f"tools.{i}", tool) for i, tool in enumerate(self.tools)]
        if self.tool_choice is not None:
            kind = self.tool_choice.get("type")
            name = {"type": "function", "function": {"name": self.tool_choice.get("name")}}
            if kind not in _CHOICES and kind != "tool":
                raise refusal(
                    f"tool_choice.type must be auto, any, tool or none, found {kind!r:.60}", param="tool_choice"
                )
            fields["tool_choice"] = name if kind == "tool" else _CHOICES[str(kind)]
            fields["parallel_tool_calls"] = not self.tool_choice.get("disable_parallel_tool_use", False)
        if self.thinking is not None:
            fields["enable_thinking"] = self.thinking.get("type") in ("enabled", "adaptive")
        return Conversation.model_validate(fields)


class MessagesRequest(CountRequest):
    """The body of ``/v1/messages``."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None

    def asked(self) -> Conversation:
        """Return the same in OpenAI's shape, with how to choose tokens."""
        names = ("temperature", "top_k", "top_p", "min_p", "seed")
        return self.conversation(stop=self.stop_sequences, **{name: getattr(self, name) for name in names})


def _tool(at: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    kind = tool.get("type", "custom")
    if kind not in ("custom", None):
        raise refusal(f"{at}.type: Anthropic's own tool {kind!r:.60} is not supported", param="tools")
    function = {"name": tool.get("name"), "description": tool.get("description", "")}
    return {"type": "function", "function": function | {"parameters": tool.get("input_schema")}}


def _as_openai(at: str, message: MessageFields) -> list[dict[str, Any]]:
    """Return a message as OpenAI's messages: results of tools are messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    texts: list[dict[str, Any]] = []
    calls, results, thoughts = [], [], ""
    for i, block in enumerate(message.content):
        kind = block.get("type")
        if kind == "thinking":
            thoughts += str(block.get("thinking", ""))
        elif kind == "tool_use":
            arguments = json.dumps(block.get("input", {}), ensure_ascii=False)
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": str(block.get("id", "")), "type": "function", "function": function})
        elif kind == "tool_result":
            content = block.get("content") or ""
            results.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": content})
        elif kind == "redacted_thinking":
            continue
        elif kind in ("text", "image"):
            texts.append(dict(block))
        else:
            raise refusal(f"{at}.{i}.type: {kind!r:.60} is not supported", param=at)
    own: dict[str, Any] = {"role": message.role, "content": texts or None}
    if thoughts:
        own["reasoning_content"] = thoughts
    if calls:
        own["tool_calls"] = calls
    return [*results, *([own] if texts or calls or thoughts or not results else [])]


async def messages(request: Request) -> Response:
    """Answer a conversation."""
    asked = await read_body(request, MessagesRequest)
    if asked.stream:
        return await stream_events(request, _events(request, asked), anthropic=True, named=True)
    return json_body(await while_listening(request, _whole(request, asked)))


async def count_message_tokens(request: Request) -> Response:
    """Return how many tokens the prompt of a conversation has."""
    asked = await read_body(request, CountRequest)
    async with serving_of(request).use(request, asked.model) as served:

        def count() -> int:
            arguments, _ = asked.conversation().prompt(served.loaded)
            return len(served.loaded.chat_tokens(**arguments))

        return json_body({"input_tokens": await asyncio.to_thread(count)})


class _Message:
    """The message as it grows."""

    def __init__(self, model: str, n_prompt: int) -> None:
        self.blocks = Blocks()
        self._n_prompt = n_prompt
        self._head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}

    def usage(self, totals: Totals | None) -> dict[str, int]:
        """Return Anthropic's usage, whose input tokens leave out those in the cache."""
        n_cached = totals.n_cached if totals is not None else 0
        n_generated = totals.n_generated if totals is not None else 0
        return {
            "input_tokens": self._n_prompt - n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": n_cached,
            "output_tokens": n_generated,
        }

    def body(self, stop: dict[str, Any], totals: Totals | None) -> dict[str, Any]:
        """Return the whole message."""
        content = [_content(block) for block in self.blocks.all]
        return self._head | {"content": content, **stop, "usage": self.usage(totals)}


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "call":
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": json.loads(block.text or "{}")}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text}


def _event(event: BlockEvent) -> dict[str, Any]:
    """Return a change of a block as an event."""
    kind, block, text = event
    if kind == "close":
        return {"type": "content_block_stop", "index": block.index}
    if kind == "open":
        empty = Block(block.kind, block.index, block.id, block.name)
        return {"type": "content_block_start", "index": block.index, "content_block": _content(empty)}
    names = {"call": ("input_json_delta", "partial_json"), "reasoning": ("thinking_delta", "thinking")}
    name, field = names.get(block.kind, ("text_delta", "text"))
    return {"type": "content_block_delta", "index": block.index, "delta": {"type": name, field: text}}


async def _events(request: Request, asked: MessagesRequest) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a streamed answer."""
    serving = serving_of(request)
    async with serving.use(request, asked.model) as served:
        model = served.loaded
        question = await asyncio.to_thread(asked.asked().question, model, serving.settings, asked.max_tokens)
        message = _Message(served.name, len(question.prompt))
        tokens: list[int] = []
        has_begun = False
        async with contextlib.aclosing(serving.answers(request, model, [question])) as parts:
            async for _, part in parts:
                if not has_begun:
                    has_begun = True
                    start = message.body({"stop_reason": None, "stop_sequence": None}, None)
                    yield {"type": "message_start", "message": start}
                for event in message.blocks.push(part):
                    yield _event(event)
                if part.piece is not None and part.piece.token is not None:
                    tokens.append(part.piece.token)
                if part.finish_reason is not None:
                    for event in message.blocks.close():
                        yield _event(event)
                    word = stopping_word(model, tokens, question.params) if part.finish_reason == "stop" else ""
                    usage = message.usage(part.totals)
                    yield {"type": "message_delta", "delta": _stop(part.finish_reason, word), "usage": usage}
                    yield {"type": "message_stop"}


def _stop(reason: str, word: str) -> dict[str, Any]:
    return {"stop_reason": "stop_sequence" if word else _STOP_REASONS[reason], "stop_sequence": word or None}


async def _whole(request: Request, asked: MessagesRequest) -> dict[str, Any]:
    """Return a whole answer."""
    serving = serving_of(request)
    async with serving.use(request, asked.model) as served:
        model = served.loaded
        question = await asyncio.to_thread(asked.asked().question, model, serving.settings, asked.max_tokens)
        message = _Message(served.name, len(question.prompt))
        tokens: list[int] = []
        body: dict[str, Any] = {}
        async with contextlib.aclosing(serving.answers(request, model, [question])) as parts:
            async for _, part in parts:
                list(message.blocks.push(part))
                if part.piece is not None and part.piece.token is not None:
                    tokens.append(part.piece.token)
                if part.finish_reason is not None:
                    word = stopping_word(model, tokens, question.params) if part.finish_reason == "stop" else ""
                    body = message.body(_stop(part.finish_reason, word), part.totals)
        return body
