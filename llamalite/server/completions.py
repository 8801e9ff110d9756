"""``POST /v1/completions``: OpenAI's older protocol, which continues a text and scores it.

The shapes are those of platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from llamalite.generation.completion import Totals
from llamalite.model import Model
from llamalite.server.answering import AnswerPart, AnswerRequest
from llamalite.server.chat import FINGERPRINT, StreamOptions
from llamalite.server.chatting import several
from llamalite.server.delivery import json_body, serving_of, stream_events, while_listening
from llamalite.server.errors import refusal
from llamalite.server.fields import ResponseFormat, SamplingFields, read_body, room_for
from llamalite.server.figures import timings, usage_of_prompts
from llamalite.server.prompt_scores import TokenScore, prompt_scores
from llamalite.server.settings import MAX_CHOICES, ServerSettings

_MAX_PROMPTS = 256
_LOGPROBS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


class CompletionRequest(SamplingFields):
    """The body of ``/v1/completions``."""

    model: str | None = None
    prompt: str | list[int] | list[str | list[int]]
    max_tokens: int | None = Field(16, ge=-1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    response_format: ResponseFormat | None = None

    def check(self) -> None:
        """Refuse, by name, what is not supported."""
        if self.suffix:
            raise refusal("suffix is not supported: these models only continue a text", param="suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise refusal("best_of is not supported: ask for n answers and choose", param="best_of")
        if len(self.prompts()) * (self.n or 1) > _MAX_PROMPTS:
            raise refusal(f"prompt and n ask for more than {_MAX_PROMPTS} answers: ask several times", param="prompt")

    def prompts(self) -> Sequence[str | list[int]]:
        """Return the prompts, one or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        if not self.prompt:
            raise refusal("prompt is empty: give a text, or token ids", param="prompt")
        return [one for one in self.prompt if not isinstance(one, int)]

    def questions(self, model: Model, settings: ServerSettings) -> list[AnswerRequest]:
        """Return a question for each answer."""
        more: dict[str, Any] = {"logprobs": self.logprobs}
        if self.response_format and (schema := self.response_format.schema_to_match()) is not None:
            more["json_schema"] = schema
        params = self.sampling(model, settings.sampling, **more)
        questions = []
        for prompt in self.prompts():
            ids = model.prompt_tokens(prompt)
            if not ids:
                raise refusal("prompt has no tokens: give some text", param="prompt")
            wanted = self.max_tokens if self.max_tokens is not None else 16
            one = params.replace(max_tokens=room_for(model, len(ids), wanted))
            questions += several(AnswerRequest(ids, one), self.n or 1)
        return questions


async def completions(request: Request) -> Response:
    """Continue a text, or several."""
    asked = await read_body(request, CompletionRequest)
    asked.check()
    if asked.stream:
        return await stream_events(request, _chunks(request, asked))
    return json_body(await while_listening(request, _whole(request, asked)))


class _Choice:
    """One answer as it is put together, with its log-probabilities in the shape of this protocol."""

    def __init__(self, model: Model, asked: CompletionRequest, question: AnswerRequest) -> None:
        self._model, self._has_logprobs = model, asked.logprobs is not None
        self.text, self.finish_reason = "", None
        self.totals: Totals | None = None
        self.logprobs: dict[str, list[Any]] = {name: [] for name in _LOGPROBS}
        self._offset = 0
        if asked.echo:
            self.text = model.detokenize(question.prompt)
            if asked.logprobs is not None:
                for scored in prompt_scores(model, question.prompt, max(1, asked.logprobs)):
                    self._add(scored)

    def add(self, part: AnswerPart) -> dict[str, Any]:
        """Add a part; return it as a choice of a chunk."""
        before = len(self.logprobs["tokens"])
        self.text += part.text
        piece = part.piece
        if piece is not None and piece.token is not None and piece.logprob is not None:
            self._add(TokenScore(piece.token, piece.logprob, piece.top_logprobs))
        if part.finish_reason is not None:
            self.finish_reason, self.totals = part.finish_reason, part.totals  # type: ignore[assignment]
        return {"text": part.text, "logprobs": self._since(before), "finish_reason": part.finish_reason}

    def _add(self, scored: TokenScore) -> None:
        text = self._text(scored.token)
        self.logprobs["tokens"].append(text)
        self.logprobs["token_logprobs"].append(scored.logprob)
        tops = {self._text(token): logprob for token, logprob in reversed(scored.top_logprobs)}
        self.logprobs["top_logprobs"].append(tops or None)
        self.logprobs["text_offset"].append(self._offset)
        self._offset += len(self._model.native.token_to_piece(scored.token).decode("utf-8", "replace"))

    def _text(self, token: int) -> str:
        return self._model.native.token_to_piece(token, special=True).decode("utf-8", "replace")

    def _since(self, start: int) -> dict[str, list[Any]] | None:
        if not self._has_logprobs:
            return None
        return {name: values[start:] for name, values in self.logprobs.items()}

    def whole(self, index: int) -> dict[str, Any]:
        """Return the finished choice."""
        finish = {"finish_reason": self.finish_reason}
        return {"index": index, "text": self.text, "logprobs": self._since(0)} | finish


async def _answered(
    request: Request, model: Model, asked: CompletionRequest, choices: list[_Choice]
) -> AsyncGenerator[tuple[int, AnswerPart | None], None]:
    """Yield each answer's parts, after one None for what there is before it begins."""
    serving = serving_of(request)
    questions = await asyncio.to_thread(asked.questions, model, serving.settings)
    for index, question in enumerate(questions):
        choices.append(await asyncio.to_thread(_Choice, model, asked, question))
        yield index, None
    async with contextlib.aclosing(serving.answers(request, model, questions)) as parts:
        async for index, part in parts:
            yield index, part


async def _chunks(request: Request, asked: CompletionRequest) -> AsyncGenerator[dict[str, Any], None]:
    async with serving_of(request).use(request, asked.model) as served:
        head = _head(served.name)
        choices: list[_Choice] = []
        async with contextlib.aclosing(_answered(request, served.loaded, asked, choices)) as parts:
            async for index, part in parts:
                if part is None:
                    if asked.echo:
                        yield head | {"choices": [choices[index].whole(index)]}
                    continue
                choice = choices[index].add(part)
                if choice["text"] or choice["logprobs"] or choice["finish_reason"]:
                    yield head | {"choices": [{"index": index} | choice]}
        totals = [choice.totals for choice in choices if choice.totals is not None]
        if asked.stream_options is not None and asked.stream_options.include_usage and totals:
            yield head | {"choices": [], "usage": usage_of_prompts(totals), "timings": timings(totals[-1])}


async def _whole(request: Request, asked: CompletionRequest) -> dict[str, Any]:
    async with serving_of(request).use(request, asked.model) as served:
        choices: list[_Choice] = []
        async with contextlib.aclosing(_answered(request, served.loaded, asked, choices)) as parts:
            async for index, part in parts:
                if part is not None:
                    choices[index].add(part)
        totals = [choice.totals for choice in choices if choice.totals is not None]
        shown = [choice.whole(index) for index, choice in enumerate(choices)]
        return _head(served.name) | {
            "choices": shown,
            "usage": usage_of_prompts(totals),
            "timings": timings(totals[-1]),
        }


def _head(model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }
