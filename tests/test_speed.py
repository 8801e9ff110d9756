"""The benchmarks' own arithmetic, and with `make test PARITY=1` the check that nothing has become slower."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llamalite


def run(root: Path, script: str, *args: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1]), "PYTHONUTF8": "1"}
    command = [sys.executable, str(root / "benchmarks" / script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=900)


def judged(root: Path, tmp_path: Path, cpu: str, ratios: dict[str, float]) -> subprocess.CompletedProcess[str]:
    reference = {"cpu": "a processor", "ratios": {"kernel": 0.1, "startup": 5.0}}
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    (tmp_path / "measured.json").write_text(json.dumps({"cpu": cpu, "ratios": ratios}))
    return run(root, "check.py", "--reference", tmp_path / "reference.json", "--measured", tmp_path / "measured.json")


KERNEL, STARTUP = (
    "kernel: {} of its peer, and the reference is 0.100",
    "startup: {} of its peer, and the reference is 5.000",
)


@pytest.mark.parametrize(
    ("cpu", "ratios", "told"),
    [
        ("a processor", {"kernel": 0.12, "startup": 4.0}, []),
        ("a processor", {"kernel": 0.13, "startup": 4.0}, [KERNEL.format("0.130") + " (+30%)"]),
        ("a processor", {"startup": 9.0}, ["kernel: not measured", STARTUP.format("9.000") + " (+80%)"]),
        ("another one", {"kernel": 0.19, "startup": 9.9}, []),
        ("another one", {"kernel": 0.21, "startup": 5.0}, [KERNEL.format("0.210") + " (+110%)"]),
    ],
)
def test_a_ratio_that_is_more_than_a_quarter_worse_fails(
    root: Path, tmp_path: Path, cpu: str, ratios: dict[str, float], told: list[str]
) -> None:
    ran = judged(root, tmp_path, cpu, ratios)
    assert ran.stdout.splitlines() == told, ran.stderr
    assert ran.returncode == (1 if told else 0)


def test_tables_are_written_between_their_markers(root: Path, tmp_path: Path) -> None:
    figure: dict[str, Any] = {"name": "convert to Q8_0", "peer": "two steps", "unit": "s", "target": 0.15, "note": ""}
    figure |= {"ours": [1.0, 2.0, 4.0], "theirs": [10.0, 10.0, 10.0]}
    machine: dict[str, Any] = {"cpu": "a processor", "cores": 2, "memory_gib": 23.5, "system": "Linux"}
    machine |= {"python": "3.11", "commit": "abc", "date": "2026-11-21", "versions": {"numpy": "2.0"}}
    (tmp_path / "figures.json").write_text(json.dumps({"machine": machine, "groups": {"conversion": [figure]}}))
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- figures: conversion -->\nold\n<!-- end -->\n<!-- figures: kernels -->\nkept\n<!-- end -->\n"
        "<!-- figures: summary -->\n<!-- end -->\n"
    )
    ran = run(root, "run.py", "--tables", page, "--work", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert page.read_text().splitlines() == [
        "before",
        "<!-- figures: conversion -->",
        "| what | compared with | llamalite | the other | ratio | spread | target |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
        "| convert to Q8_0 | two steps | 2 s | 10 s | **0.20** | 0.10 to 0.40 | ≤ 0.15 |",
        "<!-- end -->",
        "<!-- figures: kernels -->",
        "kept",
        "<!-- end -->",
        "<!-- figures: summary -->",
        "| | llamalite | the other | ratio | compared with |",
        "| --- | ---: | ---: | ---: | --- |",
        "| convert to Q8_0 | 2 s | 10 s | 0.20 | two steps |",
        "<!-- end -->",
    ]


def test_a_processs_peak_memory_is_not_its_parents(root: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import side_by_side as bench\n"
        "held = bytearray(300 << 20)\n"
        "for i in range(0, len(held), 4096): held[i] = 1\n"
        "ran = bench.process([sys.executable, '-c', 'print(5)'])\n"
        "assert ran.output == '5\\n' and ran.seconds > 0 and ran.cpu_s > 0, ran\n"
        "assert 1 < ran.peak_mib < 200, ran\n"
    )
    if not hasattr(os, "wait4"):
        pytest.skip("the benchmarks measure processes with wait4, which Windows lacks")
    ran = subprocess.run([sys.executable, "-c", script, str(root / "benchmarks")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


_CHATS = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from answering import Answer
from serving_in_process import Load, chats

held = set()  # every beginning that was ever computed: what a perfect cache holds

async def ask(prompt):
    answer = Answer(tokens=[len(prompt) * 10 + i for i in range(3)])
    answer.n_read = sum(tuple(prompt[:n]) not in held for n in range(1, len(prompt) + 1))
    computed = prompt + answer.tokens[:-1]
    held.update(tuple(computed[:n]) for n in range(1, len(computed) + 1))
    await asyncio.sleep(0)
    return answer

questions = [[[chat * 100 + turn, 7] for turn in range(4)] for chat in range(1, 4)]
for together in (False, True):
    held.clear()
    print(*asyncio.run(chats(ask, [1, 2, 3], questions, together=together)))
load = Load.of([Answer(0.0, 2.0, [0.5, 2.0]), Answer(1.0, 5.0, [1.25, 5.0])], 10)
print(load.tok_per_s, load.first_s)
"""


def test_chats_count_what_a_perfect_cache_reads(root: Path) -> None:
    """3 of the system prompt, 2 of each of 12 questions, and the last token of the first 3 answers of each chat."""
    environment = os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", _CHATS, str(root / "benchmarks")], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["36 36", "36 36", "4.0 0.375"]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LLAMALITE_TEST_PARITY"), reason="measures speed: make test PARITY=1")
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the benchmarks measure processes with wait4, which Windows lacks")
def test_nothing_has_become_slower(root: Path) -> None:
    ran = run(root, "check.py")
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
