"""llamalite against transformers on the CPU: the speed of answers and of reading prompts, and peak memory.

    python benchmarks/beside_transformers.py CHECKPOINT MODEL.gguf [--pairs 3]

MODEL is made from CHECKPOINT (usually as Q4_K_M); transformers computes in the checkpoint's own dtype. Each side runs
in a process of its own: it loads the model, reads a prompt and generates greedily. The second prompt and answer are
timed, after a warm-up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import side_by_side as bench
from side_by_side import Figure

THEIRS = """
import json, sys, time, torch, transformers
from transformers import AutoModelForCausalLM
transformers.logging.set_verbosity_error()
path, n_threads, n_prompt, n_new = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(n_threads)
model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
def timed(n):
    ids = torch.arange(10, 10 + n_prompt)[None] % model.config.vocab_size
    began = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False,
                   pad_token_id=0)
    return time.perf_counter() - began
with torch.inference_mode():
    timed(2)
    first = timed(1)
    print("FOUND" + json.dumps([n_prompt / first, n_new / (timed(1 + n_new) - first)]))
"""

OURS = """
import json, sys
from llamalite.model import Model
path, n_threads, n_prompt, n_new = sys.argv[1], *map(int, sys.argv[2:])
with Model(path, n_ctx=n_prompt + n_new + 64, n_threads=n_threads) as model:
    ends = {i: -float("inf") for i in range(model.native.n_vocab) if model.native.is_eog(i)}
    ids = [i % model.native.n_vocab for i in range(10, 10 + n_prompt)]
    for n in (2, 1 + n_new):
        model.clear()
        totals = model.generate(ids, max_tokens=n, temperature=0, logit_bias=ends).totals
print("FOUND" + json.dumps([totals.prompt_tok_per_s, totals.tok_per_s]))
"""


def measure(
    checkpoint: Path, model: Path, pairs: int, *, n_threads: int, n_prompt: int = 128, n_new: int = 32
) -> Iterator[Figure]:
    values: dict[str, tuple[list[float], list[float]]] = {"prompt": ([], []), "answer": ([], []), "peak": ([], [])}

    def side(index: int, script: str, path: Path) -> float:
        ran = bench.process([sys.executable, "-c", script, path, n_threads, n_prompt, n_new])
        prompt, answer = json.loads(ran.output.rpartition("FOUND")[2].splitlines()[0])
        for name, value in (("prompt", prompt), ("answer", answer), ("peak", ran.peak_mib)):
            values[name][index].append(value)
        return float(answer)

    bench.in_turns(pairs, lambda: side(0, OURS, model), lambda: side(1, THEIRS, checkpoint), "answer")
    yield Figure(f"an answer of {n_new} tokens", "transformers", "tok/s", *values["answer"])
    yield Figure(f"a prompt of {n_prompt} tokens", "transformers", "tok/s", *values["prompt"])
    yield Figure("peak memory of both", "transformers", "MiB", *values["peak"])


def main() -> None:
    parser = bench.arguments(__doc__, pairs=3, peers=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model", type=Path)
    options = parser.parse_args()
    figures = measure(options.checkpoint, options.model, options.pairs, n_threads=bench.threads(options))
    bench.report(figures, options.json)


if __name__ == "__main__":
    main()
