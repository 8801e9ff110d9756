"""Wall time and peak memory of `llamalite perplexity` against llama-perplexity, in turns, for the same result.

    python benchmarks/perplexity.py model-Q4_K_M.gguf wiki.test.raw --llama-cpp FOLDER [--chunks 8]

Both use the same model, text and protocol. It fails unless the perplexities are the same to the last digit.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import side_by_side as bench
from side_by_side import Figure, Peers


def measure(
    model: Path, text: Path, peers: Peers, pairs: int, *, n_threads: int, n_ctx: int = 512, chunks: int = 8
) -> Iterator[Figure]:
    shared = ["-f", text, "--chunks", chunks]
    peer = [peers.program("llama-perplexity"), "-m", model, *shared, "-c", n_ctx, "-t", n_threads]
    mine = bench.llamalite("perplexity", model, *shared, "--ctx", n_ctx, "--threads", n_threads)
    peaks: tuple[list[float], list[float]] = ([], [])
    ppl: dict[str, set[str]] = {"ours": set(), "theirs": set()}

    def ours() -> float:
        ran = bench.process(mine)
        ppl["ours"] |= set(re.findall(r"PPL +([\d.]+) ±", ran.output))
        peaks[0].append(ran.peak_mib)
        return ran.seconds

    def theirs() -> float:
        ran = bench.process(peer)
        ppl["theirs"] |= set(re.findall(r"PPL = ([\d.]+) \+/-", ran.output))
        peaks[1].append(ran.peak_mib)
        return ran.seconds

    times = bench.in_turns(pairs, ours, theirs, "perplexity")
    if ppl["ours"] != ppl["theirs"] or len(ppl["ours"]) != 1:
        sys.exit(f"the perplexities differ: {ppl}")
    note = f"PPL {ppl['ours'].pop()} on both sides"
    yield Figure("perplexity", "llama-perplexity", "s", *times, None, note)
    yield Figure("perplexity, peak memory", "llama-perplexity", "MiB", *peaks)


def main() -> None:
    parser = bench.arguments(__doc__, pairs=5)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    options = parser.parse_args()
    figures = measure(
        options.model, options.text, Peers.given(options), options.pairs,
        n_threads=bench.threads(options), n_ctx=options.ctx, chunks=options.chunks,
    )  # fmt: skip
    bench.report(figures, options.json)


if __name__ == "__main__":
    main()
