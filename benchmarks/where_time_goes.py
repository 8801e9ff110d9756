"""Where the time of `run`, `batch`, `perplexity` and `convert` goes, and how far it is from the machine's limits.

    python benchmarks/where_time_goes.py CHECKPOINT MODEL.gguf -f TEXT

Functions are wrapped with a clock in this process: llama.cpp's decodes, sampling, and Python's work around them;
reading, quantizing and writing in the threads of a conversion. The limit of a token's decode is the bytes of weights
that it reads, at the memory bandwidth measured in the same run (`llamalite bench` measures both in the same way).
Prints a table in Markdown.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import side_by_side as bench

HEAD = "| verb | what | seconds | share |\n| --- | --- | ---: | ---: |"


class Clock:
    """Measures seconds by name, summed over all threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextlib.contextmanager
    def on(self, **methods: tuple[Any, str]) -> Iterator[None]:
        """Time ``owner.method`` for the ``with`` block: ``decode=(NativeContext, "_decode")``."""
        before = [(owner, method, getattr(owner, method)) for owner, method in methods.values()]
        for name, (owner, method) in methods.items():
            setattr(owner, method, self._timed(name, getattr(owner, method)))
        try:
            yield
        finally:
            for owner, method, function in before:
                setattr(owner, method, function)

    def _timed(self, name: str, function: Any) -> Any:
        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.add(name, time.perf_counter() - began)

        return timed


def rows(verb: str, whole: float, parts: dict[str, float]) -> list[str]:
    """Return the lines of one verb: the whole, its `parts`, and the rest."""
    parts = {**parts, "the rest": max(0.0, whole - sum(parts.values()))}
    first = f"| `{verb}` | all | {whole:.2f} | |"
    return [first, *(f"| | {name} | {seconds:.3f} | {seconds / whole:.1%} |" for name, seconds in parts.items())]


def generating(model: Path, n_threads: int) -> list[str]:
    from llamalite.benchmark import bytes_a_token, memory_bandwidth
    from llamalite.generation.completion import Answer
    from llamalite.gguf_check import checked_header
    from llamalite.model import Model
    from llamalite.native.context import NativeContext
    from llamalite.native.sampler import NativeSampler

    lines: list[str] = []
    with Model(model, n_ctx=1024, n_threads=n_threads) as loaded:
        ends = {i: -float("inf") for i in range(loaded.native.n_vocab) if loaded.native.is_eog(i)}
        ids = [i % loaded.native.n_vocab for i in range(10, 74)]
        loaded.generate(ids, max_tokens=4, logit_bias=ends)  # warm
        for verb in ("run", "batch"):
            clock = Clock()
            timed = {
                "decode": (NativeContext, "_decode"),
                "take": (Answer, "take"),
                "sample": (NativeSampler, "sample"),
            }
            loaded.clear()
            if verb == "run":
                loaded.generate(ids, max_tokens=0)  # reads the prompt except its last token
            with clock.on(**timed):
                began = time.perf_counter()
                if verb == "run":
                    answers = [loaded.generate(ids, max_tokens=65, logit_bias=ends)]
                else:
                    prompts = [[*ids[:20], token] for token in range(20, 36)]
                    answers = loaded.generate_batch(prompts, max_tokens=32, logit_bias=ends, parallel=16)
                whole = time.perf_counter() - began
            seconds = clock.seconds
            parts = {
                "llama.cpp computes (`llama_decode`)": seconds["decode"],
                "sampling (llama.cpp's chain, from Python)": seconds["sample"],
                "text, stop strings, pieces": seconds["take"] - seconds["sample"],
            }
            n = sum(len(completion.tokens) for completion in answers)
            title = f"{verb}: {n} tokens" if verb == "run" else f"{verb}: {len(answers)} answers, {n} tokens"
            lines += rows(title, whole, parts)
            if verb == "run":
                bandwidth, size = memory_bandwidth(n_threads), bytes_a_token(checked_header(model))
                a_token = seconds["decode"] / n
                lines.append(
                    f"| | the limit of a decode: {size / 1e6:,.0f} MB a token at {bandwidth / 1e9:.1f} GB/s | "
                    f"{size / bandwidth * n:.3f} | {size / bandwidth / a_token:.0%} of what it takes |"
                )
    return lines


def measuring(model: Path, text: Path, n_threads: int, chunks: int = 4) -> list[str]:
    from llamalite.evaluation.perplexity import perplexity

    began = time.perf_counter()
    result = perplexity(model, text.read_bytes(), chunks=chunks, n_threads=n_threads)
    whole = time.perf_counter() - began
    parts = {"llama.cpp computes": result.decode_s, "scoring the logits": result.scoring_s}
    return rows(f"perplexity: {chunks} chunks of 512", whole, parts)


def converting(checkpoint: Path, n_threads: int, qtype: str = "Q4_K_M") -> list[str]:
    import llamalite
    from llamalite.converters import output, pipeline

    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        timed = {
            "run": (pipeline, "run"),
            "rows": (pipeline._Worker, "_rows"),
            "pack": (pipeline._Worker, "_pack"),
            "write": (output.OutputFile, "write_at"),
            "flush": (output.OutputFile, "flush"),
        }
        llamalite.convert(checkpoint, Path(folder) / "warm.gguf", qtype=qtype, n_threads=n_threads)
        (Path(folder) / "warm.gguf").unlink()
        with clock.on(**timed):
            began = time.perf_counter()
            llamalite.convert(checkpoint, Path(folder) / "made.gguf", qtype=qtype, n_threads=n_threads)
            whole = time.perf_counter() - began
    seconds = clock.seconds
    share = seconds["run"] / (seconds["rows"] + seconds["pack"] + seconds["write"])  # of the threads' time, by the wall
    parts = {
        "quantizing": seconds["pack"] * share,
        "reading, regrouping, checking for NaN": seconds["rows"] * share,
        "writing": seconds["write"] * share,
        "fsync": seconds.get("flush", 0.0),
    }
    return rows(f"convert: {qtype}, {n_threads} threads", whole, parts)


def table(checkpoint: Path, model: Path, text: Path, n_threads: int) -> str:
    lines = [*generating(model, n_threads), *measuring(model, text, n_threads), *converting(checkpoint, n_threads)]
    return "\n".join([HEAD, *lines])


def main() -> None:
    parser = bench.arguments(__doc__, pairs=1, peers=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True, help="a text for the perplexity")
    options = parser.parse_args()
    print(table(options.checkpoint, options.model, options.file, bench.threads(options)))


if __name__ == "__main__":
    main()
