"""Did anything become slower? A minute of small measurements against peers, compared with the ratios in reference.json.

    python benchmarks/check.py                    # exit code 1 if a ratio is more than 25% worse than the reference
    python benchmarks/check.py --write            # record this machine's ratios

The peers are in every installation: `llama_model_quantize` and ggml's kernels of the installed library,
llama-cpp-python's `Llama`, and Python itself. Both sides run on one thread and are measured in CPU time, which is
nearly the same on a busy machine as on a quiet one. A figure whose median is worse is measured again, with more pairs,
and then judged by the best quarter of all pairs: a real slowdown shows in every pair. Ratios depend on the processor:
on one that differs from the reference's, a figure may be twice as bad.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import side_by_side as bench
from side_by_side import ROOT, Figure

REFERENCE = Path(__file__).with_name("reference.json")
WORSE, WORSE_ELSEWHERE = 1.25, 2.0


def cpu_time(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


class Small:
    """A checkpoint of ten million weights, files made from it, and the measurements on them."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        import toy_checkpoint

        import llamalite

        self.folder = folder
        self.checkpoint = folder / "small"
        toy_checkpoint.write_checkpoint(self.checkpoint, n_layer=4, n_embd=512, n_head=8, n_head_kv=4, n_ff=1536)
        self.wide, self.model = folder / "small-BF16.gguf", folder / "small-Q4_K_M.gguf"
        llamalite.convert(self.checkpoint, self.wide, qtype="BF16")
        llamalite.convert(self.checkpoint, self.model, qtype="Q4_K_M")

    def kernels(self, pairs: int) -> Iterator[Figure]:
        import kernels

        for name, n_rows in (("Q4_K", 64), ("Q6_K", 64), ("Q8_0", 1024)):
            yield kernels.measure_one(name, "BF16", False, n_rows, pairs + 2)

    def conversion(self, pairs: int) -> Iterator[Figure]:
        import llamalite
        from llamalite.native.quantize import model_file
        from llamalite.quant_types import FILE_TYPES

        made, theirs = self.folder / "ours.gguf", self.folder / "theirs.gguf"
        os.environ["LLAMALITE_KERNELS"] = "fast"  # for so few weights they would not be loaded
        try:
            times = bench.in_turns(
                pairs,
                lambda: cpu_time(
                    lambda: llamalite.convert(self.checkpoint, made, qtype="Q4_K_M", n_threads=1, force=True)
                ),
                lambda: cpu_time(lambda: model_file(self.wide, theirs, FILE_TYPES["Q4_K_M"], 1)),
            )
        finally:
            del os.environ["LLAMALITE_KERNELS"]
        yield Figure("checkpoint to Q4_K_M", "llama_model_quantize, from BF16", "s of CPU", *times)

    def generation(self, pairs: int) -> Iterator[Figure]:
        import llama_cpp

        from llamalite.model import Model

        theirs = llama_cpp.Llama(
            str(self.model), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False, logits_all=False
        )
        prompts = [f"once upon a time there was {word}" for word in ("the", "a", "no", "yes", "me", "I", "one", "two")]
        with Model(self.model, n_ctx=512, n_threads=1) as model:
            ends = {i: -float("inf") for i in range(model.native.n_vocab) if model.native.is_eog(i)}
            bias = dict.fromkeys(ends, -100.0)
            ids = [10 + i % 200 for i in range(300)]

            def answer() -> None:
                model.clear()
                model.generate(prompts[0], max_tokens=64, temperature=0, logit_bias=ends)

            def answer_theirs() -> None:
                theirs.reset()
                theirs(prompts[0], max_tokens=64, temperature=0.0, logit_bias=bias)

            yield self._figure("an answer of 64 tokens", "llama-cpp-python", pairs + 2, answer, answer_theirs)

            def read() -> None:
                model.clear()
                model.generate(ids, max_tokens=1, temperature=0)

            def read_theirs() -> None:
                theirs.reset()
                theirs(ids, max_tokens=1, temperature=0.0)

            yield self._figure("a prompt of 300 tokens", "llama-cpp-python", pairs + 2, read, read_theirs)

            def together() -> None:
                model.generate_batch(prompts, max_tokens=16, temperature=0, logit_bias=ends, parallel=8)

            def one_by_one() -> None:
                for prompt in prompts:
                    theirs(prompt, max_tokens=16, temperature=0.0, logit_bias=bias)

            yield self._figure("8 prompts at once", "llama-cpp-python, one by one", pairs, together, one_by_one)
        theirs.close()

    def startup(self, pairs: int) -> Iterator[Figure]:
        times = bench.in_turns(
            pairs + 2,
            lambda: bench.process(bench.llamalite("--help")).cpu_s,
            lambda: bench.process([sys.executable, "-c", "pass"]).cpu_s,
        )
        yield Figure("llamalite --help", "python -c pass", "s of CPU", *times)

    @staticmethod
    def _figure(name: str, peer: str, pairs: int, ours: Callable[[], object], theirs: Callable[[], object]) -> Figure:
        ours()
        theirs()
        return Figure(name, peer, "s of CPU", *bench.in_turns(pairs, lambda: cpu_time(ours), lambda: cpu_time(theirs)))

    def groups(self) -> list[Callable[[int], Iterator[Figure]]]:
        return [self.kernels, self.conversion, self.generation, self.startup]


