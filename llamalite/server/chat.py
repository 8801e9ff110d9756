"""``POST /v1/chat/completions``: OpenAI's chat, whole or as a stream.

The shapes are those of platform.openai.com/docs/api-reference/chat, with llama-server's `timings` beside `usage`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from llamalite._version import __version__
from llamalite.generation.completion import Piece, Totals
from llamalite.model import Model
from llamalite.server.answering import AnswerPart, AnswerRequest
from llamalite.server.chatting import Conversation, several
from llamalite.server.delivery import json_body, serving_of, stream_events, while_listening
from llamalite.server.errors import refusal
from llamalite.server.fields import Fields, read_body
from llamalite.server.figures import timings, usage
from llamalite.server.settings import MAX_CHOICES
from llamalite.tool_calls import CallDelta

FINGERPRINT = f"b-llamalite-{__version__}"
_MAX_TOP_LOGPROBS = 20


class StreamOptions(Fields):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False


class ChatRequest(Conversation):
    """The body of ``/v1/chat/completions``."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=-1)
    max_completion_tokens: int | None = Field(None, ge=-1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=_MAX_TOP_LOGPROBS)
    timings_per_token: bool | None = None
    verbose: bool | None = None
    functions: Any = None
    modalities: list[str] | None = None

    def check(self) -> None:
        """Refuse, by name, what is not supported."""
        if self.functions is not None:
            raise refusal("functions is not supported: use tools", param="functions")
        if self.modalities and self.modalities != ["text"]:
            raise refusal("modalities may only be ['text']", param="modalities")
        if self.top_logprobs is not None and not self.logprobs:
            raise refusal("top_logprobs needs logprobs: true", param="top_logprobs")

    @property
    def most_tokens(self) -> int | None:
        """The newer of the two names counts."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def n_logprobs(self) -> int | None:
        """How many alternatives to score; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    asked = await read_body(request, ChatRequest)
    asked.check()
    if asked.stream:
        return await stream_events(request, _chunks(request, asked))
    return json_body(await while_listening(request, _whole(request, asked)))


async def _questions(request: Request, model: Model, asked: ChatRequest) -> list[AnswerRequest]:
    settings = serving_of(request).settings

    def build() -> list[AnswerRequest]:
        question = asked.question(model, settings, asked.most_tokens, logprobs=asked.n_logprobs)
        return several(question, asked.n or 1)

    return await asyncio.to_thread(build)


async def _chunks(request: Request, asked: ChatRequest) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the chunks of a streamed answer."""
    serving = serving_of(request)
    async with serving.use(request, asked.model) as served:
        questions = await _questions(request, served.loaded, asked)
        head = _head("chat.completion.chunk", served.name)
        ended: dict[int, Totals] = {}
        begun: set[int] = set()
        async with contextlib.aclosing(serving.answers(request, served.loaded, questions)) as parts:
            async for index, part in parts:
                if index not in begun:  # the role comes first, with nothing else
                    begun.add(index)
                    yield head | {"choices": [_choice(index, {"role": "assistant", "content": None})]}
                if delta := _delta(part):
                    scored = _scored(served.loaded, part.piece) if asked.logprobs else None
                    chunk = head | {"choices": [_choice(index, delta, scored)]}
                    if asked.timings_per_token and part.totals is not None:
                        chunk["timings"] = timings(part.totals)
                    yield chunk
                if part.finish_reason is not None and part.totals is not None:
                    ended[index] = part.totals
                    last = head | {"choices": [_choice(index, {}) | {"finish_reason": part.finish_reason}]}
                    yield last | ({} if asked.stream_options else {"timings": timings(part.totals)})
        if asked.stream_options is not None and asked.stream_options.include_usage and ended:
            totals = list(ended.values())
            yield head | {"choices": [], "usage": usage(totals), "timings": timings(totals[-1])}


async def _whole(request: Request, asked: ChatRequest) -> dict[str, Any]:
    """Return a whole answer."""
    serving = serving_of(request)
    async with serving.use(request, asked.model) as served:
        questions = await _questions(request, served.loaded, asked)
        messages = [CollectedMessage() for _ in range(asked.n or 1)]
        async with contextlib.aclosing(serving.answers(request, served.loaded, questions)) as parts:
            async for index, part in parts:
                messages[index].add(part)
        choices = []
        for index, message in enumerate(messages):
            choice: dict[str, Any] = {"index": index, "message": message.as_openai(), "logprobs": None}
            if asked.logprobs:
                scored = [token for piece in message.pieces for token in _scored(served.loaded, piece)["content"]]
                choice["logprobs"] = {"content": scored}
            choices.append(choice | {"finish_reason": message.finish_reason})
        totals = [message.totals for message in messages if message.totals is not None]
        head = _head("chat.completion", served.name)
        if asked.verbose or serving.settings.is_verbose:
            head["__verbose"] = {"prompt": served.loaded.detokenize(questions[0].prompt, special=True)}
        return head | {"choices": choices, "usage": usage(totals), "timings": timings(totals[-1])}


class CollectedMessage:
    """An answer as it is put together from its parts."""

    def __init__(self) -> None:
        self.text = self.reasoning = ""
        self.calls: list[dict[str, Any]] = []
        self.pieces: list[Piece] = []
        self.finish_reason: str | None = None
        self.totals: Totals | None = None

    def add(self, part: AnswerPart) -> None:
        """Add a part."""
        self.text, self.reasoning = self.text + part.text, self.reasoning + part.reasoning
        for delta in part.calls:
            if delta.name:
                self.calls.append({"id": delta.id, "name": delta.name, "arguments": ""})
            self.calls[delta.index]["arguments"] += delta.arguments
        if part.piece is not None and part.piece.token is not None:
            self.pieces.append(part.piece)
        if part.finish_reason is not None:
            self.finish_reason, self.totals = part.finish_reason, part.totals

    def as_openai(self) -> dict[str, Any]:
        """Return the message in OpenAI's shape."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or (None if self.calls else "")}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": {k: call[k] for k in ("name", "arguments")}}
                for call in self.calls
            ]
        return message


def _head(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


def _choice(index: int, delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": None}
    return choice if logprobs is None else choice | {"logprobs": logprobs}


def _delta(part: AnswerPart) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if part.reasoning:
        delta["reasoning_content"] = part.reasoning
    if part.text or (part.piece is not None and part.piece.logprob is not None):
        delta["content"] = part.text
    if part.calls:
        delta["tool_calls"] = [_call_delta(call) for call in part.calls]
    return delta


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if call.name:
        head = {"index": call.index, "id": call.id, "type": "function"}
        return head | {"function": {"name": call.name, "arguments": call.arguments}}
    return {"index": call.index, "function": {"arguments": call.arguments}}


def _scored(model: Model, piece: Piece | None) -> dict[str, Any]:
    """Return ``logprobs`` of one token; empty for a piece without one."""
    if piece is None or piece.token is None or piece.logprob is None:
        return {"content": []}
    token = scored_token(model, piece.token, piece.logprob)
    token["top_logprobs"] = [scored_token(model, *pair) for pair in piece.top_logprobs]
    return {"content": [token]}


def scored_token(model: Model, token: int, logprob: float) -> dict[str, Any]:
    """Return a token with its text, its bytes and its log-probability."""
    raw = model.native.token_to_piece(token, special=model.native.is_eog(token))
    return {"id": token, "token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": max(logprob, -9999.0)}
