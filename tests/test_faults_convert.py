"""A conversion that fails ends with one line and exit code 1, leaves no OUT, and touches nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy_checkpoint
from faults import START, assert_one_line, can_mount, command, environment, snapshot
from kills import kill_conversions

from llamalite.converters import QuantizeParams
from llamalite.quant_types import TENSOR_TYPES

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's signals and limits")
needs_mount = pytest.mark.skipif(not can_mount(), reason="needs a mount namespace (unshare, Linux)")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return toy_checkpoint.write_checkpoint(tmp_path / "source" / "toy", n_embd=256)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folder for the results, with a file that llamalite must not touch."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "precious").write_text("precious")
    return tmp_path / "made"


def assert_untouched(source: Path, made: Path, before: dict[str, str]) -> None:
    """Assert that the checkpoint is as it was, and that `made` holds what it held."""
    assert snapshot(source) == before
    assert snapshot(made).keys() == {"precious"}
    assert (made / "precious").read_text() == "precious"


# Calls `then` instead of the Nth call of a function of module os, and goes on as before.
ON_CALL = """
import os
def on_call(name, number, then):
    real, calls = getattr(os, name), []
    def call(*args):
        calls.append(1)
        return then(real, *args) if len(calls) == number else real(*args)
    setattr(os, name, call)