def worse(measured: Mapping[str, float], reference: Mapping[str, float], allowed: float) -> list[str]:
    """Return a line for each figure that is worse than `allowed` times its reference, or that was not measured."""
    lines = []
    for name, expected in reference.items():
        if name not in measured:
            lines.append(f"{name}: not measured")
        elif measured[name] > expected * allowed:
            lines.append(
                f"{name}: {measured[name]:.3f} of its peer, and the reference is {expected:.3f} "
                f"({measured[name] / expected - 1:+.0%})"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=REFERENCE)
    parser.add_argument("--write", action="store_true", help="record this machine's ratios as the reference")
    parser.add_argument("--measured", type=Path, help="compare these ratios ({name: ratio}) and measure nothing")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    cpu = bench.machine()["cpu"]
    reference: dict[str, Any] = {} if options.write else json.loads(options.reference.read_text(encoding="utf-8"))
    if options.measured:
        document = json.loads(options.measured.read_text(encoding="utf-8"))
        failed = worse(document["ratios"], reference["ratios"], allowed(document["cpu"], reference))
    else:
        with tempfile.TemporaryDirectory() as folder:
            small, ratios, failed = Small(Path(folder)), dict[str, float](), list[str]()
            for group in small.groups():
                figures = {figure.name: figure for figure in group(options.pairs)}
                expected = {name: reference["ratios"][name] for name in figures if name in reference.get("ratios", {})}
                limit = allowed(cpu, reference)
                measured = {name: figure.ratio for name, figure in figures.items()}
                if worse(measured, expected, limit):
                    print("worse than the reference: once more, with more pairs")
                    for figure in group(2 * options.pairs + 1):
                        both = figures[figure.name].ratios + figure.ratios
                        measured[figure.name] = statistics.quantiles(both, n=4)[0]
                failed += worse(measured, expected, limit)
                ratios |= measured
                for figure in figures.values():
                    print(figure, flush=True)
            failed += [line for line in worse(ratios, reference.get("ratios", {}), limit) if "not measured" in line]
        if options.write:
            rounded = {name: round(ratio, 4) for name, ratio in ratios.items()}
            bench.write_json(options.reference, {"cpu": cpu, "ratios": rounded})
            print(f"wrote {options.reference}")
    for line in failed:
        print(line)
    sys.exit(1 if failed else 0)


def allowed(cpu: str, reference: Mapping[str, Any]) -> float:
    return WORSE if cpu == reference.get("cpu") else WORSE_ELSEWHERE


if __name__ == "__main__":
    main()
