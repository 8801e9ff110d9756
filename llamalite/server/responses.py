"""``POST /v1/responses``: OpenAI's newer protocol, for what a client needs of text, tools and streams.

The shapes are those of platform.openai.com/docs/api-reference/responses. Nothing is kept: a conversation goes on by
sending its items again, and `previous_response_id` is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from llamalite.generation.completion import Totals
from llamalite.server.blocks import Block, BlockEvent, Blocks
from llamalite.server.chatting import Conversation
from llamalite.server.delivery import json_body, serving_of, stream_events, while_listening
from llamalite.server.errors import refusal
from llamalite.server.fields import Fields, read_body
from llamalite.server.figures import timings

_ITEM_PREFIX = {"text": "msg", "call": "fc", "reasoning": "rs"}


class TextFields(Fields):
    """What the answer's text is to be: ``text.format`` is the `response_format` of a chat."""

    format: dict[str, Any] | None = None


class ResponsesRequest(Fields):
    """The body of ``/v1/responses``."""

    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextFields | None = None
    stream: bool | None = None
    timings_per_token: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    metadata: dict[str, Any] | None = None

    def conversation(self) -> Conversation:
        """Return the same as a chat."""
        if self.previous_response_id is not None:
            raise refusal("previous_response_id is not supported: send the items again", param="previous_response_id")
        if self.background:
            raise refusal("background is not supported", param="background")
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        for i, item in enumerate(items):
            _add_item(messages, f"input.{i}", item)
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "seed",
            "stop",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
        )
        fields = {name: getattr(self, name) for name in names}
        if self.text is not None and self.text.format is not None:
            form = self.text.format
            fields["response_format"] = {"type": form.get("type"), "json_schema": form, "schema": form.get("schema")}
        return Conversation.model_validate({"messages": messages, **fields})


def _add_item(messages: list[dict[str, Any]], at: str, item: dict[str, Any]) -> None:
    """Add an item to `messages`; several calls in a row are one message."""
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        call = {"id": str(item.get("call_id", "")), "type": "function", "function": function}
        if messages and messages[-1].get("tool_calls"):
            messages[-1]["tool_calls"].append(call)
        else:
            messages.append({"role": "assistant", "tool_calls": [call]})
    elif kind == "function_call_output":
        output = item.get("output", "")
        messages.append({"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": output})
    elif kind == "message":
        messages.append({"role": item.get("role"), "content": item.get("content")})
    elif kind != "reasoning":
        raise refusal(f"{at}.type: {kind!r:.60} is not supported", param=at)


async def responses(request: Request) -> Response:
    """Answer the items of a conversation."""
    asked = await read_body(request, ResponsesRequest)
    if asked.stream:
        return await stream_events(request, _events(request, asked), named=True)
    return json_body(await while_listening(request, _whole(request, asked)))


