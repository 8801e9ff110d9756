#!/usr/bin/env python3
"""Speed of llamalite beside its peers on one machine, as ratios, the two sides taking turns.

    python benchmarks/generation.py MODEL.gguf --llama-bench PATH [--pairs 7] [--only tg,pp,batch,rss]

- tg128, pp512: llamalite's token loop and prompt reading beside ``llama-bench -n 128`` and ``-p 512``; medians.
- batch: 16 prompts of about 24 tokens with 32 and 128 new tokens, `Model.generate_batch` beside llama-cpp-python's
  `Llama`, one prompt after another.
- rss: the peak memory of a loaded model beside that of ``llama-completion`` with the same context.

Each number is a ratio: above 1 llamalite is faster (for rss: takes more).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROMPTS = [
    f"Question {i}: what would happen if {thing} could speak, and which words would it choose to say first to us all?"
    for i, thing in enumerate(
        "a stone, a river, the moon, a cat, an oak, a clock, the wind, a book, a lamp, the sea, a bridge, a drum, "
        "a mirror, the snow, a garden, a train".split(", ")
    )
]


def bench(binary: Path, model: Path, threads: int, *args: str) -> float:
    """Return the tokens a second that llama-bench prints for one test, run once."""
    command = [str(binary), "-m", str(model), "-t", str(threads), "-r", "1", "-o", "json", *args]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return float(told[-1]["avg_ts"])


def pairs(name: str, n: int, ours: Callable[[], float], theirs: Callable[[], float]) -> None:
    """Run both sides in turns and print the median of the ratios with the two medians."""
    ratios, mine, other = [], [], []
    for i in range(n):
        both = (ours(), theirs()) if i % 2 else tuple(reversed((theirs(), ours())))
        mine.append(both[0])
        other.append(both[1])
        ratios.append(both[0] / both[1])
        print(f"  {name} pair {i + 1}: {both[0]:.2f} / {both[1]:.2f} tok/s = {ratios[-1]:.3f}", flush=True)
    print(f"{name}: ratio {statistics.median(ratios):.3f} (median of {n}; {min(ratios):.3f} to {max(ratios):.3f}), "
          f"{statistics.median(mine):.2f} tok/s beside {statistics.median(other):.2f}", flush=True)  # fmt: skip


def measure_single(path: Path, threads: int, n: int, llama_bench: Path, only: set[str]) -> None:
    """tg128 and pp512 as llama-bench defines them: an empty context, tokens of the vocabulary at random."""
    import random

    from llamalite.model import Model
    from llamalite.sampling import SamplingParams

    with Model(path, n_ctx=1024, n_threads=threads) as model:
        ends = {i: -float("inf") for i in range(model.native.n_vocab) if model.native.is_eog(i)}
        endless = SamplingParams(max_tokens=129, temperature=0, logit_bias=ends)

        def tg128() -> float:
            # The first of 129 tokens comes with the prompt; the 128 after it are what is timed.
            model.clear()
            totals = list(model.stream([1], endless))[-1].totals
            assert totals is not None
            return totals.tok_per_s

        def pp512() -> float:
            model.clear()
            ids = [random.randrange(model.native.n_vocab) for _ in range(512)]
            totals = list(model.stream(ids, endless.replace(max_tokens=0)))[-1].totals
            assert totals is not None
            return totals.prompt_tok_per_s

        pp512()  # both sides are measured warm: llama-bench runs each test once before
        if "tg" in only:
            pairs("tg128", n, tg128, lambda: bench(llama_bench, path, threads, "-p", "0", "-n", "128"))
        if "pp" in only:
            pairs("pp512", n, pp512, lambda: bench(llama_bench, path, threads, "-p", "512", "-n", "0"))


def measure_batch(path: Path, threads: int, n: int, sizes: list[int]) -> None:
    """16 prompts at once beside `llama_cpp.Llama`, one after another, with so many new tokens each."""
    import llama_cpp

    from llamalite.model import Model

    theirs = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    with Model(path, n_ctx=1024, n_threads=threads) as model:
        ends = {i: -float("inf") for i in range(model.native.n_vocab) if model.native.is_eog(i)}
        bias = dict.fromkeys(ends, -100.0)
        for new in sizes:

            def ours(new: int = new) -> float:
                began = time.perf_counter()
                found = model.generate_batch(PROMPTS, max_tokens=new, temperature=0, logit_bias=ends, parallel=16)
                return sum(len(one.tokens) for one in found) / (time.perf_counter() - began)

            def one_by_one(new: int = new) -> float:
                began, made = time.perf_counter(), 0
                for prompt in PROMPTS:
                    told = theirs(prompt, max_tokens=new, temperature=0.0, logit_bias=bias)
                    made += told["usage"]["completion_tokens"]  # type: ignore[index]
                return made / (time.perf_counter() - began)

            pairs(f"batch of 16, {new} new tokens", n, ours, one_by_one)


def measure_rss(path: Path, threads: int, completion: Path) -> None:
    """Peak memory of one answer of 8 tokens, in a process of its own on either side."""
    script = (
        "import sys\nfrom llamalite.model import Model\n"
        f"with Model(sys.argv[1], n_ctx=2048, n_threads={threads}) as m:\n"
        "    m.generate('Once upon a time', max_tokens=8)\n"
    )
    found = {}
    for name, command in {
        "llamalite": [sys.executable, "-c", script, str(path)],
        "llama-completion": [
            *(str(completion), "-m", str(path), "-c", "2048", "-t", str(threads), "-n", "8"),
            *("-p", "Once upon a time", "-no-cnv", "--no-warmup"),
        ],
    }.items():
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ])  # fmt: skip
        _, status, usage = os.wait4(pid, 0)
        if status:
            raise SystemExit(f"{name} ended with {os.waitstatus_to_exitcode(status)}")
        found[name] = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    ratio = found["llamalite"] / found["llama-completion"]
    told = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in found.items())
    print(f"peak RSS, n_ctx 2048: ratio {ratio:.3f} ({told})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", type=Path, required=True, help="llama-bench; llama-completion beside it")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="default: the physical cores")
    parser.add_argument("--only", default="tg,pp,batch,rss")
    parser.add_argument("--new", default="32,128", help="tokens of a batch's answers")
    asked = parser.parse_args()
    from llamalite.hardware import physical_cores

    threads, only = asked.threads or physical_cores(), set(asked.only.split(","))
    print(f"{asked.model.name}, {threads} threads, {asked.pairs} pairs in turns", flush=True)
    if only & {"tg", "pp"}:
        measure_single(asked.model, threads, asked.pairs, asked.llama_bench, only)
    if "batch" in only:
        measure_batch(asked.model, threads, asked.pairs, [int(size) for size in asked.new.split(",")])
    if "rss" in only:
        measure_rss(asked.model, threads, asked.llama_bench.with_name("llama-completion"))


if __name__ == "__main__":
    main()
