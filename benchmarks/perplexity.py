"""Wall time and peak memory of `llamalite perplexity` against llama-perplexity, in interleaved pairs.

    python benchmarks/perplexity.py model-Q4_K_M.gguf wiki.test.raw --peer llama.cpp/build/bin/llama-perplexity

Each pair runs the two on the same model, text and protocol, one after the other, the order changing from pair to pair;
what is printed is the median of the pairs' ratios. The perplexities must be the same or nothing is measured.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path


def run(command: list[str]) -> tuple[float, int, str]:
    """Return seconds, peak resident bytes and all output of `command`, which has to succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = process.stdout.read().decode("utf-8", "replace")
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{said[-2000:]}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--peer", type=Path, required=True, help="llama-perplexity of the same llama.cpp")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    args = parser.parse_args()
    shared = ["-f", str(args.text), "--chunks", str(args.chunks)]
    peer = [str(args.peer), "-m", str(args.model), *shared, "-c", str(args.ctx), "-t", str(args.threads)]
    ours = [sys.executable, "-m", "llamalite", "perplexity", str(args.model), *shared]
    ours += ["--ctx", str(args.ctx), "--threads", str(args.threads)]
    ratios, memory = [], []
    for pair in range(args.pairs):
        order = (ours, peer) if pair % 2 else (peer, ours)
        found = {command[0]: run(command) for command in order}
        (t_ours, m_ours, said_ours), (t_peer, m_peer, said_peer) = found[ours[0]], found[peer[0]]
        mine = re.search(r"PPL +([\d.]+) ± ([\d.]+)", said_ours)
        theirs = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", said_peer)
        if mine is None or theirs is None or mine[1] != theirs[1]:
            sys.exit(f"the figures differ: {mine and mine.groups()} against {theirs and theirs.groups()}")
        ratios.append(t_ours / t_peer)
        memory.append(m_ours / m_peer)
        print(
            f"pair {pair + 1}: llamalite {t_ours:.2f} s, {m_ours / 2**20:,.0f} MiB; llama-perplexity {t_peer:.2f} s, "
            f"{m_peer / 2**20:,.0f} MiB; ratio {ratios[-1]:.3f}; PPL {mine[1]} ± {mine[2]}, {theirs[1]} ± {theirs[2]}",
            flush=True,
        )
    print(f"median ratio: time {statistics.median(ratios):.3f}, peak memory {statistics.median(memory):.3f}")


if __name__ == "__main__":
    main()
