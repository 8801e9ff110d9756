"""A hub on loopback that the real huggingface_hub client takes for huggingface.co: the routes that a download needs.

with HubServer({"org/name": Repo({"config.json": b"{}"})}) as hub:
    environment = {"HF_ENDPOINT": hub.url}
    hub.requests      # ["GET /api/models/org/name", "HEAD /org/name/resolve/main/config.json", ...]
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"


@dataclass
class Repo:
    """A repository: `files` at the branch main, `others` by the names of other revisions."""

    files: dict[str, bytes]
    others: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    status: int = 200
    """The status of every answer about it, if not 200: a broken hub."""
    cuts: int = 0
    """How many more transfers of a file will break off in the middle."""

    def commit(self, revision: str) -> str | None:
        for name in ("main", *self.others):
            commit = hashlib.sha1(f"{name}{id(self)}".encode()).hexdigest()
            if revision in (name, commit):
                return commit
        return None

    def at(self, revision: str) -> dict[str, bytes]:
        return next((files for name, files in self.others.items() if revision in (name, self.commit(name))), self.files)


class HubServer:
    """Serves `repos` until the ``with`` ends; `requests` lists what was asked for."""

    def __init__(self, repos: dict[str, Repo]) -> None:
        self.repos = repos
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def downloads(self) -> list[str]:
        """The files that were transferred, each as often as it was."""
        found = [re.match(r"GET /.+/resolve/[^/]+/(.+)", request) for request in self.requests]
        return [match[1] for match in found if match]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        self.hub.requests.append(f"{self.command} {urlsplit(unquote(self.path)).path}")

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(unquote(self.path)).path
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or resolve
        repo = self.hub.repos.get(match[1]) if match else None
        if match is None or repo is None:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        if repo.status != 200:
            self._send(repo.status, {"error": "broken"})
            return
        revision = (api[3] if api else match[2]) or "main"
        commit = repo.commit(revision)
        if commit is None:
            self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return
        files = repo.at(revision)
        if api:
            self._send(200, self._listing(match[1], commit, files, is_tree=api[2] == "tree"))
            return
        if repo.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Access to this model is restricted"}, {"X-Error-Code": "GatedRepo"})
        elif match[3] not in files:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            self._send_file(repo, files[match[3]], commit)

    def _listing(self, repo_id: str, commit: str, files: dict[str, bytes], *, is_tree: bool) -> Any:
        if is_tree:
            return [
                {"type": "file", "path": name, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
                for name, raw in files.items()
            ]
        siblings = [{"rfilename": name, "size": len(raw)} for name, raw in files.items()]
        return {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings, "private": False, "tags": []}

    def _send_file(self, repo: Repo, raw: bytes, commit: str) -> None:
        etag = f'"{hashlib.sha1(raw).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {first}-{len(raw) - 1}/{len(raw)}"
            self.hub.requests.append(f"RANGE {first}")
        body = raw[first:]
        self._start(206 if asked else 200, len(body), headers)
        if self.command == "HEAD":
            return
        if repo.cuts and len(body) > 1000:
            repo.cuts -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self._start(status, len(raw), {"Content-Type": "application/json"} | (headers or {}))
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _start(self, status: int, n_bytes: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(n_bytes))
        self.end_headers()
