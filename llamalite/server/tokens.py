"""Texts, tokens and templates, as llama-server offers them, and what the server is and has: nothing here generates."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamalite.server.chatting import Conversation
from llamalite.server.delivery import json_body, serving_of
from llamalite.server.errors import error_response, refusal
from llamalite.server.fields import Fields, read_body
from llamalite.server.models import ServedModel


class TokenizeRequest(Fields):
    """The body of ``/tokenize``."""

    model: str | None = None
    content: str
    add_special: bool = False
    parse_special: bool = False
    with_pieces: bool = False


class DetokenizeRequest(Fields):
    """The body of ``/detokenize``."""

    model: str | None = None
    tokens: list[int]


class TemplateRequest(Conversation):
    """The body of ``/apply-template`` and of the endpoints that count tokens."""

    model: str | None = None


async def tokenize(request: Request) -> Response:
    """Return the token ids of a text, with their texts if asked for."""
    asked = await read_body(request, TokenizeRequest)
    async with serving_of(request).use(request, asked.model) as served:
        ids = await asyncio.to_thread(
            served.loaded.tokenize, asked.content, add_special=asked.add_special, parse_special=asked.parse_special
        )
        if not asked.with_pieces:
            return json_body({"tokens": ids})
        return json_body({"tokens": [{"id": token, "piece": _piece(served, token)} for token in ids]})


def _piece(served: ServedModel, token: int) -> str | list[int]:
    """Return a token's text, or its bytes if they are no text of their own, as llama-server does."""
    raw = served.loaded.native.token_to_piece(token, special=True)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


async def detokenize(request: Request) -> Response:
    """Return the text of token ids."""
    asked = await read_body(request, DetokenizeRequest)
    async with serving_of(request).use(request, asked.model) as served:
        return json_body({"content": await asyncio.to_thread(served.loaded.detokenize, asked.tokens)})


async def apply_template(request: Request) -> Response:
    """Return the prompt that a conversation becomes."""
    asked = await read_body(request, TemplateRequest)
    async with serving_of(request).use(request, asked.model) as served:
        arguments, _ = await asyncio.to_thread(asked.prompt, served.loaded)
        return json_body({"prompt": await asyncio.to_thread(lambda: served.loaded.render(**arguments))})


async def count_tokens(request: Request) -> Response:
    """Return how many tokens the prompt of a conversation has."""
    asked = await read_body(request, TemplateRequest)
    async with serving_of(request).use(request, asked.model) as served:
        arguments, _ = await asyncio.to_thread(asked.prompt, served.loaded)
        ids = await asyncio.to_thread(lambda: served.loaded.chat_tokens(**arguments))
        return json_body({"object": "response.input_tokens", "input_tokens": len(ids)})


async def health(request: Request) -> Response:
    """Return whether the server can answer: 503 while the model that it was started with is being loaded."""
    pool = serving_of(request).pool
    if len(pool.models) == 1 and pool.models[0].status == "loading":
        return error_response(refusal("Loading model", status=503))
    return JSONResponse({"status": "ok"})


async def list_models(request: Request) -> Response:
    """Return the models that can be asked, and which are loaded."""
    serving = serving_of(request)
    return json_body({"object": "list", "data": [_described(served) for served in serving.pool.models]})


async def one_model(request: Request) -> Response:
    """Return one model."""
    name = request.path_params["name"]
    return json_body(_described(serving_of(request).pool.find(name)))


def _described(served: ServedModel) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "llamalite",
        "aliases": list(served.aliases),
        "status": {"value": served.status},
    }
    if served.model is not None:
        native = served.model.native
        described["meta"] = {
            "n_vocab": native.n_vocab, "n_ctx": served.model.n_ctx, "n_ctx_train": native.n_ctx_train,
            "n_embd": native.n_embd, "n_params": native.n_params, "size": native.size_bytes,
            "has_chat_template": served.model.has_chat_template,
        }  # fmt: skip
    return described


async def metrics(request: Request) -> Response:
    """Return the figures for Prometheus."""
    serving = serving_of(request)
    loaded = {served.name: served.model is not None for served in serving.pool.models}
    return Response(serving.metrics.text(loaded), media_type=serving.metrics.content_type)


async def props(request: Request) -> Response:
    """Return what llama-server tells about itself."""
    serving = serving_of(request)
    served = serving.pool.find(request.query_params.get("model"))
    await serving.pool.load(served)
    params = {"seed": served.loaded.defaults.seed, **serving.settings.sampling}
    return json_body(
        {
            "default_generation_settings": {"n_ctx": served.loaded.n_ctx, "params": params},
            "total_slots": serving.settings.n_parallel,
            "model_path": served.path.name,
            "chat_template": served.loaded.template_source() or "",
        }
    )


async def slots(request: Request) -> Response:
    """Return which slots answer, if the server was started to tell."""
    serving = serving_of(request)
    if not serving.settings.shows_slots:
        raise refusal("start the server with --slots to see its slots", status=501)
    n_busy = serving.metrics.n_running
    served = serving.pool.models[0]
    n_ctx = served.model.n_ctx if served.model is not None else 0
    shown = [{"id": i, "n_ctx": n_ctx, "is_processing": i < n_busy} for i in range(serving.settings.n_parallel)]
    return json_body(shown)
