"""bench: its tests are llama-bench's, its figures follow from its samples, its formats agree."""

from __future__ import annotations

import csv
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import toy
from click.testing import CliRunner
from test_cli_models import on_terminal

from llamalite.cli import cli
from llamalite.gguf_check import read_header
from llamalite.hardware.process_memory import peak_resident_bytes, resident_bytes
from llamalite.native.context import NativeContext
from llamalite.performance.bandwidth import memory_bandwidth
from llamalite.performance.benchmark import BenchPlan, iter_bench
from llamalite.performance.forecast import bytes_per_token

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("bench") / "toy.gguf")


def test_every_combination_is_measured_and_its_figures_are_those_of_its_samples(path: Path) -> None:
    plan = BenchPlan(n_prompt=48, n_generate=4, repetitions=3, n_threads=(1, 2), n_batch=(16,), kv_types=("F16", "F32"))
    rows = list(iter_bench(path, plan))
    assert [(row.n_threads, row.kv_type, row.test) for row in rows] == [
        (threads, kv, test) for threads in (1, 2) for kv in ("F16", "F32") for test in ("pp48", "tg4")
    ]
    for row in rows:
        n = 48 if row.test == "pp48" else 4
        speeds = [n / seconds for seconds in row.samples_s]
        assert row.tok_per_s == pytest.approx(statistics.fmean(speeds))
        assert row.tok_per_s_sd == pytest.approx(statistics.stdev(speeds))
        assert (row.ttft_s is None, row.bandwidth_share is None) == (n == 4, n == 48)
        assert row.peak_memory_bytes >= path.stat().st_size


def test_a_repetition_decodes_what_llama_bench_decodes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    real = NativeContext._decode

    def noting(self: NativeContext, n: int) -> None:
        decoded.append((n, int(self._tokens[0])))
        real(self, n)

    monkeypatch.setattr(NativeContext, "_decode", noting)
    list(iter_bench(path, BenchPlan(n_prompt=40, n_generate=3, repetitions=2, n_threads=(1,), n_batch=(32,))))
    assert [n for n, _ in decoded] == [32, 8] * 3 + [1] + [1, 1, 1] * 2  # the warm-up of a generation is one token
    assert [decoded[i][1] for i in (0, 2, 4, 6, 7, 10)] == [toy.BOS] * 6


def test_bytes_per_token_leave_the_embedding_out(path: Path) -> None:
    header = read_header(path)
    embedding = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    assert bytes_per_token(header) == header.tensor_bytes - embedding.nbytes


def test_memory_is_reported_in_bytes() -> None:
    before = resident_bytes()
    block = bytearray(64 << 20)
    block[::4096] = b"1" * len(block[::4096])
    assert (60 << 20) < resident_bytes() - before < (200 << 20)
    assert peak_resident_bytes() >= before + (60 << 20)
    assert 1e8 < memory_bandwidth(1) < 1e13


def test_a_plan_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="a test needs tokens"):
        BenchPlan(n_prompt=0, n_generate=0)
    with pytest.raises(ValueError, match="repetitions must be 1 or more"):
        BenchPlan(repetitions=0)


def test_the_command_prints_markdown_csv_or_json(path: Path) -> None:
    def said(*args: str) -> str:
        done = CliRunner().invoke(
            cli, ["bench", str(path), "-p", "16", "-n", "2", "-r", "1", "--threads", "1", *args], obj={}
        )
        assert done.exit_code == 0, done.output
        return str(done.stdout)

    lines = said().splitlines()
    assert [line.count("|") for line in lines] == [lines[0].count("|")] * 4
    assert lines[1].replace(" ", "").replace("|", "").strip("-:") == ""
    rows = list(csv.DictReader(io.StringIO(said("--csv"))))
    assert [row["test"] for row in rows] == ["pp16", "tg2"]
    rows = json.loads(said("--json", "--batch", "8,16"))["rows"]
    assert [(row["test"], row["n_batch"]) for row in rows] == [(t, n) for n in (8, 16) for t in ("pp16", "tg2")]


def test_each_of_several_models_is_measured_in_its_own_process(
    llamalite_command: Run, path: Path, tmp_path: Path
) -> None:
    both = llamalite_command("bench", path, path, "-p", "16", "-n", "0", "-r", "1", "--threads", "1", "--json")
    assert (both.returncode, both.stderr) == (0, "")
    assert [row["n_threads"] for row in json.loads(both.stdout)["rows"]] == [1, 1]
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-1000])
    failed = llamalite_command("bench", tmp_path / "cut.gguf", path, "-p", "8", "-n", "0", "-r", "1")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of POSIX")
def test_on_a_narrow_terminal_the_table_becomes_two(path: Path) -> None:
    args = ("bench", path, "-p", "16", "-n", "2", "-r", "2", "--threads", "1")
    for columns, tables in ((80, 2), (140, 1)):
        lines = [line.rpartition("\r")[2] for line in on_terminal(*args, colour=False, columns=columns).split("\n")]
        assert max(map(len, lines)) <= columns
        assert sum(line.startswith("| model ") for line in lines) == tables
        assert sum(line.startswith("| toy ") for line in lines) == 2 * tables
        assert "pp16: a prompt of 16 tokens is read; tg2: 2 tokens generated" in " ".join(lines)


def test_the_command_reports_a_failure(path: Path) -> None:
    assert CliRunner().invoke(cli, ["bench", str(path), "--threads", "many"], obj={}).exit_code == 2
    assert CliRunner().invoke(cli, ["bench", str(path), "--kv-type", "Q9"], obj={}).exit_code == 2
