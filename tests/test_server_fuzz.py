"""Whatever is sent, the server answers with no 500, and lives; whoever leaves when, every slot is free afterwards.

`make fuzz` sends more: LLAMALITE_FUZZ_REQUESTS=20000 LLAMALITE_FUZZ_CLIENTS=1000.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
from server_requests import Request, requests

pytest.importorskip("starlette", reason="needs the extra `serve`: pip install '.[serve]'")

from live_server import LiveServer

N_REQUESTS = int(os.environ.get("LLAMALITE_FUZZ_REQUESTS", "400"))
N_CLIENTS = int(os.environ.get("LLAMALITE_FUZZ_CLIENTS", "60"))
CHAT = {"messages": [{"role": "user", "content": "tell me a story"}], "temperature": 0, "max_tokens": 8}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    path = toy.write_toy(tmp_path / "toy.gguf", chat_template=toy.CHATML, n_ctx_train=512)
    with LiveServer({"toy": path}, n_threads=1) as running:
        yield running


def bombard(server: LiveServer, seed: int, n: int) -> Counter[int]:
    """Send `n` requests over a kept connection; return how often each status came, 0 for a closed connection."""
    statuses: Counter[int] = Counter()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        for request in itertools.islice(requests(seed), n):
            method, path, body, headers = request
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                connection.putheader(name, value.encode("latin-1"))
            try:
                connection.endheaders(body)
                response = connection.getresponse()
                text = response.read()
            except (http.client.HTTPException, ConnectionError):
                connection.close()
                statuses[0] += 1
                continue
            statuses[response.status] += 1
            check(response, text, request)
    return statuses


def check(response: http.client.HTTPResponse, text: bytes, request: Request) -> None:
    assert response.status < 500 or response.status in (501, 503), (request, text)
    if response.status == 200 and response.headers["content-type"].startswith("text/event-stream"):
        assert b"internal error" not in text, (request, text)
        assert text.endswith(b"\n\n"), (request, text[-200:])
    elif response.status >= 400 and text and b"Invalid HTTP" not in text:
        assert "error" in json.loads(text), (request, text)


def test_random_requests_get_no_500(server: LiveServer) -> None:
    n = N_REQUESTS
    want = server.post("/v1/chat/completions", CHAT).body["choices"][0]["message"]["content"]
    found: list[Counter[int]] = []
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            found.append(bombard(server, seed, n // 4))
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    statuses = sum(found, Counter())
    assert statuses[200] > n / 20
    assert statuses[400] > n / 20
    assert statuses[0] < n / 50
    assert server.n_running == 0
    assert server.post("/v1/chat/completions", CHAT).body["choices"][0]["message"]["content"] == want


def test_clients_that_leave_at_any_moment_leave_nothing_behind(server: LiveServer) -> None:
    want = server.post("/v1/chat/completions", CHAT).body["choices"][0]["message"]["content"]
    endless = {"prompt": "once upon", "max_tokens": 400, "ignore_eos": True}

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(N_CLIENTS // 10):
            with server.open("/v1/completions", endless | {"stream": rng.random() < 0.7}) as connection:
                time.sleep(rng.choice((0, 0.001, 0.01, 0.05)) * rng.random())
                if rng.random() < 0.5:
                    with contextlib.suppress(TimeoutError):
                        assert connection.sock is not None
                        connection.sock.settimeout(0.02)
                        connection.sock.recv(rng.randrange(1, 2000))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.wait_until(lambda: server.n_running == 0)
    assert server.post("/v1/chat/completions", CHAT).body["choices"][0]["message"]["content"] == want
