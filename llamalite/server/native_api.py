"""``POST /completion``: llama-server's own protocol, which some clients and benchmarks speak.

The fields are those of ``server_task_result_cmpl_final::to_json_non_oaicompat`` (tools/server/server-task.cpp).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from llamalite.generation.completion import Piece, Totals
from llamalite.model import Model
from llamalite.sampling import SamplingParams
from llamalite.server.answering import AnswerPart, AnswerRequest
from llamalite.server.chat import scored_token
from llamalite.server.chatting import several
from llamalite.server.delivery import json_body, serving_of, stream_events, while_listening
from llamalite.server.errors import refusal
from llamalite.server.fields import SamplingFields, read_body, room_for
from llamalite.server.figures import stopping_word, timings
from llamalite.server.models import ServedModel
from llamalite.server.settings import MAX_CHOICES, ServerSettings

_MAX_PROMPTS = 256


class NativeRequest(SamplingFields):
    """The body of ``/completion``; a prompt is a text, or a list of token ids and texts, or several of them."""

    model: str | None = None
    prompt: Any
    n_predict: int | None = Field(None, ge=-2)
    max_tokens: int | None = Field(None, ge=-1)
    n_cmpl: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    n_probs: int = Field(0, ge=0, le=1000)
    post_sampling_probs: bool = False
    return_tokens: bool = False
    response_fields: list[str] = Field(default_factory=list)

    def questions(self, model: Model, settings: ServerSettings) -> list[AnswerRequest]:
        """Return a question for each answer."""
        if self.post_sampling_probs:
            raise refusal("post_sampling_probs is not supported: n_probs are the model's own", param="n_probs")
        params = self.sampling(model, settings.sampling, logprobs=self.n_probs or None)
        given = self.n_predict if self.n_predict is not None else self.max_tokens
        wanted = given if given is not None else params.max_tokens
        if self.prompt == []:
            raise refusal("prompt is empty: give a text, or token ids", param="prompt")
        questions = []
        for prompt in _prompts(self.prompt):
            ids = _tokens(model, prompt)
            one = params.replace(max_tokens=room_for(model, len(ids), wanted))
            questions += several(AnswerRequest(ids, one), self.n_cmpl)
        if len(questions) > _MAX_PROMPTS:
            raise refusal(f"prompt asks for more than {_MAX_PROMPTS} answers", param="prompt")
        return questions


def _prompts(given: Any) -> Sequence[Any]:
    """Return the prompts; a list that holds a number is one prompt."""
    is_one = not isinstance(given, list) or any(isinstance(part, int) for part in given)
    return [given] if is_one else given


def _tokens(model: Model, prompt: Any) -> list[int]:
    if isinstance(prompt, dict):
        if "multimodal_data" in prompt:
            raise refusal("multimodal_data is not supported: this model reads text only", param="prompt")
        prompt = prompt.get("prompt_string")
    if isinstance(prompt, str):
        return model.prompt_tokens(prompt)
    if not isinstance(prompt, list) or not prompt:
        raise refusal(f"prompt must be a text, or a list of token ids and texts, found {prompt!r:.60}", param="prompt")
    ids: list[int] = []
    for part in prompt:
        if isinstance(part, str):
            ids += model.tokenize(part, add_special=not ids)
        elif isinstance(part, int) and not isinstance(part, bool):
            ids.append(part)
        else:
            raise refusal(f"prompt must hold token ids and texts, found {part!r:.60}", param="prompt")
    return model.prompt_tokens(ids)


async def native_completion(request: Request) -> Response:
    """Continue a text, or several."""
    asked = await read_body(request, NativeRequest)
    if asked.stream:
        return await stream_events(request, _chunks(request, asked))
    return json_body(await while_listening(request, _whole(request, asked)))


class _Reply:
    """One answer in the shape of this protocol."""

    def __init__(self, served: ServedModel, asked: NativeRequest, question: AnswerRequest, index: int) -> None:
        self._served, self._asked, self._question, self._index = served, asked, question, index
        self._text = ""
        self._tokens: list[int] = []
        self._pieces: list[Piece] = []

    def add(self, part: AnswerPart) -> dict[str, Any]:
        """Add a part; return it as an event."""
        self._text += part.text
        tokens = []
        if part.piece is not None and part.piece.token is not None:
            tokens = [part.piece.token]
            self._tokens += tokens
            self._pieces.append(part.piece)
        event: dict[str, Any] = {"index": self._index, "content": part.text, "tokens": tokens, "stop": False}
        event |= {"id_slot": 0, "tokens_predicted": len(self._tokens), "tokens_evaluated": len(self._question.prompt)}
        if tokens and self._asked.n_probs:
            event["completion_probabilities"] = [self._scored(self._pieces[-1])]
        return event

    def final(self, part: AnswerPart, *, whole: bool) -> dict[str, Any]:
        """Return the last event, or the `whole` answer."""
        assert part.totals is not None
        model, totals = self._served.loaded, part.totals
        reply: dict[str, Any] = {
            "index": self._index,
            "content": self._text if whole else "",
            "tokens": self._tokens if whole and self._asked.return_tokens else [],
            "id_slot": 0,
            "stop": True,
            "model": self._served.name,
            "tokens_predicted": totals.n_generated,
            "tokens_evaluated": totals.n_prompt,
            "generation_settings": settings_shown(self._question.params, totals),
            "prompt": model.detokenize(self._question.prompt, special=True),
            "has_new_line": "\n" in self._text,
            "truncated": False,
            "stop_type": "limit",
            "stopping_word": "",
            "tokens_cached": totals.n_prompt + totals.n_generated,
            "timings": timings(totals),
        }
        if part.finish_reason == "stop":
            word = stopping_word(model, self._tokens, self._question.params)
            reply |= {"stop_type": "word" if word else "eos", "stopping_word": word}
        if whole and self._asked.n_probs:
            reply["completion_probabilities"] = [self._scored(piece) for piece in self._pieces]
        if self._asked.response_fields:
            return {field: value for field in self._asked.response_fields if (value := _at(reply, field)) is not None}
        return reply

    def _scored(self, piece: Piece) -> dict[str, Any]:
        model = self._served.loaded
        assert piece.token is not None
        tops = [scored_token(model, *pair) for pair in piece.top_logprobs]
        return scored_token(model, piece.token, piece.logprob or 0.0) | {"top_logprobs": tops}


def _at(reply: dict[str, Any], field: str) -> Any:
    """Return a field by its path, such as ``generation_settings/n_predict``."""
    found: Any = reply
    for name in field.split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def settings_shown(params: SamplingParams, totals: Totals) -> dict[str, Any]:
    """Return the parameters of an answer under llama-server's names."""
    biases = [
        {"token": token, "bias": None if bias == float("-inf") else bias} for token, bias in params.logit_bias.items()
    ]
    most = -1 if params.max_tokens is None else params.max_tokens
    return {
        "n_predict": most, "max_tokens": most, "seed": totals.seed, "temperature": params.temperature,
        "top_k": params.top_k, "top_p": params.top_p, "min_p": params.min_p, "repeat_penalty": params.repeat_penalty,
        "repeat_last_n": params.repeat_last_n, "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty, "stop": list(params.stops), "n_probs": params.logprobs or 0,
        "grammar": params.grammar or "", "logit_bias": biases,
        "adaptive_target": -1.0, "adaptive_decay": 0.0,  # a sampler that llama-server has: off
    }  # fmt: skip


