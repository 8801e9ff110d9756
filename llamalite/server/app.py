"""The routes, and what every request passes: the access log, CORS, the gate, and at last an exception's response."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from llamalite.server import chat, completions, embeddings, messages, native_api, responses, tokens
from llamalite.server.access_log import CLIENT_GONE, AccessLog, notes
from llamalite.server.delivery import Serving
from llamalite.server.errors import error_response
from llamalite.server.models import ModelPool
from llamalite.server.security import Gate
from llamalite.server.settings import ServerSettings

Endpoint = Callable[[Request], Awaitable[Response]]
PAGE = Path(__file__).with_name("page")
# What the page may load and do: nothing from elsewhere, no script but its own files.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_app(pool: ModelPool, settings: ServerSettings) -> Starlette:
    """Return the ASGI app that serves `pool`."""
    serving = Serving(pool, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await pool.close()

    middleware = [Middleware(AccessLog, metrics=serving.metrics)]
    if settings.cors:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors),
                allow_methods=["GET", "POST", "OPTIONS"],
                allow_headers=["*"],
            )
        )
    middleware.append(Middleware(Gate, settings=settings, public=frozenset(page_files() if settings.has_page else ())))
    app = Starlette(
        routes=_routes(settings),
        middleware=middleware,
        exception_handlers={HTTPException: _on_http_error, 500: _on_http_error},
        lifespan=lifespan,
    )
    app.state.serving = serving
    return app


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer what Starlette itself refuses, such as an unknown path."""
    return error_response(error, anthropic=request.url.path.startswith("/v1/messages"))


def _guarded(endpoint: Endpoint) -> Endpoint:
    """Return `endpoint` with its exceptions as responses."""

    @functools.wraps(endpoint)
    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            notes(request.scope)["status"] = CLIENT_GONE
            return Response(status_code=400)  # nobody reads it
        except Exception as error:  # noqa: BLE001 - the outermost handler of a request
            return error_response(error, anthropic=request.url.path.startswith("/v1/messages"))

    return guarded


def _routes(settings: ServerSettings) -> list[BaseRoute]:
    posts: dict[str, Endpoint] = {
        "/v1/chat/completions": chat.chat_completions,
        "/chat/completions": chat.chat_completions,
        "/v1/completions": completions.completions,
        "/v1/responses": responses.responses,
        "/responses": responses.responses,
        "/v1/embeddings": embeddings.embeddings,
        "/embeddings": embeddings.embeddings,
        "/v1/messages": messages.messages,
        "/v1/messages/count_tokens": messages.count_message_tokens,
        "/completion": native_api.native_completion,
        "/completions": native_api.native_completion,
        "/tokenize": tokens.tokenize,
        "/detokenize": tokens.detokenize,
        "/apply-template": tokens.apply_template,
        "/v1/chat/completions/input_tokens": tokens.count_tokens,
        "/chat/completions/input_tokens": tokens.count_tokens,
    }
    gets: dict[str, Endpoint] = {
        "/health": tokens.health,
        "/v1/health": tokens.health,
        "/v1/models": tokens.list_models,
        "/models": tokens.list_models,
        "/v1/models/{name:path}": tokens.one_model,
        "/metrics": tokens.metrics,
        "/props": tokens.props,
        "/slots": tokens.slots,
    }
    routes: list[BaseRoute] = [Route(path, _guarded(endpoint), methods=["POST"]) for path, endpoint in posts.items()]
    routes += [Route(path, _guarded(endpoint), methods=["GET"]) for path, endpoint in gets.items()]
    if settings.has_page:
        routes += [Route(path, _page_file, methods=["GET"]) for path in page_files()]
    return routes


def page_files() -> dict[str, Path]:
    """Return the page's files by their paths on the server: nothing else of the disk can be asked for."""
    files = {f"/{file.name}": file for file in sorted(PAGE.glob("*.*"))}
    return files | ({"/": files["/index.html"]} if "/index.html" in files else {})


async def _page_file(request: Request) -> Response:
    return FileResponse(page_files()[request.url.path], headers=_PAGE_HEADERS)
