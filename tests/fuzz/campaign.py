"""A long run over numbered files in child processes, so that a dead or hanging child costs one file and is reported.

    outcomes, faults = campaign([sys.executable, "gguf_load.py"], first=0, last=20000)

The command is run with ``--child FIRST LAST LOG``; it appends ``NUMBER `` to LOG before each file, and the result and a
line end after it. A result that begins with ``FAULT`` is a fault, as is a file that a child never finished.
"""

from __future__ import annotations

import collections
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HANG_S = 20.0
START_S = 300.0  # what imports may take on a busy machine
BATCH = 2000  # files a child
QUIET = {"GGML_NO_BACKTRACE": "1"}  # else ggml starts a debugger on the process that it aborts

Faults = list[tuple[int, str]]


def go_through(first: int, last: int, log: Path, run: Callable[[int], str]) -> None:
    """Be the child: call `one` for each number and write down what it returns."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with log.open("a", encoding="utf-8", errors="replace") as lines:
        for number in range(first, last):
            lines.write(f"{number} ")
            lines.flush()
            outcome = run(number)
            lines.write(outcome.replace("\n", " ") + "\n")
            lines.flush()


def campaign(command: list[str], first: int, last: int) -> tuple[collections.Counter[str], Faults]:
    """Return how often each outcome (the text before its first colon) occurred, and the faults."""
    outcomes: collections.Counter[str] = collections.Counter()
    faults: Faults = []
    with tempfile.TemporaryDirectory() as folder:
        log, errors = Path(folder) / "log", Path(folder) / "errors"
        while first < last:
            log.write_text("")
            with errors.open("wb") as sink:
                bounds = ["--child", str(first), str(min(last, first + BATCH)), str(log)]
                process = subprocess.Popen(command + bounds, stdout=sink, stderr=sink, env=os.environ | QUIET)
                code = _wait(process, log)
            output = errors.read_bytes().decode("utf-8", "replace").strip().splitlines()
            lines = log.read_text(encoding="utf-8").splitlines()
            if code and not lines:
                raise RuntimeError(f"the child fails before its first file: {output[-5:]}")
            for line in lines:
                number, _, outcome = line.partition(" ")
                first = int(number) + 1
                outcomes[outcome.partition(":")[0]] += bool(outcome)
                if more := re.search(r": (\d+) (refused by the check) before it$", outcome):
                    outcomes[more[2]] += int(more[1])
                if outcome.startswith("FAULT"):
                    faults.append((int(number), outcome))
            if code:
                how = signal.Signals(-code).name if code < 0 else f"exit {code}"
                last_words = re.sub("/.*/llama.cpp/", "", " | ".join(output[-3:]))[:300]
                faults.append((first - 1, f"{how} {last_words}"))
            sys.stderr.write(f"file {first} of {last}: {dict(outcomes)}, faults: {len(faults)}\n")
    return outcomes, faults


def _wait(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the child's exit code; a child that writes nothing for `HANG_S` is killed."""
    size, since = -1, time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        now = log.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > (HANG_S if size else START_S):
            process.kill()
    return process.returncode


def report(name: str, n: int, seconds: float, outcomes: collections.Counter[str], faults: Faults) -> None:
    """Print the outcomes of `n` files."""
    sys.stdout.write(f"{name}: {n} files in {seconds:.0f} s\n")
    for outcome, times in outcomes.most_common(12):
        sys.stdout.write(f"{times:8}  {outcome}\n")
    sys.stdout.write(f"{len(faults):8}  faults\n")
    for number, fault in faults[:100]:
        sys.stdout.write(f"  file {number}: {fault}\n")
    sys.stdout.flush()
