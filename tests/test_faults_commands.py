"""Commands that are stopped midway: they end within a second, keep their results, and have the right exit code."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import START, command, environment, write_endless

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's signals and pipes")

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
N_LINES = 400
# Prints a line on standard error after each answer of a batch and each step of a measurement.
TELL = """
import os
import llamalite.evaluation.comparison as comparison, llamalite.evaluation.perplexity as perplexity
from llamalite.model import Model
def told(real):
    def generate_batch(self, prompts, params=None, *, on_completion=None, **more):
        def done(number, completion):
            on_completion(number, completion)
            os.write(2, f"done {number}\\n".encode())
        return real(self, prompts, params, on_completion=done, **more)
    return generate_batch
Model.generate_batch = told(Model.generate_batch)
def steps(real):
    def run(*args, **more):
        for number, one in enumerate(real(*args, **more)):
            yield one
            os.write(2, f"done {number}\\n".encode())
    return run
perplexity.iter_perplexity = steps(perplexity.iter_perplexity)
comparison.iter_compare = steps(comparison.iter_compare)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_endless(tmp_path_factory.mktemp("stop") / "toy.gguf")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("once upon a time there was the story, and " * 4000)
    return tmp_path / "text.txt"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [json.dumps({"prompt": f"story {i}", "max_tokens": 8 + i % 5}) for i in range(N_LINES)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "in.jsonl"


def start(*args: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TELL + START, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
        env=environment(),
    )  # fmt: skip


def stopped(process: subprocess.Popen[str], number: int) -> tuple[str, str, float]:
    """Send the signal; return what was on both streams after it, and how many seconds the end took."""
    began = time.perf_counter()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return out, err, time.perf_counter() - began


def wait_for(process: subprocess.Popen[str], n_steps: int) -> list[str]:
    """Read standard error until `n_steps` steps were reported."""
    assert process.stderr is not None
    lines: list[str] = []
    while sum(line.startswith("done") for line in lines) < n_steps:
        line = process.stderr.readline()
        assert line, f"it ended before: {lines}"
        lines.append(line)
    return lines


def three_times(once: Callable[[int], float]) -> None:
    """Assert that the median of three ends takes less than two seconds (one second on an idle machine)."""
    took = [once(attempt) for attempt in range(3)]
    sys.stdout.write(f"seconds to end: {sorted(took)}\n")  # pytest -rP shows it
    assert statistics.median(took) < 2, took


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_run_ends_within_a_second_and_has_printed_the_answer_so_far(number: int, code: int, model: Path) -> None:
    def once(_: int) -> float:
        process = start("run", model, "once", "--raw", "--temp", "0", "--threads", "1", "-n", "8000")
        assert process.stdout is not None
        first = process.stdout.read(1)
        time.sleep(0.2)
        out, err, took = stopped(process, number)
        assert process.returncode == code
        assert len(first + out) > 10
        assert "Traceback" not in err
        return took

    three_times(once)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_run_keeps_the_conversation_that_a_signal_ends(number: int, code: int, model: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk.session"
    process = start("run", model, "once", "--temp", "0", "--threads", "1", "-n", "8000", "--session", talk)
    assert process.stdout is not None
    process.stdout.read(20)
    stopped(process, number)
    assert process.returncode == code
    more = command(["run", model, "and", "-n", "2", "--threads", "1", "--session", talk, "--json"])
    assert more.returncode == 0, more.stderr
    assert json.loads(more.stdout)["n_cached"] > 20


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_batch_ends_within_a_second_and_continues_where_it_was(
    number: int, code: int, model: Path, prompts: Path, tmp_path: Path
) -> None:
    def once(attempt: int) -> float:
        target = tmp_path / f"out-{attempt}.jsonl"
        process = start("batch", model, "-i", prompts, "-o", target, "--threads", "1", "--parallel", "4")
        told = wait_for(process, 5)
        _, err, took = stopped(process, number)
        assert process.returncode == code
        done = {int(line.split()[1]) + 1 for line in [*told, *err.splitlines()] if line.startswith("done")}
        kept = {json.loads(line)["line"] for line in target.read_text().splitlines()}
        assert 5 <= len(kept) < N_LINES
        assert done - {one for one in done if one > N_LINES} >= kept  # the unfinished ones are told too, and not kept
        return took

    three_times(once)


def test_batch_loses_no_finished_answer_at_sigkill(model: Path, prompts: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    args = ("batch", model, "-i", prompts, "-o", target, "--threads", "1", "--parallel", "4", "--temp", "0")
    process = start(*args)
    told = wait_for(process, 20)
    process.kill()
    rest = process.communicate(timeout=60)[1].splitlines()
    finished = {int(line.split()[1]) + 1 for line in [*told, *rest] if line.startswith("done")}
    whole = [line for line in target.read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert {json.loads(line)["line"] for line in whole} >= finished
    assert 20 <= len(finished) < N_LINES
    again = command([*args, "-q"])
    assert again.returncode == 0, again.stderr
    answers = [json.loads(line)["line"] for line in target.read_text().splitlines()]
    assert sorted(answers) == list(range(1, N_LINES + 1))
    assert target.read_text().startswith("".join(whole))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("verb", ["perplexity", "compare"])
def test_a_measurement_ends_within_a_second_and_prints_its_results_so_far(
    verb: str, number: int, code: int, model: Path, text: Path
) -> None:
    others = [model] if verb == "compare" else []

    def once(_: int) -> float:
        process = start(verb, model, *others, "-f", text, "--ctx", "256", "--threads", "1", "--batch", "256", "--json")
        wait_for(process, 4)
        out, err, took = stopped(process, number)
        assert process.returncode == code, err
        found = json.loads(out)
        assert found["complete"] is False
        standing = found if verb == "perplexity" else found["candidates"][0]
        assert standing["ppl"] > 1
        assert "Traceback" not in err
        return took

    three_times(once)


@pytest.mark.parametrize("verb", ["run", "perplexity", "compare", "batch", "convert", "help"])
def test_a_closed_pipe_is_quiet(verb: str, model: Path, text: Path, prompts: Path, tmp_path: Path) -> None:
    short = ["-f", text, "--ctx", "128", "--chunks", "2", "--threads", "1"]
    args: list[str | Path] = {
        "run": ["run", model, "once", "--raw", "--temp", "0", "-n", "2000", "--threads", "1"],
        "perplexity": ["perplexity", model, *short],
        "compare": ["compare", model, model, *short],
        "batch": ["batch", model, "-i", prompts, "-o", tmp_path / "out.jsonl", "-n", "1", "-q", "--threads", "1"],
        "convert": ["convert", model, "-t", "F16", "-o", tmp_path / "out.gguf"],
        "help": ["run", "--help"],
    }[verb]  # type: ignore[assignment]
    process = subprocess.Popen(
        [sys.executable, "-m", "llamalite", *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    if verb == "run":
        process.stdout.read(1)  # as `| head -c 1` does
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0
    process.stderr.close()
