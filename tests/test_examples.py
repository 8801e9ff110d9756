"""The examples do what they say: the service streams and stops, the extractor's JSON validates, the window chats."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import toy

from llamalite.model import Model

END = toy.vocabulary().index(("<|im_end|>", 0.0, toy.CONTROL))


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


def test_the_service_streams_answers_and_tells_errors(root: Path, model: Model) -> None:
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


def test_a_client_that_goes_away_ends_its_generation(root: Path, model: Model) -> None:
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
                if model._engine._active is None:
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


def test_the_window_loads_chats_and_stops(
    root: Path, path: Path, tmp_path: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        "PySide6.QtWidgets", reason="needs PySide6: pip install PySide6-Essentials", exc_type=ImportError
    )
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    models_folder.mkdir()
    (models_folder / "toy-F32.gguf").write_bytes(path.read_bytes())
    desktop = example(root, "desktop")
    from PySide6.QtWidgets import QApplication

    app = QApplication.instance() or QApplication([])
    window = desktop.Window()
    window.show()

    def until(condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 60
        while not condition():
            app.processEvents()
            assert time.monotonic() < end, what
            time.sleep(0.005)

    try:
        assert [window.models.itemText(i) for i in range(window.models.count())] == ["toy-F32"]
        window.load(window.models.itemData(0))
        until(lambda: "is ready" in window.statusBar().currentMessage(), "the model is loaded")
        window.talker.chat.params = window.talker.chat.params.replace(
            logit_bias={toy.EOS: -float("inf"), END: -float("inf")}, max_tokens=1500
        )
        window.line.setText("once upon a time")
        window.ask()
        assert not window.send.isEnabled()
        until(lambda: len(window.talk.toPlainText()) > len("You: once upon a time\n\nModel: ") + 5, "text streams in")
        window.stop.click()
        until(lambda: window.send.isEnabled(), "the answer is stopped")
        assert window.statusBar().currentMessage().startswith("cancelled")
        if os.environ.get("LLAMALITE_SCREENSHOT"):
            window.grab().save(os.environ["LLAMALITE_SCREENSHOT"])
    finally:
        window.close()
