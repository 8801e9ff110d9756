"""Mutated GGUF files: the check returns a header or raises GGUFError for each, and llama.cpp runs those that pass."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import gguf_load
import pytest
from gguf_bytes import UINT32, GgufBytes
from gguf_models import damaged_bytes, variant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llamalite
from llamalite.errors import GGUFError
from llamalite.gguf_check import checked_header

EASY = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def checked(path: Path, content: bytes) -> bool:
    """Tell whether the file passes; anything but GGUFError, and more than two seconds, fails the test."""
    path.write_bytes(content)
    start = time.process_time()
    message = ""
    try:
        checked_header(path)
    except GGUFError as refusal:
        message = str(refusal)
    assert time.process_time() - start < 2
    assert "\n" not in message
    return not message


@EASY
@given(number=st.integers(0, 1 << 40), other=st.booleans())
def test_a_mutated_model_is_refused_in_one_line_or_passes(number: int, other: bool, tmp_path: Path) -> None:
    checked(tmp_path / "mutated.gguf", damaged_bytes(number, other_architectures=other))


@EASY
@given(
    number=st.integers(0, 40),
    writes=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=16)), max_size=6),
)
def test_bytes_written_anywhere_into_a_model(number: int, writes: list[tuple[int, bytes]], tmp_path: Path) -> None:
    raw = bytearray(damaged_bytes(50 * number))
    for where, content in writes:
        where %= len(raw)
        raw[where : where + len(content)] = content
    checked(tmp_path / "overwritten.gguf", bytes(raw))


@EASY
@given(content=st.binary(max_size=400))
def test_any_bytes_behind_the_magic(content: bytes, tmp_path: Path) -> None:
    assert not checked(tmp_path / "any.gguf", b"GGUF\3\0\0\0" + content)


@pytest.fixture
def fuzz_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1])}


def run_load(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, gguf_load.__file__, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a dead child is told by its signal")
def test_llama_cpp_survives_what_passes_the_check(fuzz_environment: dict[str, str]) -> None:
    done = run_load(fuzz_environment, "--files", "200", "--seed", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0  faults" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a dead child is told by its signal")
def test_without_the_check_llama_cpp_dies_of_some_files(fuzz_environment: dict[str, str]) -> None:
    """Shows that the campaign above can see a dead process, and that the check is what prevents it."""
    done = run_load(fuzz_environment, "--files", "120", "--seed", "0", "--unchecked")
    assert done.returncode == 1
    assert "SIGABRT" in done.stdout


def test_models_as_they_should_be_all_pass(tmp_path: Path) -> None:
    import random

    for seed in range(60):
        file = variant(random.Random(seed))
        assert checked(tmp_path / "good.gguf", file.dump())
        file.set("llama.block_count", UINT32, 9)
        assert not checked(tmp_path / "bad.gguf", file.dump())
        assert GgufBytes.of(tmp_path / "good.gguf").dump() == (tmp_path / "good.gguf").read_bytes()