class _Reply:
    """The response as it grows."""

    def __init__(self, asked: ResponsesRequest, model: str) -> None:
        self.blocks = Blocks()
        self._ids: dict[int, str] = {}
        self._n_events = -1
        self._head = {
            "id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time()),
            "model": model, "error": None, "instructions": asked.instructions, "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False, "temperature": asked.temperature,
            "tool_choice": asked.tool_choice or "auto", "tools": asked.tools or [], "top_p": asked.top_p,
            "max_output_tokens": asked.max_output_tokens, "previous_response_id": None,
        }  # fmt: skip

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Return an event with its number."""
        self._n_events += 1
        return {"type": f"response.{kind}", "sequence_number": self._n_events, **fields}

    def body(self, reason: str | None, totals: Totals | None) -> dict[str, Any]:
        """Return the response, which is complete if there is a reason."""
        status = "in_progress" if reason is None else "incomplete" if reason == "length" else "completed"
        details = {"reason": "max_output_tokens"} if reason == "length" else None
        body = self._head | {"status": status, "incomplete_details": details}
        body["output"] = [self._item(block, is_done=True) for block in self.blocks.all]
        body["usage"] = None
        if totals is not None:
            body["usage"] = {
                "input_tokens": totals.n_prompt,
                "input_tokens_details": {"cached_tokens": totals.n_cached},
                "output_tokens": totals.n_generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": totals.n_prompt + totals.n_generated,
            }
        return body

    def _item(self, block: Block, *, is_done: bool) -> dict[str, Any]:
        item_id = self._ids.setdefault(block.index, f"{_ITEM_PREFIX[block.kind]}_{secrets.token_hex(12)}")
        item: dict[str, Any] = {"id": item_id, "status": "completed" if is_done else "in_progress"}
        if block.kind == "call":
            call = {"type": "function_call", "call_id": block.id, "name": block.name}
            return item | call | {"arguments": block.text if is_done else ""}
        if block.kind == "reasoning":
            content = [{"type": "reasoning_text", "text": block.text}] if is_done else []
            return item | {"type": "reasoning", "summary": [], "content": content}
        content = [_text_part(block.text)] if is_done else []
        return item | {"type": "message", "role": "assistant", "content": content}

    def changes(self, event: BlockEvent) -> Iterator[dict[str, Any]]:
        """Yield the events that tell of a block's change."""
        change, block, text = event
        item = self._item(block, is_done=change == "close")
        at: dict[str, Any] = {"item_id": item["id"], "output_index": block.index}
        part = at | {"content_index": 0}
        if change == "open":
            yield self.event("output_item.added", output_index=block.index, item=item)
            if block.kind == "text":
                yield self.event("content_part.added", **part, part=_text_part(""))
        elif change == "delta":
            if block.kind == "call":
                yield self.event("function_call_arguments.delta", **at, delta=text)
            else:
                name = "reasoning_text.delta" if block.kind == "reasoning" else "output_text.delta"
                extra: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
                yield self.event(name, **part, delta=text, **extra)
        else:
            if block.kind == "call":
                yield self.event("function_call_arguments.done", **at, name=block.name, arguments=block.text)
            elif block.kind == "reasoning":
                yield self.event("reasoning_text.done", **part, text=block.text)
            else:
                yield self.event("output_text.done", **part, text=block.text, logprobs=[])
                yield self.event("content_part.done", **part, part=_text_part(block.text))
            yield self.event("output_item.done", output_index=block.index, item=item)


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def _events(request: Request, asked: ResponsesRequest) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a streamed answer."""
    serving = serving_of(request)
    async with serving.use(request, asked.model) as served:
        build = asked.conversation().question
        question = await asyncio.to_thread(build, served.loaded, serving.settings, asked.max_output_tokens)
        reply = _Reply(asked, served.name)
        has_begun = False
        async with contextlib.aclosing(serving.answers(request, served.loaded, [question])) as parts:
            async for _, part in parts:
                if not has_begun:
                    has_begun = True
                    yield reply.event("created", response=reply.body(None, None))
                    yield reply.event("in_progress", response=reply.body(None, None))
                for change in reply.blocks.push(part):
                    for event in reply.changes(change):
                        yield event
                if part.finish_reason is not None and part.totals is not None:
                    for change in reply.blocks.close():
                        for event in reply.changes(change):
                            yield event
                    body = reply.body(part.finish_reason, part.totals)
                    yield reply.event(body["status"], response=body, timings=timings(part.totals))


async def _whole(request: Request, asked: ResponsesRequest) -> dict[str, Any]:
    """Return a whole answer."""
    serving = serving_of(request)
    async with serving.use(request, asked.model) as served:
        build = asked.conversation().question
        question = await asyncio.to_thread(build, served.loaded, serving.settings, asked.max_output_tokens)
        reply = _Reply(asked, served.name)
        body: dict[str, Any] = {}
        async with contextlib.aclosing(serving.answers(request, served.loaded, [question])) as parts:
            async for _, part in parts:
                list(reply.blocks.push(part))
                if part.finish_reason is not None:
                    body = reply.body(part.finish_reason, part.totals)
        return body