async def _answered(
    request: Request, served: ServedModel, asked: NativeRequest, replies: list[_Reply]
) -> AsyncGenerator[tuple[int, AnswerPart], None]:
    serving = serving_of(request)
    questions = await asyncio.to_thread(asked.questions, served.loaded, serving.settings)
    replies += [_Reply(served, asked, question, index) for index, question in enumerate(questions)]
    async with contextlib.aclosing(serving.answers(request, served.loaded, questions)) as parts:
        async for index, part in parts:
            yield index, part


async def _chunks(request: Request, asked: NativeRequest) -> AsyncGenerator[dict[str, Any], None]:
    async with serving_of(request).use(request, asked.model) as served:
        replies: list[_Reply] = []
        async with contextlib.aclosing(_answered(request, served, asked, replies)) as parts:
            async for index, part in parts:
                event = replies[index].add(part)
                if event["tokens"] or event["content"]:
                    yield event
                if part.finish_reason is not None:
                    yield replies[index].final(part, whole=False)


async def _whole(request: Request, asked: NativeRequest) -> Any:
    async with serving_of(request).use(request, asked.model) as served:
        replies: list[_Reply] = []
        finished: dict[int, dict[str, Any]] = {}
        async with contextlib.aclosing(_answered(request, served, asked, replies)) as parts:
            async for index, part in parts:
                replies[index].add(part)
                if part.finish_reason is not None:
                    finished[index] = replies[index].final(part, whole=True)
        ordered = [finished[index] for index in sorted(finished)]
        return ordered if len(ordered) > 1 else ordered[0]
