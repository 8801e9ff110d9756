"""Conversions that are killed (SIGKILL) at random moments: OUT is the old file, absent or complete, and nothing else.

    python tests/soak/kills.py --kills 200

One process imports everything and forks for each conversion, so that the moments fall into the conversion and not into
its imports. The next conversion finds what a killed one left, names it and replaces it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import toy_checkpoint  # noqa: E402 - found beside this folder

import llamalite  # noqa: E402

NURSERY = """
import logging, os, sys, traceback
from llamalite.converters import convert
source, out, log = sys.argv[1:]
logging.basicConfig(filename=log)
print("ready", flush=True)
for _ in sys.stdin:
    child = os.fork()
    if not child:
        code = 1
        try:
            convert(source, out, qtype="Q4_K_M", force=True)
            code = 0
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@dataclass
class Kills:
    """How many killed conversions left no OUT, the old or the complete new one; and how many ended before the
    signal."""

    n_absent: int = 0
    n_old: int = 0
    n_whole: int = 0
    n_parts_left: int = 0
    n_too_late: int = 0

    @property
    def n_killed(self) -> int:
        return self.n_absent + self.n_old + self.n_whole


class Nursery:
    """The process that forks conversions of one checkpoint to one file."""

    def __init__(self, source: Path, out: Path, log: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1])}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", NURSERY, source, out, log],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def convert(self, kill_after_s: float | None = None) -> int:
        """Run a conversion, kill it after so many seconds, and return its status as `os.waitpid` gives it."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        child = int(self._line())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.kill(child, signal.SIGKILL)
        return int(self._line())

    def time_one(self, log: Path) -> float:
        """How many seconds a conversion that nobody kills takes; its log tells why if it fails."""
        began = time.monotonic()
        assert self.convert() == 0, log.read_text()
        return time.monotonic() - began

    def close(self) -> None:
        self._process.communicate(timeout=60)


def kill_conversions(folder: Path, n_kills: int, *, seed: int = 0, n_layer: int = 2, n_embd: int = 256) -> Kills:
    """Kill `n_kills` conversions in `folder` at random moments; ``AssertionError`` when one leaves what it must not.

    Each moment lies within the time that the previous conversion took, as the machine's speed changes. A conversion
    that has ended when the signal comes must be complete, and is not counted as killed.
    """
    rng, counts = random.Random(seed), Kills()
    source = toy_checkpoint.write_checkpoint(folder / "toy", n_layer=n_layer, n_embd=n_embd, n_ff=2 * n_embd)
    before = _digests(source)
    out, log = folder / "made" / "out.gguf", folder / "log"
    out.parent.mkdir()
    part = out.with_name("out.gguf.part")
    nursery = Nursery(source, out, log)
    try:
        assert nursery.convert() == 0, log.read_text()
        whole = out.read_bytes()
        lasts_s, number = nursery.time_one(log), 0
        while counts.n_killed < n_kills:
            number += 1
            assert number <= 10 * n_kills, f"of {number} signals only {counts.n_killed} came in time"
            old = b"the file of before" if number % 2 else None
            out.unlink()
            if old:
                out.write_bytes(old)
            status = nursery.convert(kill_after_s=rng.uniform(0, lasts_s))
            assert status in (0, signal.SIGKILL), f"kill {number}: status {status}, {log.read_text()[-500:]}"
            found = out.read_bytes() if out.exists() else None
            assert found in (old, whole), f"kill {number}: OUT has {len(found or b'')} bytes, whole is {len(whole)}"
            if status == 0:
                assert found == whole, f"kill {number}: it ended well, and OUT is not whole"
                counts.n_too_late += 1
            else:
                counts.n_whole += found == whole
                counts.n_absent += found is None
                counts.n_old += found is not None and found == old
            left = {path.name for path in out.parent.iterdir()}
            assert left <= {out.name, part.name}, f"kill {number}: {left}"
            is_left = part.exists()
            counts.n_parts_left += is_left
            log.write_text("")
            lasts_s = nursery.time_one(log)
            assert out.read_bytes() == whole
            assert not part.exists()
            told = log.read_text()
            assert (f"{part} is left over from a conversion that was stopped; it is replaced" in told) == is_left, told
        assert _digests(source) == before
    finally:
        nursery.close()
    return counts


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_conversions(Path(folder), args.kills, seed=args.seed, n_layer=6, n_embd=512)
    sys.stdout.write(f"{args.kills} conversions killed in {time.monotonic() - began:.0f} s: {counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
