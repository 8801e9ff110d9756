"""``POST /v1/embeddings``: texts as vectors, in OpenAI's shape (platform.openai.com/docs/api-reference/embeddings)."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Literal

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from llamalite.embedding import Embedder
from llamalite.model import Model
from llamalite.server.access_log import notes
from llamalite.server.delivery import json_body, serving_of, while_listening
from llamalite.server.errors import refusal
from llamalite.server.fields import Fields, read_body
from llamalite.tool_calls.messages import joined_text

_MAX_INPUTS = 2048


class EmbeddingsRequest(Fields):
    """The body of ``/v1/embeddings``; an input is a text, or a list of token ids and texts, or several of them."""

    model: str | None = None
    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def inputs(self, model: Model) -> list[list[int]]:
        """Return the token ids of each text."""
        given = self.input
        is_one = not isinstance(given, list) or any(isinstance(part, int) for part in given)
        texts = [given] if is_one else given
        if not texts or len(texts) > _MAX_INPUTS:
            raise refusal(f"input must hold 1 to {_MAX_INPUTS} texts, found {len(texts)}", param="input")
        return [_tokens(model, text) for text in texts]


def _tokens(model: Model, given: Any) -> list[int]:
    if isinstance(given, dict) and "content" in given and isinstance(given["content"], list):
        given = joined_text("input.content", given["content"]) if given["content"] else ""
    elif isinstance(given, dict):
        given = given.get("prompt_string")
    if isinstance(given, str):
        return model.tokenize(given) or model.tokenize(" ")  # an empty text, without a BOS
    if not isinstance(given, list) or not given:
        raise refusal(f"input must be a text, or a list of token ids and texts, found {given!r:.60}", param="input")
    ids: list[int] = []
    for part in given:
        if isinstance(part, str):
            ids += model.tokenize(part, add_special=not ids)
        elif isinstance(part, int) and not isinstance(part, bool):
            ids.append(part)
        else:
            raise refusal(f"input must hold token ids and texts, found {part!r:.60}", param="input")
    return model.prompt_tokens(ids)


async def embeddings(request: Request) -> Response:
    """Return a vector for each text."""
    asked = await read_body(request, EmbeddingsRequest)
    if asked.dimensions is not None:
        raise refusal("dimensions is not supported: the vectors are as long as the model's", param="dimensions")
    return json_body(await while_listening(request, _answer(request, asked)))


async def _answer(request: Request, asked: EmbeddingsRequest) -> dict[str, Any]:
    serving = serving_of(request)
    async with serving.use(request, asked.model) as served, served.embedding:
        model = served.loaded
        texts = await asyncio.to_thread(asked.inputs, model)

        def work() -> Any:
            with Embedder(model, serving.settings.pooling) as embedder:
                return embedder.embed(texts)

        vectors = await asyncio.to_thread(work)
        n_tokens = sum(map(len, texts))
        notes(request.scope).update(n_prompt=n_tokens, n_generated=0)
        return {
            "object": "list",
            "model": served.name,
            "data": [
                {"object": "embedding", "index": i, "embedding": _encoded(vector, asked.encoding_format)}
                for i, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }


def _encoded(vector: Any, how: str) -> Any:
    if how == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return [float(value) for value in vector]
