"""`llamalite serve` as a process: it says where it listens, logs each request, and ends as it was told."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from conftest import Run

import llamalite

pytest.importorskip("starlette", reason="needs the extra `serve`: pip install '.[serve]'")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")

ENDLESS = {"prompt": "once", "max_tokens": 100_000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("serve") / "toy.gguf", chat_template=toy.CHATML, n_ctx_train=65536)


class Served:
    """The running command: its port, and the lines that it writes."""

    def __init__(self, *args: str | Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1]), "PYTHONUTF8": "1"}
        command = [sys.executable, "-m", "llamalite", "serve", "--port", "0", "--threads", "1", *map(str, args)]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if found := re.search(r"http://\S+:(\d+)$", line.rstrip()):
                self.port = int(found[1])
                break
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += [line.rstrip() for line in self.process.stderr]

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, path: str, body: Any = None) -> tuple[int, str]:
        with contextlib.closing(self.connection()) as connection:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def end(self) -> int:
        code = self.process.wait(timeout=30)
        self._reader.join(timeout=5)
        return code


@contextlib.contextmanager
def serving(*args: str | Path) -> Iterator[Served]:
    served = Served(*args)
    try:
        yield served
    finally:
        served.process.kill()
        served.end()
        assert served.process.stderr is not None
        served.process.stderr.close()


def test_it_answers_logs_and_ends_with_the_signals_code(path: Path) -> None:
    with serving(path) as served:
        assert served.lines[-1] == f"Serving toy at http://127.0.0.1:{served.port}"
        status, text = served.ask("/v1/completions", {"prompt": "once", "max_tokens": 3, "temperature": 0})
        assert (status, json.loads(text)["object"]) == (200, "text_completion")
        assert served.ask("/health")[0] == 200
        served.process.send_signal(signal.SIGTERM)
        assert served.end() == 143
        requests = [line for line in served.lines if "/v1/completions" in line]
        assert re.fullmatch(r"POST /v1/completions 200 \d+\.\d\d s toy \d\+3 tokens", requests[0])
        assert not [line for line in served.lines if "Traceback" in line]


def test_sigterm_lets_running_answers_end_and_takes_no_new_ones(path: Path) -> None:
    with serving(path, "--grace", "20", "--ctx", "8192") as served:
        with contextlib.closing(served.connection()) as running:
            running.request("POST", "/v1/completions", json.dumps(ENDLESS | {"max_tokens": 1500}))
            response = running.getresponse()
            served.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(OSError):
                served.ask("/health")
            assert response.read().decode().rstrip().endswith("data: [DONE]")
        assert served.end() == 143


@pytest.mark.parametrize("how", ["grace", "again"])
def test_the_end_of_the_grace_or_a_second_signal_ends_answers(path: Path, how: str) -> None:
    with serving(path, "--grace", "1" if how == "grace" else "60", "--ctx", "65536") as served:
        with contextlib.closing(served.connection()) as running:
            running.request("POST", "/v1/completions", json.dumps(ENDLESS))
            running.getresponse().read(10)
            started = time.perf_counter()
            served.process.send_signal(signal.SIGTERM)
            if how == "again":
                time.sleep(0.3)
                served.process.send_signal(signal.SIGTERM)
            assert served.end() == 143
            assert time.perf_counter() - started < 8
        assert not [line for line in served.lines if "Traceback" in line]


def test_json_lines_tell_each_request(path: Path) -> None:
    with serving(path, "--log-json", "--alias", "mine") as served:
        served.ask("/v1/completions", {"model": "mine", "prompt": "once", "max_tokens": 3})
        served.process.send_signal(signal.SIGINT)
        assert served.end() == 130
        (line,) = [json.loads(line) for line in served.lines if line.startswith("{")]
        assert (line["path"], line["status"], line["model"], line["n_generated"]) == ("/v1/completions", 200, "mine", 3)


def test_bad_starts_say_why(path: Path, tmp_path: Path, llamalite_command: Run) -> None:
    for args, words in (
        (("none",), "no model 'none'"),
        ((), "no models in"),
        ((path, "--host", "256.0.0.1"), "cannot listen on 256.0.0.1"),
        ((path, "--api-key-file", tmp_path / "keys"), "has no key"),
    ):
        (tmp_path / "keys").write_text("# no key yet\n")
        done = llamalite_command("serve", *args)
        assert done.returncode == 1, args
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(path.read_bytes()[:100_000])
    done = llamalite_command("serve", damaged, "--port", "0")
    assert done.returncode == 1
    assert "error:" in done.stderr.splitlines()[-1]


def test_other_hosts_are_warned_of(path: Path) -> None:
    with serving(path, "--host", "0.0.0.0") as served:
        assert any("set --api-key" in line for line in served.lines)
