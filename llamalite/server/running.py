"""The process of the server: its socket, its signals, and connections that are too slow.

The first SIGTERM or Ctrl-C stops new connections and lets running answers end, for the grace's seconds; then, or at the
second signal, they are told that the server stops. uvicorn raises the signal again when it is done, so that the exit
code is the usual one: 143 or 130.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from llamalite.server.delivery import Serving
from llamalite.server.models import ServedModel

_HEADER_TIMEOUT_S = 30.0  # within which a request's head must arrive
_MAX_HEADER_BYTES = 64 << 10


class TimedProtocol(H11Protocol):
    """uvicorn's protocol, which closes a connection whose request does not arrive."""

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        is_waiting = self.conn.their_state is h11.IDLE
        if is_waiting and self._waits is None:
            self._waits = self.loop.call_later(_HEADER_TIMEOUT_S, self._cut)
        elif not is_waiting:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _cut(self) -> None:
        self._waits = None
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()


class HttpServer(uvicorn.Server):
    """uvicorn's server: `on_start` is called once it listens, `grace_s` are the seconds of running answers at the end.

    With `eager`, that model is loaded at the start; what its load raises is kept in `failure`, and ends the server.
    """

    def __init__(
        self, config: uvicorn.Config, serving: Serving, *, grace_s: float, eager: ServedModel | None,
        on_start: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(config)
        self.failure: Exception | None = None
        self._on_start, self._serving, self._eager = on_start, serving, eager
        self._grace_s, self._n_signals = grace_s, 0
        self._loading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to load."""
        if self._eager is not None:
            self._loading = asyncio.create_task(self._load(self._eager))
            await asyncio.sleep(0)  # so that the health is "loading" from the first request on
        await super().startup(sockets)
        self._on_start()

    async def _load(self, served: ServedModel) -> None:
        try:
            await self._serving.pool.load(served)
        except Exception as error:  # noqa: BLE001 - the caller of `run` raises it
            self.failure, self.should_exit = error, True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal: the second ends the grace, a third ends the process whatever goes on."""
        self._n_signals += 1
        super().handle_exit(sig, frame)
        self.force_exit = self._n_signals > 2

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, wait for the answers within the grace, and end them."""
        ending = asyncio.create_task(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_answers(self) -> None:
        deadline = time.monotonic() + self._grace_s
        while time.monotonic() < deadline and self._n_signals < 2:
            await asyncio.sleep(0.05)
        self._serving.end_answers()


def listen(hosts: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each of `hosts`, separated by commas; ``OSError`` names the address."""
    bound: list[socket.socket] = []
    try:
        for host in hosts.split(","):
            bound.append(_listen(host.strip(), bound[0].getsockname()[1] if bound else port))
    except OSError:
        for one in bound:
            one.close()
        raise
    return bound


def _listen(host: str, port: int) -> socket.socket:
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.create_server(address[4][:2], family=address[0], backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None
    bound.setblocking(False)
    return bound


def url_of(host: str, bound: socket.socket) -> str:
    """Return the address to click."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{bound.getsockname()[1]}"


def run(
    app: Starlette,
    sockets: list[socket.socket],
    *,
    grace_s: float = 30.0,
    on_start: Callable[[], None] = lambda: None,
    eager: ServedModel | None = None,
) -> None:
    """Serve `app` until a signal ends it; raise what loading the `eager` model raised."""
    server = make_server(app, grace_s=grace_s, on_start=on_start, eager=eager)
    server.run(sockets=sockets)
    if server.failure is not None:
        raise server.failure


def make_server(
    app: Starlette,
    *,
    grace_s: float = 30.0,
    on_start: Callable[[], None] = lambda: None,
    eager: ServedModel | None = None,
) -> HttpServer:
    """Return a server for `app`, not running yet."""
    AppStatus.enable_automatic_graceful_drain = False  # it would cut the streams that the grace is for
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=round(grace_s) + 5,  # after those of `_end_answers`, which have said why
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )
    return HttpServer(config, app.state.serving, grace_s=grace_s, eager=eager, on_start=on_start)
