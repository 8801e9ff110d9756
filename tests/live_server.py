"""A server on loopback, in a thread of the test's own process, and what is needed to ask it.

with LiveServer({"toy": path}) as server:
    reply = server.post("/v1/completions", {"prompt": "once", "max_tokens": 4})
    reply.status, reply.body["choices"]
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamalite.model_options import ModelOptions
from llamalite.server.app import make_app
from llamalite.server.models import ModelPool, ServedModel
from llamalite.server.running import listen, make_server
from llamalite.server.settings import ServerSettings


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> Any:
        return self.body["error"]

    def events(self) -> list[Any]:
        """The JSON of each event of a stream, and the text of "[DONE]"."""
        lines = [line[6:] for line in self.text.splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


class LiveServer:
    def __init__(self, files: Mapping[str, Path], settings: ServerSettings | None = None, **options: Any) -> None:
        self.pool = ModelPool([ServedModel(name, path) for name, path in files.items()], ModelOptions(**options))
        self.app = make_app(self.pool, settings or ServerSettings(n_parallel=4))
        self._sockets = listen("127.0.0.1", 0)
        self.port = self._sockets[0].getsockname()[1]
        self._server = make_server(self.app, grace_s=5)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets=self._sockets)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def n_running(self) -> int:
        """How many answers the server is giving."""
        n: int = self.app.state.serving.metrics.n_running
        return n

    def __enter__(self) -> LiveServer:
        self._thread.start()
        self.wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    @staticmethod
    def wait_until(holds: Any, seconds: float = 20.0) -> float:
        """Wait until `holds()`; return the seconds that took."""
        started = time.perf_counter()
        while not holds():
            assert time.perf_counter() - started < seconds, "it never happened"
            time.sleep(0.002)
        return time.perf_counter() - started

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Ask with `body`, bytes or what JSON is made of."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            connection.request(method, path, raw, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, dict(response.headers), response.read().decode())

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.request("POST", path, body, headers)

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, None, headers)

    @contextlib.contextmanager
    def open(self, path: str, body: Any) -> Iterator[http.client.HTTPConnection]:
        """Send a request and leave without reading the answer, when the block ends."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            yield connection
        finally:
            connection.close()