"""
WRITE = "pwrite" if hasattr(os, "pwrite") else "write"


@posix
def test_killed_at_random_moments_it_leaves_the_old_file_or_the_complete_new_one(tmp_path: Path) -> None:
    counts = kill_conversions(tmp_path, 10, seed=5)
    assert counts.n_absent + counts.n_old + counts.n_whole == 10
    assert counts.n_parts_left > 0, "no kill fell into the writing: the test shows nothing"


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_leaves_nothing(number: int, code: int, source: Path, made: Path) -> None:
    before = snapshot(source)
    stop = f"import signal\non_call('pwrite', 3, lambda real, *a: (os.kill(os.getpid(), {int(number)}), real(*a))[1])\n"
    done = command(["convert", source, "-o", made / "out.gguf", "--threads", "1"], prelude=ON_CALL + stop)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert_untouched(source, made, before)


@needs_mount
def test_a_disk_that_fills_up_names_the_file(source: Path, made: Path) -> None:
    """There was enough space at the start; another program takes it while the weights are written."""
    before = snapshot(source)
    fill = (
        "def fill(real, *args):\n"
        "    with open('ballast', 'wb', buffering=0) as ballast:\n"
        "        try:\n"
        "            while ballast.write(bytes(4096)): pass\n"
        "        except OSError: pass\n"
        "    return real(*args)\n"
        "on_call('pwrite', 3, fill)\n"
    )
    # What lies in the namespace's tmpfs is seen from inside only, at the end of the process.
    look = "import atexit, sys\natexit.register(lambda: print(sorted(os.listdir('.'))))\nos.chdir('made')\n"
    done = command(
        ["convert", source, "-q", "-o", "out.gguf", "--threads", "1"],
        prelude=ON_CALL + fill + look, mounted=("size=8m", made), cwd=made.parent,
    )  # fmt: skip
    assert_one_line(done, "out.gguf.part: No space left on device")
    assert done.stdout == "['ballast']\n"
    assert_untouched(source, made, before)


@needs_mount
def test_a_disk_that_is_too_small_is_reported_with_the_numbers_before_anything_is_written(
    source: Path, made: Path
) -> None:
    done = command(["convert", source, "-o", made / "out.gguf"], mounted=("size=256k", made))
    assert_one_line(done, str(made), "MB free, but the conversion needs", "make room, or write elsewhere (convert -o)")


@posix
@pytest.mark.parametrize("limit", [100, 100_000, 700_000])
def test_a_quota_is_one_line_and_not_a_signal(limit: int, source: Path, made: Path) -> None:
    """RLIMIT_FSIZE: the header, the length that is reserved, or a tensor goes beyond it."""
    before = snapshot(source)
    quota = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    done = command(["convert", source, "-o", made / "out.gguf"], prelude=quota)
    assert_one_line(done, "out.gguf.part: File too large")
    assert_untouched(source, made, before)


FAILING = "import errno\ndef fail(real, *args): raise OSError(errno.EIO, 'Input/output error')\n"


@posix
@pytest.mark.parametrize("call", ["preadv", "pwrite", "fsync"])
def test_an_error_of_the_device_names_the_file(call: str, source: Path, made: Path) -> None:
    if not hasattr(os, call):
        pytest.skip(f"this system has no {call}")
    before = snapshot(source)
    number = 1 if call == "fsync" else 3
    done = command(
        ["convert", source, "-o", made / "out.gguf"], prelude=ON_CALL + FAILING + f"on_call('{call}', {number}, fail)"
    )
    assert_one_line(done, "model.safetensors" if call == "preadv" else "out.gguf.part", "Input/output error")
    assert_untouched(source, made, before)


CHANGES = {
    "is written to": "with open(path, 'r+b') as file:\n        file.seek(-64, 2)\n        file.write(bytes(64))",
    "is cut short": "os.truncate(path, os.path.getsize(path) // 2)",
    "grows": "with open(path, 'ab') as file:\n        file.write(b'more')",
    "is NaN": "with open(path, 'r+b') as file:\n        file.seek(9999)\n        file.write(b'\\xff' * 2500000)",
}


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="reads at positions, as Linux has them")
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_while_it_is_read_is_reported_as_changed(change: str, source: Path, made: Path) -> None:
    path = source / "model.safetensors"
    act = f"def act(real, *args):\n    path = {str(path)!r}\n    {CHANGES[change]}\n    return real(*args)\n"
    done = command(
        ["convert", source, "-o", made / "out.gguf", "--threads", "1"],
        prelude=ON_CALL + act + "on_call('preadv', 4, act)",
    )
    assert_one_line(done, str(path), "changed while it was read: convert again when it is complete")
    assert_untouched(source, made, snapshot(source))


@posix
def test_the_second_of_two_conversions_to_one_file_is_refused_and_the_first_continues(source: Path, made: Path) -> None:
    out = made / "out.gguf"
    wait = (
        "import time\n"
        "def wait(real, *args):\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    return real(*args)\n"
        "on_call('pwrite', 2, wait)\n"
    )
    program = "import sys\n" + ON_CALL + wait + START
    first = subprocess.Popen(
        [sys.executable, "-c", program, "convert", source, "-o", out, "--threads", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert first.stdout is not None
    assert first.stdout.readline() == "writing\n"
    second = command(["convert", source, "-o", out])
    refusal = f"{out}.part is being written by another conversion: wait for it, or write elsewhere (convert -o)"
    assert_one_line(second, refusal)
    assert (made / "out.gguf.part").exists()
    _, errors = first.communicate("\n", timeout=60)
    assert first.returncode == 0, errors
    whole = out.read_bytes()
    assert command(["convert", source, "-o", out, "--force"]).returncode == 0
    assert out.read_bytes() == whole


@needs_mount
def test_a_read_only_file_system_is_reported_before_anything_is_read(source: Path, made: Path) -> None:
    done = command(["convert", source, "-o", made / "out.gguf"], mounted=("size=8m", made), read_only=True)
    assert_one_line(done, f"the folder {made} is not writable: write elsewhere (convert -o)")


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_reported(source: Path, made: Path) -> None:
    made.chmod(0o555)
    done = command(["convert", source, "-o", made / "out.gguf"])
    made.chmod(0o755)
    assert_one_line(done, f"the folder {made} is not writable: write elsewhere (convert -o)")


@posix
def test_a_folder_that_vanishes_is_one_line(source: Path, made: Path) -> None:
    before = snapshot(source)
    act = f"import shutil\ndef act(real, *args):\n    shutil.rmtree({str(made)!r})\n    return real(*args)\n"
    done = command(["convert", source, "-o", made / "out.gguf"], prelude=ON_CALL + act + "on_call('pwrite', 3, act)")
    assert_one_line(done, f"{made / 'out.gguf.part'}", "No such file or directory")
    assert not made.exists()
    assert snapshot(source) == before


@posix
def test_a_source_folder_that_vanishes_is_one_line_or_does_not_matter(source: Path, made: Path) -> None:
    """The weights' files are open: what was opened can be read to its end."""
    act = f"import shutil\ndef act(real, *args):\n    shutil.rmtree({str(source)!r})\n    return real(*args)\n"
    vanished = ON_CALL + act + "on_call('preadv', 3, act)"
    whole = made.parent / "whole.gguf"
    assert command(["convert", source, "-o", whole]).returncode == 0
    done = command(["convert", source, "-o", made / "out.gguf"], prelude=vanished)
    if done.returncode == 0:
        assert (made / "out.gguf").read_bytes() == whole.read_bytes()
    else:
        assert_one_line(done, str(source))
        assert snapshot(made).keys() == {"precious"}


