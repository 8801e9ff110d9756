"""Who may ask, and how much: the host and the origin of a request, its key, and the size of its body.

A page that a user visits can send requests to a server on the user's own machine. Two checks keep it out:

- The name in the Host header must be ours. By DNS rebinding, a page's own name comes to mean 127.0.0.1; then the
  browser sees one origin, and only the Host header tells. An address of numbers cannot be rebound.
- An Origin header, which browsers add to each request of another page, must be ours or allowed by ``--cors``.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamalite.server.errors import error_response, refusal
from llamalite.server.settings import MAX_BODY_BYTES, ServerSettings

_PUBLIC = frozenset({"/health", "/v1/health"})


class Gate:
    """Middleware that lets only proper requests through; the `public` paths, the page's, need no key."""

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, public: frozenset[str] = frozenset()) -> None:
        self._app, self._settings = app, settings
        self._public = _PUBLIC | public
        self._keys = [key.encode() for key in settings.api_keys]
        self._hosts = {"localhost", *(host.lower() for host in settings.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_origin(headers)
            if self._keys and scope["path"] not in self._public:
                self._check_key(headers)
            if int(headers.get("content-length") or 0) > MAX_BODY_BYTES:
                raise _too_large()
        except (HTTPException, ValueError) as error:
            anthropic = scope["path"].startswith("/v1/messages")
            await error_response(error, anthropic=anthropic)(scope, receive, send)
            return
        await self._app(scope, self._limited(receive), send)

    def _check_host(self, headers: Headers) -> None:
        given = headers.getlist("host")
        host = _host_of(f"//{given[0]}") if len(given) == 1 else None
        if host is None or not (host in self._hosts or _is_address(host)):
            shown = given[0] if len(given) == 1 else "none or several"
            raise refusal(f"this server is not called {shown!r:.100}: start it with --allow-host NAME", status=403)

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or "*" in self._settings.cors or origin in self._settings.cors:
            return
        if urlsplit(origin).netloc.lower() != headers["host"].lower():
            raise refusal(f"pages of {origin!r:.100} may not ask: start the server with --cors ORIGIN", status=403)

    def _check_key(self, headers: Headers) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")).encode()
        if not any([hmac.compare_digest(given, key) for key in self._keys]):  # noqa: C419 - compare with every key
            message = "the API key is missing or wrong: send it as Authorization: Bearer KEY, or as X-Api-Key: KEY"
            raise refusal(message, status=401, code="invalid_api_key")

    def _limited(self, receive: Receive) -> Receive:
        """Return `receive` with a bound on the body's bytes, and on the time that it may take."""
        n_bytes, is_complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._settings.body_timeout_s

        async def limited() -> Message:
            nonlocal n_bytes, is_complete
            if is_complete:
                return await receive()
            try:
                left = deadline - asyncio.get_running_loop().time()
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except asyncio.TimeoutError:
                seconds = self._settings.body_timeout_s
                raise refusal(f"the body did not arrive within {seconds:g} s", status=408) from None
            n_bytes += len(message.get("body", b""))
            is_complete = message["type"] != "http.request" or not message.get("more_body", False)
            if n_bytes > MAX_BODY_BYTES:
                raise _too_large()
            return message

        return limited


def _too_large() -> HTTPException:
    return refusal(f"the body is larger than {MAX_BODY_BYTES >> 20} MiB", status=413, code="request_too_large")


def _host_of(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a port that is none
        return parts.hostname if not (parts.path or parts.query or parts.username) else None
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
