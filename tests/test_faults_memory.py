"""Memory limits are obeyed: a model that would not fit is refused with the numbers before loading; nothing is
killed."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
import toy_checkpoint
from faults import START, assert_one_line, command, environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")

NUMBERS = re.compile(r"wide\.gguf needs (\d\.\d\d) GiB \(weights 0\.\d\d, .*\), and (\d\.\d\d) GiB are free: ")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 170 MB."""
    return toy.write_toy(
        tmp_path_factory.mktemp("memory") / "wide.gguf", n_layer=8, n_embd=1024, n_head=8, n_head_kv=4, n_ff=3072
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("once upon a time there was the story, and " * 200)
    return tmp_path / "text.txt"


def limited(mebibytes: int) -> str:
    n_bytes = mebibytes << 20
    return f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({n_bytes}, {n_bytes}))\n"


def commands(wide: Path, text: Path, folder: Path) -> dict[str, list[str | Path]]:
    (folder / "in.jsonl").write_text('{"prompt": "once", "max_tokens": 1}\n')
    measured: list[str | Path] = ["-f", text, "--ctx", "256", "--batch", "256", "--chunks", "2", "--threads", "1"]
    return {
        "run": ["run", wide, "once", "-n", "1", "--ctx", "256", "--threads", "1"],
        "batch": ["batch", wide, "-i", folder / "in.jsonl", "-o", folder / "out.jsonl", "-q", "--threads", "1"],
        "perplexity": ["perplexity", wide, *measured],
        "compare": ["compare", wide, wide, *measured],
    }


@pytest.mark.parametrize("verb", ["run", "batch", "perplexity", "compare"])
def test_an_address_space_that_is_too_small_is_reported_with_the_numbers(
    verb: str, wide: Path, text: Path, tmp_path: Path
) -> None:
    done = command(commands(wide, text, tmp_path)[verb], prelude=limited(480))
    assert_one_line(done)
    found = NUMBERS.search(done.stderr)
    assert found, done.stderr
    assert float(found[1]) > float(found[2])


def test_an_address_space_that_is_large_enough_is_enough(wide: Path, text: Path, tmp_path: Path) -> None:
    done = command(commands(wide, text, tmp_path)["run"], prelude=limited(900))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mebibytes", [200, 260, 320, 380, 440, 500, 560, 620])
def test_no_limit_in_between_ends_in_anything_but_an_answer_or_one_line(mebibytes: int, wide: Path) -> None:
    done = command(["run", wide, "once", "-n", "1", "--ctx", "256", "--threads", "2"], prelude=limited(mebibytes))
    if done.returncode:
        assert_one_line(done, "GiB are free")


@pytest.mark.parametrize("mebibytes", [30, 60, 100, 140])
def test_a_limit_below_what_the_libraries_take_is_one_line(mebibytes: int, wide: Path) -> None:
    done = command(["run", wide, "once", "-n", "1", "--threads", "1"], prelude=limited(mebibytes))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "emory" in done.stderr  # ours, or OpenBLAS's, which ends the process by itself
    assert "fault in llamalite" not in done.stderr


def test_a_thread_that_cannot_be_started_is_one_line(wide: Path, tmp_path: Path) -> None:
    prelude = "import threading\nthreading.stack_size(1 << 46)\n"  # more than any machine has
    done = command(["run", wide, "once", "-n", "1", "--threads", "1"], prelude=prelude)
    assert_one_line(done, "no thread can be started", "ulimit")


@pytest.mark.parametrize("mebibytes", [220, 300, 400, 1000])
def test_a_conversion_under_a_limit_is_done_or_one_line(mebibytes: int, tmp_path: Path) -> None:
    source = toy_checkpoint.write_checkpoint(tmp_path / "toy", n_embd=256)
    out = tmp_path / "out.gguf"
    done = command(["convert", source, "-o", out, "-q", "--threads", "2"], prelude=limited(mebibytes))
    if mebibytes == 1000:
        assert done.returncode == 0, done.stderr
        assert out.exists()
    else:
        assert_one_line(done, "a conversion with 2 threads takes 384 MiB of address space", "(ulimit -v) leaves")
        assert not list(tmp_path.glob("out.gguf*"))


@contextlib.contextmanager
def cgroup(n_bytes: int) -> Iterator[Path]:
    """Make a group of `n_bytes` below our own for the block; skip the test where that is not allowed."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path.strip("/")
    if "memory" in own:  # cgroup v1
        folder, limit = Path("/sys/fs/cgroup/memory") / own["memory"] / "llamalite-test", "memory.limit_in_bytes"
    else:
        folder, limit = Path("/sys/fs/cgroup") / own.get("", "") / "llamalite-test", "memory.max"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(n_bytes))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"needs a memory cgroup of its own: {error}")
    try:
        yield folder
    finally:
        folder.rmdir()


def test_a_cgroup_that_is_too_small_is_reported_with_the_numbers_and_kills_nothing(wide: Path) -> None:
    with cgroup(150 << 20) as group:
        join = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))\n"
        done = subprocess.run(
            [sys.executable, "-c", join + START, "run", str(wide), "once", "-n", "1", "--ctx", "256"],
            capture_output=True, text=True, env=environment(), timeout=120, check=False,
        )  # fmt: skip
    assert_one_line(done)
    assert NUMBERS.search(done.stderr), done.stderr