ORDER = """
import os
def told(name, what):
    real = getattr(os, name)
    def call(*args, **more):
        sys.stderr.write(f"{name} {what(*args)}\\n")
        return real(*args, **more)
    setattr(os, name, call)
told("fsync", lambda fd: f"{os.fstat(fd).st_ino} {os.fstat(fd).st_size}")
told("pwrite", lambda fd, *_: os.fstat(fd).st_ino)
def renamed(event, args):
    if event == "os.rename":
        sys.stderr.write(f"rename {os.stat(args[0]).st_ino} {args[1]}\\n")
sys.addaudithook(renamed)
"""


@posix
@pytest.mark.parametrize("split", [[], ["--split-max-size", "1M"]], ids=["one file", "shards"])
def test_every_file_is_on_the_disk_before_any_has_its_name(split: list[str], source: Path, made: Path) -> None:
    done = command(["convert", source, "-t", "F32", "-o", made / "out.gguf", *split], prelude="import sys" + ORDER)
    assert done.returncode == 0, done.stderr
    events = [line.split(" ", 1) for line in done.stderr.splitlines()]
    files = [path for path in made.iterdir() if path.name != "precious"]
    assert len(files) > 1 if split else len(files) == 1
    kinds = [kind for kind, _ in events]
    last_write = max(i for i, kind in enumerate(kinds) if kind == "pwrite")
    first_rename = kinds.index("rename")
    synced = [what for kind, what in events[last_write:first_rename] if kind == "fsync"]
    assert sorted(synced) == sorted(f"{path.stat().st_ino} {path.stat().st_size}" for path in files)
    assert kinds[first_rename:].count("rename") == len(files)
    if split:  # the file that is opened comes last: files of two conversions are never one model
        assert "/out-00001-of-" in [what for kind, what in events if kind == "rename"][-1]


@posix
def test_one_of_several_files_that_fails_leaves_none(source: Path, made: Path) -> None:
    before = snapshot(source)
    quota = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))"
    done = command(["convert", source, "-t", "Q4_K_M", "-t", "F32", "-o", made], prelude=quota)
    assert_one_line(done, "toy-F32.gguf.part: File too large")
    assert_untouched(source, made, before)


@posix
def test_a_part_that_a_killed_one_left_is_named_and_replaced(source: Path, made: Path) -> None:
    out = made / "out.gguf"
    (made / "out.gguf.part").write_bytes(b"half")
    done = command(["convert", source, "-o", out])
    assert done.returncode == 0, done.stderr
    assert f"{out}.part is left over from a conversion that was stopped; it is replaced" in done.stderr
    assert snapshot(made).keys() == {"precious", "out.gguf"}


@pytest.mark.parametrize("kind", ["F64", "I8", "q8_k"])
def test_a_type_that_no_weight_can_have_is_refused_before_ggml_aborts(source: Path, made: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="weights cannot be stored as"):
        QuantizeParams(overrides=((".*", TENSOR_TYPES[kind.upper()]),))
    done = command(["convert", source, "-t", "Q8_0", "-o", made / "x.gguf", "--tensor-type", f".*={kind}"])
    assert done.returncode == 2
    assert "expected REGEX=TYPE" in done.stderr
    assert f" {kind.upper()}" not in done.stderr.partition("tensor types are")[2]
    assert not list(made.glob("x.gguf*"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_a_checkpoint_is_not_waited_for(source: Path, made: Path) -> None:
    (source / "config.json").unlink()
    os.mkfifo(source / "config.json")
    assert_one_line(command(["convert", source, "-o", made / "x.gguf"]), "not a regular file")


def test_a_context_that_no_file_may_claim_is_refused_before_it_is_written(source: Path, made: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2**31 - 1}))
    assert_one_line(command(["convert", source, "-o", made / "x.gguf"]), "max_position_embeddings is 2147483647")
    assert not list(made.glob("x.gguf*"))
