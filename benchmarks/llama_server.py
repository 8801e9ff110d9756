"""A server process that computes only while it is measured, and the lightest client that can stream from it.

    with LlamaServer(peers.program("llama-server"), model, n_ctx=4096, n_slots=8, n_threads=2) as server:
        with server.awake():
            answer = asyncio.run(server.answer(prompt_ids, 64))

`LlamaliteServer` is ``llamalite serve``, which speaks llama-server's protocol too. The client shares the machine's
cores with the server: it reads lines from a socket, and does nothing else per token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import side_by_side as bench
from answering import Answer

STARTS_WITHIN_S = 120


class RefusedError(Exception):
    """The server answered a request with an error and this HTTP status."""

    def __init__(self, status: int, error: object) -> None:
        super().__init__(f"HTTP status {status}: {error}")
        self.status = status


class HttpServer:
    """A server of one model, started with `command`; it is stopped (SIGSTOP) unless `awake`."""

    def __init__(self, command: Sequence[object]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self._command = [*map(str, command), "--host", "127.0.0.1", "--port", str(self._port)]
        self._forbidden: list[list[object]] = []

    def forbid(self, tokens: Sequence[int]) -> None:
        """Never sample these tokens: the ends of an answer."""
        self._forbidden = [[token, False] for token in tokens]

    def __enter__(self) -> HttpServer:
        self._log: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        self._process.send_signal(signal.SIGSTOP)
        return self

    def _wait(self) -> None:
        until = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                self.get("/health")
                return
            time.sleep(0.1)
        self._log.seek(0)
        raise SystemExit(f"{' '.join(self._command)} does not start:\n{self._log.read()[-3000:].decode()}")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            time.sleep(0.2)  # it notices here that a client has gone, and not during the next measurement
            self._process.send_signal(signal.SIGSTOP)

    def get(self, path: str) -> Any:
        """Return the JSON document at `path`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as response:
            return json.load(response)

    def memory_mib(self, field: str) -> float:
        """Return ``VmRSS``, the memory of the process now, or ``VmHWM``, its peak, in MiB (proc_pid_status(5))."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))

    async def post(self, path: str, asked: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the JSON events of the response, or its one document; raise `RefusedError` for an error."""
        body = json.dumps(asked).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            status = 0
            async for line in reader:
                if not status:
                    status = int(line.split()[1])
                document = line.removeprefix(b"data: ")
                if not document.startswith(b"{"):  # a header, the size of a chunk, an empty line
                    continue
                event = json.loads(document)
                if "error" in event:
                    raise RefusedError(status, event["error"])
                yield event
        finally:
            writer.close()

    async def answer(
        self, prompt: Sequence[int], n_new: int, answer: Answer | None = None, *, stream: bool = True
    ) -> Answer:
        """Let the server answer; a piece of the stream may lack tokens of a character that was incomplete.

        Without `stream`, all tokens come at the end, and none is missing.
        """
        answer = Answer() if answer is None else answer
        asked = {
            "prompt": list(prompt), "n_predict": n_new, "temperature": 0, "logit_bias": self._forbidden,
            "stream": stream, "return_tokens": True,
        }  # fmt: skip
        async with contextlib.aclosing(self.post("/completion", asked)) as events:
            async for event in events:
                if event["tokens"]:
                    answer.times.append(time.perf_counter())
                    answer.tokens.extend(event["tokens"])
                if event["stop"]:
                    answer.ended = time.perf_counter()
                    answer.n_read = event["timings"]["prompt_n"]
                    return checked(answer, event["tokens_predicted"], n_new)
        raise RuntimeError("the server ended the connection in the middle of an answer")


def checked(answer: Answer, n_given: int, n_new: int) -> Answer:
    if n_given != n_new:
        raise RuntimeError(f"the server gave {n_given} tokens instead of {n_new}")
    return answer


class LlamaServer(HttpServer):
    """llama-server with `n_slots` slots.

    Each slot has an equal part of `n_ctx` tokens, or all share them if `unified`, which is slower: a token then attends
    to the cells of all.
    """

    def __init__(
        self, program: Path, model: Path, *, n_ctx: int, n_slots: int, n_threads: int, unified: bool = False
    ) -> None:
        shared = "--kv-unified" if unified else "--no-kv-unified"
        super().__init__([program, "-m", model, "-c", n_ctx, "-np", n_slots, "-t", n_threads, "--no-webui", shared])


class LlamaliteServer(HttpServer):
    """``llamalite serve``, which gives `n_slots` answers at once; all share `n_ctx` tokens."""

    def __init__(self, model: Path, *, n_ctx: int, n_slots: int, n_threads: int, n_waiting: int = 64) -> None:
        super().__init__(
            bench.llamalite(
                "serve", model, "--ctx", n_ctx, "--parallel", n_slots, "--threads", n_threads, "--queue", n_waiting,
                "--slots", "-q",
            )
        )  # fmt: skip
