#!/usr/bin/env python3
"""A text service on asyncio, with the standard library only: POST /generate streams the answer as it is generated.

    python examples/service.py MODEL.gguf --port 8080
    curl -N -d '{"prompt": "Once upon a time", "max_tokens": 64}' http://127.0.0.1:8080/generate

Each line of the answer is a JSON object: {"text": ...} for every piece, and finally {"finish_reason", "tok_per_s"}. If
a client disconnects, its generation is cancelled; requests wait for their turn, and the event loop is never blocked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from typing import Any

from llamalite import LlamaliteError, Model

MAX_BODY_BYTES = 1 << 20


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    """Return the method, the path and the body of an HTTP/1.1 request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    lengths = [line.split(":", 1)[1] for line in head[1:] if line.lower().startswith("content-length:")]
    length = int(lengths[0]) if lengths else 0
    if length > MAX_BODY_BYTES:
        raise ValueError("the body is too large")
    return method, path, await reader.readexactly(length)


def head(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n".encode()


def line(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


async def answer(model: Model, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        method, path, body = await asyncio.wait_for(read_request(reader), timeout=10)
        if (method, path) != ("POST", "/generate"):
            writer.write(head("404 Not Found") + line(error="only POST /generate is supported"))
            return
        request = json.loads(body)
        prompt = request.pop("messages", None) or request.pop("prompt")
        pieces = model.astream(prompt, **request)
        gone = asyncio.create_task(reader.read())  # ends when the client disconnects
        started = False
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if gone.done():
                    return  # leaving closes the stream, which cancels the generation
                if not started:
                    writer.write(head("200 OK"))
                    started = True
                if piece.text:
                    writer.write(line(text=piece.text))
                if piece.totals:
                    writer.write(line(finish_reason=piece.finish_reason, tok_per_s=round(piece.totals.tok_per_s, 1)))
                await writer.drain()
        gone.cancel()
    except (LlamaliteError, ValueError, TypeError, KeyError) as error:
        writer.write(head("400 Bad Request") + line(error=str(error)))
    except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        pass  # there is no client to answer
    finally:
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()


async def serve(model: Model, host: str, port: int) -> asyncio.Server:
    return await asyncio.start_server(lambda reader, writer: answer(model, reader, writer), host, port)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args()
    with Model(args.model) as model:
        server = await serve(model, args.host, args.port)
        print(f"{model} answers at http://{args.host}:{args.port}/generate", flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
