"""Every reader of untrusted files refuses a mutated file with our own error, quickly and in bounded memory."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import random_fuzz
from readers import TARGETS, damaged

import llamalite

N_FILES = 150


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "gguf"])
def test_mutated_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """In a child process, so that its death is reported; `gguf` has its own tests in test_gguf_fuzz.py."""
    command = [sys.executable, random_fuzz.__file__, name, "--files", str(N_FILES)]
    environment = {"PYTHONPATH": str(Path(llamalite.__file__).parents[1]), "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0  faults" in done.stdout


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_good_files(name: str) -> None:
    """If a seed is refused, every mutation of it gets the same refusal."""
    target = TARGETS[name]
    with target.open() as run:
        assert {run(seed) for seed in target.seeds()} == {"read"}


@pytest.mark.parametrize("name", TARGETS)
def test_a_number_makes_the_same_file_again(name: str) -> None:
    target = TARGETS[name]
    assert [damaged(random.Random(n), target) for n in range(20)] == [
        damaged(random.Random(n), target) for n in range(20)
    ]


FOUND = {
    "a number of 5000 digits": (
        "safetensors",
        b'{"w": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % (b"9" * 5000),
    ),
    "a dtype that is a list": ("safetensors", b'{"w": {"dtype": [], "shape": [1], "data_offsets": [0, 0]}}'),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_fuzzing_found_stays_found(name: str) -> None:
    target, content = FOUND[name]
    if target == "safetensors":
        content = len(content).to_bytes(8, "little") + content
    with TARGETS[target].open() as run:
        assert run(content).startswith("refused: ")


def test_a_pre_tokenizer_sequence_that_is_a_number_is_refused() -> None:
    tree = json.loads(TARGETS["tokenizer"].seeds()[0])
    tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": 7}
    with TARGETS["tokenizer"].open() as run:
        assert run(json.dumps(tree).encode()).startswith("refused: VocabularyError")


def test_a_piece_that_is_no_utf8_is_refused() -> None:
    seed = TARGETS["sentencepiece"].seeds()[0]
    with TARGETS["sentencepiece"].open() as run:
        assert run(seed.replace(b"<0x41>", b"<\xff\xfe41>")).startswith("refused: VocabularyError")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gguf", "safetensors", "pickle", "template"])
def test_coverage_guided_fuzzing_finds_nothing_in_a_short_run(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="coverage-guided fuzzing needs atheris (Linux, macOS; Python 3.11 and later)")
    script = Path(random_fuzz.__file__).with_name("coverage_fuzz.py")
    command = [sys.executable, script, name, "--runs", "500", "--seconds", "60", "--corpus", tmp_path / "corpus"]
    environment = {"PYTHONPATH": str(Path(llamalite.__file__).parents[1]), "PATH": ""}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "new_units_added" in done.stderr


@pytest.mark.parametrize("facts", [b"[]", b"7", b"[" * 100000, b'{"model": 1}'])
def test_a_session_with_other_facts_and_a_right_digest_is_refused(facts: bytes) -> None:
    body = TARGETS["session"].seeds()[0][:20] + len(facts).to_bytes(8, "little") + facts + bytes(16)
    with TARGETS["session"].open() as run:
        assert run(body + hashlib.sha256(body).digest()).startswith("refused: LlamaliteError")
