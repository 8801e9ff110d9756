"""Generation speed and memory against peers on one machine, in turns.

    python benchmarks/generation.py MODEL.gguf --llama-cpp FOLDER [--pairs 7] [--only tg,pp,batch,rss]

- tg128, pp512: llamalite's token loop and prompt reading against ``llama-bench -n 128`` and ``-p 512``.
- batch: 16 prompts of about 24 tokens with 32 and 128 new tokens, `Model.generate_batch` against llama-cpp-python's
  `Llama`, one prompt after another.
- rss: the peak memory of a loaded model against that of ``llama-completion`` with the same context.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import side_by_side as bench
from side_by_side import Figure, Peers

PROMPTS = [
    f"Question {i}: what would happen if {thing} could speak, and which words would it choose to say first to us all?"
    for i, thing in enumerate(
        "a stone, a river, the moon, a cat, an oak, a clock, the wind, a book, a lamp, the sea, a bridge, a drum, "
        "a mirror, the snow, a garden, a train".split(", ")
    )
]
BATCH_TARGETS = {32: 2.2, 128: 2.6}
ALL = ("tg", "pp", "batch", "rss")


def llama_bench(program: Path, model: Path, n_threads: int, *args: str) -> float:
    """Return the tokens per second that llama-bench prints for one test, run once."""
    ran = bench.process([program, "-m", model, "-t", n_threads, "-r", "1", "-o", "json", *args])
    return float(json.loads(ran.output[ran.output.index("[\n") :])[-1]["avg_ts"])


def measure_single(path: Path, n_threads: int, pairs: int, peers: Peers, only: Collection[str]) -> Iterator[Figure]:
    """Yield tg128 and pp512 as llama-bench defines them: an empty context, random tokens of the vocabulary."""
    from llamalite.model import Model
    from llamalite.sampling import SamplingParams

    program = peers.program("llama-bench")
    with Model(path, n_ctx=1024, n_threads=n_threads) as model:
        ends = {i: -float("inf") for i in range(model.native.n_vocab) if model.native.is_eog(i)}
        endless = SamplingParams(max_tokens=129, temperature=0, logit_bias=ends)

        def tg128() -> float:
            # The first of 129 tokens comes with the prompt; the 128 after it are timed.
            model.clear()
            return model.generate([1], endless).totals.tok_per_s

        def pp512() -> float:
            model.clear()
            ids = [random.randrange(model.native.n_vocab) for _ in range(512)]
            return model.generate(ids, endless, max_tokens=0).totals.prompt_tok_per_s

        pp512()  # a warm-up, as llama-bench does before each test
        if "tg" in only:
            times = bench.in_turns(
                pairs, tg128, lambda: llama_bench(program, path, n_threads, "-p", "0", "-n", "128"), "tg128"
            )
            yield Figure("generation (tg128)", "llama-bench", "tok/s", *times, 0.97)
        if "pp" in only:
            times = bench.in_turns(
                pairs, pp512, lambda: llama_bench(program, path, n_threads, "-p", "512", "-n", "0"), "pp512"
            )
            yield Figure("prompt reading (pp512)", "llama-bench", "tok/s", *times, 0.97)


def measure_batch(
    path: Path, n_threads: int, pairs: int, sizes: Sequence[int], prompts: Sequence[str] = PROMPTS
) -> Iterator[Figure]:
    """Yield, for each of `sizes` new tokens, all prompts at once against `llama_cpp.Llama` one after another."""
    import llama_cpp

    from llamalite.model import Model

    theirs = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=n_threads, n_threads_batch=n_threads, verbose=False)
    with Model(path, n_ctx=1024, n_threads=n_threads) as model:
        ends = {i: -float("inf") for i in range(model.native.n_vocab) if model.native.is_eog(i)}
        bias = dict.fromkeys(ends, -100.0)
        for new in sizes:

            def ours(new: int = new) -> float:
                began = time.perf_counter()
                completions = model.generate_batch(prompts, max_tokens=new, temperature=0, logit_bias=ends, parallel=16)
                took = time.perf_counter() - began
                model.native.thread.close()  # ends its OpenMP threads, which would slow down the other side
                return sum(len(completion.tokens) for completion in completions) / took

            def one_by_one(new: int = new) -> float:
                return bench.in_a_thread(lambda: answers(new))

            def answers(new: int) -> float:
                began, made = time.perf_counter(), 0
                for prompt in prompts:
                    completion = theirs(prompt, max_tokens=new, temperature=0.0, logit_bias=bias)
                    made += completion["usage"]["completion_tokens"]
                return made / (time.perf_counter() - began)

            name = f"{len(prompts)} prompts at once, {new} tokens each"
            times = bench.in_turns(pairs, ours, one_by_one, name)
            target = BATCH_TARGETS.get(new) if len(prompts) == 16 else None
            yield Figure(name, "llama-cpp-python, one by one", "tok/s", *times, target)
    theirs.close()


def measure_rss(path: Path, n_threads: int, peers: Peers) -> Iterator[Figure]:
    """Yield the peak memory of a process that makes one answer of 8 tokens."""
    script = (
        "import sys\nfrom llamalite.model import Model\n"
        f"with Model(sys.argv[1], n_ctx=2048, n_threads={n_threads}) as m:\n"
        "    m.generate('Once upon a time', max_tokens=8)\n"
    )
    mine = bench.process([sys.executable, "-c", script, path])
    theirs = bench.process(
        [peers.program("llama-completion"), "-m", path, "-c", "2048", "-t", n_threads, "-n", "8",
         "-p", "Once upon a time", "-no-cnv", "--no-warmup"]
    )  # fmt: skip
    yield Figure("a loaded model, peak memory", "llama-completion", "MiB", [mine.peak_mib], [theirs.peak_mib], 1.05)


def measure(
    path: Path, peers: Peers, pairs: int, *, n_threads: int, only: Collection[str] = ALL, new: Sequence[int] = (32, 128)
) -> Iterator[Figure]:
    if {"tg", "pp"} & set(only):
        yield from measure_single(path, n_threads, pairs, peers, only)
    if "batch" in only:
        yield from measure_batch(path, n_threads, pairs, new)
    if "rss" in only:
        yield from measure_rss(path, n_threads, peers)


def main() -> None:
    parser = bench.arguments(__doc__, pairs=7)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", default=",".join(ALL))
    parser.add_argument("--new", default="32,128", help="tokens of a batch's answers")
    options = parser.parse_args()
    figures = measure(
        options.model, Peers.given(options), options.pairs, n_threads=bench.threads(options),
        only=options.only.split(","), new=[int(size) for size in options.new.split(",")],
    )  # fmt: skip
    bench.report(figures, options.json)


if __name__ == "__main__":
    main()
