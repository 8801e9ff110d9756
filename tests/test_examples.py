"""The examples do what they say: the extractor's JSON validates, the window chats."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

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
