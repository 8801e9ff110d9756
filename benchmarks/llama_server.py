"""A llama-server process that computes only while it is measured, and the lightest client that can stream from it.

    with LlamaServer(peers.program("llama-server"), model, n_ctx=4096, n_slots=8, n_threads=2) as server:
        with server.awake():
            answer = asyncio.run(server.answer(prompt_ids, 64))

The client shares the machine's cores with the server: it reads lines from a socket, and does nothing else per token.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from answering import Answer

STARTS_WITHIN_S = 120


class LlamaServer:
    """llama-server with `n_slots` slots; it is stopped (SIGSTOP) unless `awake`.

    Each slot has an equal part of `n_ctx` tokens, or all share them if `unified`, which is slower: a token then attends
    to the cells of all.
    """

    def __init__(
        self, program: Path, model: Path, *, n_ctx: int, n_slots: int, n_threads: int, unified: bool = False
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self._command = [
            str(program), "-m", str(model), "-c", str(n_ctx), "-np", str(n_slots), "-t", str(n_threads),
            "--host", "127.0.0.1", "--port", str(self._port), "--no-webui",
            "--kv-unified" if unified else "--no-kv-unified",
        ]  # fmt: skip
        self._forbidden: list[list[object]] = []

    def forbid(self, tokens: Sequence[int]) -> None:
        """Never sample these tokens: the ends of an answer."""
        self._forbidden = [[token, False] for token in tokens]

    def __enter__(self) -> LlamaServer:
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
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=10).close()
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
        body = json.dumps(asked).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        try:
            head = f"POST /completion HTTP/1.1\r\nHost: llama\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            async for line in reader:
                document = line.removeprefix(b"data: ")
                if not document.startswith(b"{"):  # a header, the size of a chunk, an empty line
                    continue
                event = json.loads(document)
                if "error" in event:
                    raise RuntimeError(f"llama-server: {event['error']}")
                if event["tokens"]:
                    answer.times.append(time.perf_counter())
                    answer.tokens.extend(event["tokens"])
                if event["stop"]:
                    if event["tokens_predicted"] != n_new:
                        raise RuntimeError(f"llama-server: {event['tokens_predicted']} tokens instead of {n_new}")
                    answer.ended = time.perf_counter()
                    answer.n_read = event["timings"]["prompt_n"]
                    break
            else:
                raise RuntimeError("llama-server ended the connection in the middle of an answer")
        finally:
            writer.close()
        return answer
