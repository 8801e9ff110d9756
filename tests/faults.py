"""What the tests of faults share: running the command after a prelude, and on a file system of its own.

    done = command(["convert", folder, "-o", out], prelude="import resource; ...")
    done = command([...], mounted=("size=2m", tmp_path / "small"))          # on a file system of 2 MiB

A prelude is Python that runs in the process before the command line does: it sets limits, or makes a system call fail.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import toy
from gguf_bytes import GgufBytes

import llamalite

START = "import runpy, sys\nsys.argv[0] = 'llamalite'\nrunpy.run_module('llamalite', run_name='__main__')\n"


def environment(**more: str) -> dict[str, str]:
    """Return the environment in which a child imports the package that the tests imported."""
    return os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1]), "PYTHONUTF8": "1"} | more


def command(
    args: Sequence[str | Path],
    *,
    prelude: str = "",
    mounted: tuple[str, Path] | None = None,
    read_only: bool = False,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``llamalite ARGS``, after `prelude`, with a tmpfs of these options in place of a folder where `mounted`.

    The tmpfs is in a namespace of the process, vanishes with it, and needs no rights; see `can_mount`.
    """
    program = [sys.executable, "-c", prelude + "\n" + START, *map(str, args)]
    if mounted is not None:
        options, folder = mounted
        steps = [f"mount -t tmpfs -o {shlex.quote(options)} none {shlex.quote(str(folder))}"]
        if read_only:
            steps.append(f"mount -o remount,ro {shlex.quote(str(folder))}")
        script = " && ".join([*steps, "exec " + shlex.join(program)])
        program = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    return subprocess.run(
        program, capture_output=True, text=True, encoding="utf-8", env=environment(), cwd=cwd, timeout=120, check=False
    )


@functools.cache
def can_mount() -> bool:
    """Tell whether a process may mount a file system in a namespace of its own here: on most Linux systems."""
    if not shutil.which("unshare"):
        return False
    test = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs none /tmp"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0


def snapshot(folder: Path) -> dict[str, str]:
    """Return what lies in `folder` and below: name → digest of the content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that the command ended with exit code 1 and one line that contains all of `words`."""
    assert done.returncode == 1, (done.returncode, done.stderr[-2000:])
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr[-2000:]
    assert lines[0].startswith("error: ")
    missing = [word for word in words if word not in lines[0]]
    assert not missing, f"{missing} not in {lines[0]}"


def write_endless(path: Path, *, n_layer: int = 4, n_embd: int = 256) -> Path:
    """Write a toy model that never ends an answer by itself when it answers with the likeliest token."""
    file = GgufBytes.of(toy.write_toy(path, chat_template=toy.CHATML, n_ctx_train=8192, n_layer=n_layer, n_embd=n_embd))
    tensor = next(one for one in file.tensors if one.name == b"output.weight")
    rows = np.frombuffer(tensor.content, "<f4").reshape(-1, n_embd).copy()  # float32 [n_vocab, n_embd]
    rows[[toy.EOS, -1]] = 0  # the ends of a text and of a turn: other logits lie above 0
    tensor.content = rows.tobytes()
    path.write_bytes(file.dump())
    return path
