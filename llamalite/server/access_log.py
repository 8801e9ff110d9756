"""One line for each request, when it has been answered: as text, or as JSON for programs.

    POST /v1/chat/completions 200 1.43 s demo-Q4_K_M 35+64 tokens
    {"time": "...", "client": "127.0.0.1", "method": "POST", "path": "/v1/chat/completions", "status": 200, ...}

The lines go to the logger ``llamalite.server.access``; who listens decides where they are shown. 499 stands for a
client that went away.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timezone
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamalite.server.metrics import Metrics

access_logger = logging.getLogger("llamalite.server.access")
CLIENT_GONE = 499


class AccessLog:
    """Middleware that writes the lines, and counts requests; what an endpoint notes in `notes` is part of them."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_GONE
        scope["llamalite.notes"] = {}

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - started
            notes = scope["llamalite.notes"]
            status = notes.pop("status", status)
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, status, seconds)
            client = (scope.get("client") or ("",))[0]
            fields = {"client": client, "method": scope["method"], "path": scope["path"], "status": status}
            access_logger.info("%s", _line(fields, seconds, notes), extra={"request": fields | notes | {"s": seconds}})


def notes(scope: Scope) -> dict[str, Any]:
    """Return what is noted about a request, for its line: `model`, `n_prompt`, `n_generated`, `status`."""
    found: dict[str, Any] = scope["llamalite.notes"]
    return found


def _line(fields: dict[str, Any], seconds: float, noted: dict[str, Any]) -> str:
    parts = [fields["method"], fields["path"], str(fields["status"]), f"{seconds:.2f} s"]
    if "model" in noted:
        parts.append(noted["model"])
    if "n_generated" in noted:
        parts.append(f"{noted['n_prompt']}+{noted['n_generated']} tokens")
    return " ".join(parts)


class JsonLines(logging.Formatter):
    """Formats an access line as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        time_text = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        request = getattr(record, "request", {"message": record.getMessage()})
        rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in request.items()}
        return json.dumps({"time": time_text} | rounded, ensure_ascii=False)
