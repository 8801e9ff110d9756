"""The examples do what they say: the service streams and stops, the extractor's JSON validates, the window chats."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import toy

import llamalite
from llamalite.model import Model


def example(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", root / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("examples") / "toy.gguf", chat_template=toy.CHATML, n_ctx_train=2048)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model(path, n_threads=1) as loaded:
        yield loaded


async def post(port: int, body: bytes, path: str = "/generate") -> tuple[str, list[dict[str, Any]]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    head, _, rest = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head.splitlines()[0], [json.loads(line) for line in rest.splitlines()]


def test_the_service_streams_answers_and_reports_errors(root: Path, model: Model) -> None:
    service = example(root, "service")

    async def go() -> None:
        server = await service.serve(model, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            asked = {"prompt": "once upon a time", "max_tokens": 6, "temperature": 0}
            status, lines = await post(port, json.dumps(asked).encode())
            assert status == "HTTP/1.1 200 OK"
            want = model.generate("once upon a time", max_tokens=6, temperature=0)
            assert "".join(line.get("text", "") for line in lines) == want.text
            assert lines[-1]["finish_reason"] == want.finish_reason
            several = await asyncio.gather(*[post(port, json.dumps(asked).encode()) for _ in range(3)])
            assert [lines[:-1] for _, lines in several] == [lines[:-1]] * 3
            status, lines = await post(port, b'{"prompt": "a", "temperature": -1}')
            assert status == "HTTP/1.1 400 Bad Request"
            assert "temperature must lie in" in lines[0]["error"]
            assert (await post(port, b"nonsense"))[0] == "HTTP/1.1 400 Bad Request"
            assert (await post(port, b"{}", "/other"))[0] == "HTTP/1.1 404 Not Found"

    asyncio.run(go())


def test_a_client_that_disconnects_ends_its_generation(root: Path, model: Model) -> None:
    service = example(root, "service")
    body = json.dumps({"prompt": "once", "logit_bias": {}, "max_tokens": 1500, "seed": 1}).encode()

    async def go() -> None:
        server = await service.serve(model, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
            writer.write(b"POST /generate HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await reader.readline()
            writer.close()
            await writer.wait_closed()
            for _ in range(500):
                if not model.is_busy:
                    return
                await asyncio.sleep(0.02)
            raise AssertionError("the generation goes on for nobody")

    asyncio.run(go())


def test_the_extractor_writes_json_that_parses(root: Path, model: Model, tmp_path: Path) -> None:
    extract = example(root, "extract")
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(f"once upon a time there was a story of {name}", encoding="utf-8")
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    records = list(extract.extract(model, tmp_path, schema, max_tokens=100))
    assert [record["file"] for record in records] == ["a.txt", "b.txt", "c.txt"]
    assert any("facts" in record for record in records)
    assert all(isinstance(record["facts"]["yes"], bool) for record in records if "facts" in record)
    short = list(extract.extract(model, tmp_path, max_tokens=2))
    assert all("raise --max-tokens" in record["error"] for record in short)


def test_the_window_loads_chats_and_stops(root: Path, path: Path, models_folder: Path) -> None:
    pytest.importorskip(
        "PySide6.QtWidgets", reason="needs PySide6: pip install PySide6-Essentials", exc_type=ImportError
    )
    models_folder.mkdir()
    (models_folder / "toy-F32.gguf").write_bytes(path.read_bytes())
    # In a process of its own: with each call PySide6 6.12 drops a reference to None and True, which eventually aborts
    # Python.
    settings = {"QT_QPA_PLATFORM": "offscreen", "OMP_WAIT_POLICY": "passive", "PYTHONUTF8": "1"}
    package = str(Path(llamalite.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("drive_desktop.py")), str(root / "examples" / "desktop.py")],
        env=os.environ | settings | {"PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.stdout.splitlines()[-1:] == ["loaded, chatted, stopped"], ran.stdout + ran.stderr
