"""A server that says what a test tells it to: the page's folder, a list of models, and answers from a script.

    with ScriptedServer(folder) as server:
        server.script = ["Hel", 0.1, "lo"]        # text to stream, seconds to wait
        server.script = [Refusal(503, {"error": {"message": "busy"}}, {"Retry-After": "1"})]

`requests` keeps the body of every chat that was asked for; `server.key` is a key to insist on. Whatever follows a
`Refusal` in the script is for the next request.
"""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Refusal:
    """An answer that is no stream."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


class Break:
    """In a script: the connection ends here, in the middle of the answer."""


Script = Sequence["str | float | Refusal | dict[str, Any] | type[Break]"]


class ScriptedServer:
    """Serves `folder` at / and the OpenAI routes that the page uses, on a free port of the loopback address."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.models = ["toy-1B-Q4_K_M", "toy-8B-Q8_0"]
        self.script: Script = ["Hello."]
        self.key = ""
        self.requests: list[dict[str, Any]] = []
        self.others: list[str] = []  # paths that nothing serves
        self.left = threading.Event()  # a client went away before its answer ended
        server = self

        class Handler(_Handler):
            scripted = server

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/"

    def __enter__(self) -> ScriptedServer:
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    scripted: ScriptedServer

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/") or "index.html"
        path = self.scripted.folder / name
        if self.path == "/v1/models":
            if self._allowed():
                self._json(200, {"data": [{"id": name, "object": "model"} for name in self.scripted.models]})
        elif path.is_file() and path.parent == self.scripted.folder:
            headers = {"Content-Type": TYPES[path.suffix], "Content-Security-Policy": POLICY}
            self._send(200, path.read_bytes(), headers)
        else:
            self.scripted.others.append(self.path)
            self._json(404, {"error": {"message": "there is nothing here"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        self.scripted.requests.append(body)
        script = self.scripted.script
        if isinstance(script[0], Refusal):
            self.scripted.script = script[1:]
            self._json(script[0].status, script[0].body, script[0].headers)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._stream(script)
        except OSError:
            self.scripted.left.set()

    def _stream(self, script: Script) -> None:
        n = 0
        for step in script:
            if step is Break:
                return
            if isinstance(step, float):
                time.sleep(step)
            elif isinstance(step, dict):
                self._event(step)
            else:
                n += 1
                self._event({"choices": [{"index": 0, "delta": {"content": step}, "finish_reason": None}]})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 21, "completion_tokens": n, "prompt_tokens_details": {"cached_tokens": 8}}
        timings = {"predicted_n": n, "predicted_per_second": 42.0}
        self._event({"choices": [], "usage": usage, "timings": timings})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def _allowed(self) -> bool:
        key = self.scripted.key
        if key and self.headers["Authorization"] != f"Bearer {key}":
            self._json(401, {"error": {"message": "Invalid API key.", "code": "invalid_api_key"}})
            return False
        return True

    def _json(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
