"""How long a user waits for the first output: `llamalite --help` against `python -c pass`, and the first token.

    python benchmarks/startup.py [MODEL LLAMA_COMPLETION] [--runs 20]

Medians of interleaved runs: seconds from the start of the process to its first byte of output, and the CPU seconds of
the whole process, which other programs disturb less. With MODEL (a GGUF file) and llama.cpp's llama-completion, the
first byte is also that of the first token of `llamalite run MODEL -n 1`, against
`llama-completion -m MODEL -n 1 --no-display-prompt`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import side_by_side as bench

PROMPT = "Once upon a time"


def seconds(command: list[str]) -> tuple[float, float]:
    """Return the time to the first byte on standard output (or to the end if there is none), and the CPU time."""
    before, started = os.times(), time.perf_counter()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - started
        process.stdout.read()
        if process.wait():
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{errors.read()[-1000:].decode()}")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return first, spent


def first_token(model: Path, peers: bench.Peers, pairs: int, n_threads: int) -> bench.Figure:
    """Return the time from the start of a process to its first token, against llama-completion's."""
    asked = ["-n", "1", "--temp", "0"]
    tool = str(peers.program("llama-completion"))
    theirs = [tool, "-m", str(model), "-p", PROMPT, "-no-cnv", "--no-display-prompt", "-t", str(n_threads), *asked]
    words = bench.llamalite("run", model, PROMPT, "--raw", "--threads", n_threads, *asked)
    ours = [str(word) for word in words]
    times = bench.in_turns(pairs, lambda: seconds(ours)[0], lambda: seconds(theirs)[0], "first token")
    return bench.Figure("the first token of a process", "llama-completion", "s", *times)


def compare(ours: list[str], theirs: list[str], runs: int) -> None:
    """Print the medians of both commands, run in turn, and the ratios of ours to theirs."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    for i, what in enumerate(("to the first byte", "of the processor")):
        mine, other = (statistics.median(pair[side][i] for pair in pairs) for side in (0, 1))
        spread = statistics.quantiles([pair[0][i] / max(pair[1][i], 1e-3) for pair in pairs], n=4)
        print(f"{mine:.3f} s {what}  {Path(ours[0]).name} {' '.join(ours[1:])}")
        print(f"{other:.3f} s {what}  {Path(theirs[0]).name} {' '.join(theirs[1:])}")
        print(f"ratio {mine / max(other, 1e-3):.2f} (quartiles of the pairs {spread[0]:.2f} and {spread[2]:.2f})\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("llama_completion", nargs="?")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    llamalite = [sys.executable, "-m", "llamalite"]
    compare([*llamalite, "--help"], [sys.executable, "-c", "pass"], options.runs)
    if options.model and options.llama_completion:
        common = ["-n", "1", "--temp", "0"]
        theirs = [
            options.llama_completion,
            "-m",
            options.model,
            "-p",
            PROMPT,
            "-no-cnv",
            "--no-display-prompt",
            *common,
        ]
        compare([*llamalite, "run", options.model, PROMPT, "--raw", *common], theirs, options.runs)


if __name__ == "__main__":
    main()
