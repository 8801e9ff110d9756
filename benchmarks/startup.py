"""How long a user waits before anything happens: `llamalite --help` beside `python -c pass`, and the first token.

    python benchmarks/startup.py [MODEL LLAMA_COMPLETION] [--runs 20]

Whole processes, interleaved, the median of each. With MODEL (a GGUF file) and llama.cpp's llama-completion, also the
time from the start of `llamalite run MODEL -n 1` to its end, beside `llama-completion -m MODEL -n 1`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "Once upon a time"


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-1000:]}")
    return time.perf_counter() - started


def compare(ours: list[str], theirs: list[str], runs: int) -> None:
    """Print the medians of both commands, run in turn, and the ratio of ours to theirs."""
    times = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    spread = statistics.quantiles([a / b for a, b in times], n=4)
    print(f"{mine:.3f} s  {Path(ours[0]).name} {' '.join(ours[1:])}")
    print(f"{other:.3f} s  {Path(theirs[0]).name} {' '.join(theirs[1:])}")
    print(f"ratio {mine / other:.2f} (quartiles of the pairs {spread[0]:.2f} and {spread[2]:.2f})\n")


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
        theirs = [options.llama_completion, "-m", options.model, "-p", PROMPT, "-no-cnv", *common]
        compare([*llamalite, "run", options.model, PROMPT, "--raw", *common], theirs, options.runs)


if __name__ == "__main__":
    main()
