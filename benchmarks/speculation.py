"""Tokens guessed ahead against one token per decode, on the same model, in turns.

    python benchmarks/speculation.py MODEL.gguf -f TEXT [--tokens 200] [--pairs 3]
    python benchmarks/speculation.py DEMO.gguf --asked models/demo/heldout.jsonl [--draft SMALL.gguf]

With a text, the answer is prescribed, so that any model of the right size will do, even with random weights: a copy of
the prompt's text, an edited copy (every 20th token replaced), and the text that follows the prompt, which does not
repeat it. Everything is computed as for a real answer; only the sampler's choice is replaced. With `--asked` the model
answers greedily in its own words: the questions of that file, kind by kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import side_by_side as bench
from side_by_side import Figure

HELPS, HARMLESS = 1.5, 0.95


class Prescribed:
    """A sampler that does its work, and then returns the next token of `answer` instead of its choice."""

    def __init__(self, sampler: Any, answer: Sequence[int]) -> None:
        self._sampler, self._answer = sampler, iter(answer)
        self.seed = sampler.seed

    def sample(self, logits: Any) -> int:
        self._sampler.sample(logits)
        return next(self._answer)

    def close(self) -> None:
        self._sampler.close()


def measure_prescribed(path: Path, text: str, pairs: int, *, n_threads: int, n_tokens: int) -> Iterator[Figure]:
    from llamalite.model import Model

    with Model(path, n_ctx=2 * n_tokens + 256, n_threads=n_threads) as model:
        ids = model.tokenize(text)[: 2 * n_tokens]
        given, following = ids[:n_tokens], ids[n_tokens:]
        edited = [token if i % 20 else (token + 1000) % model.native.n_vocab for i, token in enumerate(given, 1)]
        for name, answer, target in (
            ("an answer that copies its input", given, HELPS),
            ("an answer that edits every 20th token", edited, HELPS),
            ("an answer that repeats nothing", following, HARMLESS),
        ):

            def speed(how: str, answer: Sequence[int] = answer) -> float:
                make = model._engine.make_sampler
                model._engine.make_sampler = lambda params, prompt: Prescribed(make(params, prompt), answer)
                try:
                    model.clear()
                    completion = model.generate(given, max_tokens=len(answer), temperature=0, speculate=how)
                finally:
                    model._engine.make_sampler = make
                assert list(completion.tokens) == list(answer)
                return completion.totals.tok_per_s

            times = bench.in_turns(pairs, lambda: speed("lookup"), lambda: speed("off"), name)
            yield Figure(f"{name}, lookup", "one token per decode", "tok/s", *times, target)


def measure_asked(
    path: Path, asked: Path, pairs: int, *, n_threads: int, per_kind: int, draft: Path | None = None
) -> Iterator[Figure]:
    from llamalite.model import Model

    questions: dict[str, list[str]] = {}
    for line in asked.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        questions.setdefault(question["kind"], []).append(question["prompt"])
    how = "draft" if draft else "lookup"
    with Model(path, n_ctx=1024, n_threads=n_threads, draft=draft) as model:
        for kind, prompts in questions.items():
            answers: dict[str, list[tuple[int, ...]]] = {}
            counts = [0, 0]

            def speed(
                how: str, prompts: Sequence[str] = prompts[:per_kind], answers: Any = answers, counts: Any = counts
            ) -> float:
                n_tokens, seconds, tokens = 0, 0.0, []
                for prompt in prompts:
                    completion = model.generate(
                        [{"role": "user", "content": prompt}], max_tokens=200, temperature=0, speculate=how
                    )
                    n_tokens, seconds = n_tokens + len(completion.tokens), seconds + completion.totals.generation_s
                    counts[0] += completion.totals.n_drafted
                    counts[1] += completion.totals.n_accepted
                    tokens.append(completion.tokens)
                answers[how] = tokens
                return n_tokens / seconds

            times = bench.in_turns(pairs, lambda speed=speed: speed(how), lambda speed=speed: speed("off"), kind)
            same = sum(a == b for a, b in zip(answers[how], answers["off"], strict=True))
            note = f"{counts[1]} of {counts[0]} guesses right, {same} of {len(answers[how])} answers the same"
            yield Figure(f"{kind}, {how}", "one token per decode", "tok/s", *times, HARMLESS, note)


def main() -> None:
    parser = bench.arguments(__doc__, pairs=3, peers=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("-f", "--file", type=Path, help="a text, for prescribed answers")
    parser.add_argument("--tokens", type=int, default=200, help="of a prescribed answer")
    parser.add_argument("--asked", type=Path, help="questions as JSON lines with kind and prompt")
    parser.add_argument("--per-kind", type=int, default=20)
    parser.add_argument("--draft", type=Path, help="a draft model instead of lookup")
    options = parser.parse_args()
    n_threads = bench.threads(options)
    runs: list[Callable[[], Iterator[Figure]]] = []
    if options.file:
        text = options.file.read_text(encoding="utf-8")
        runs.append(
            lambda: measure_prescribed(options.model, text, options.pairs, n_threads=n_threads, n_tokens=options.tokens)
        )
    if options.asked:
        runs.append(
            lambda: measure_asked(
                options.model, options.asked, options.pairs,
                n_threads=n_threads, per_kind=options.per_kind, draft=options.draft,
            )
        )  # fmt: skip
    if not runs:
        parser.error("give a text with -f, or questions with --asked")
    bench.report((figure for run in runs for figure in run()), options.json)


if __name__ == "__main__":
    main()
