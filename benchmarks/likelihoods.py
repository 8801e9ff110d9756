"""Multiple choice as in the evaluation harness: all requests together against one request at a time.

    python benchmarks/likelihoods.py MODEL.gguf [--questions 6] [--pairs 3]

A question is a context of 200 tokens with four continuations of 2 to 12; tokens are random. Both sides are the scorer
behind `lm_eval --model llamalite` on the same loaded model, and must give the same log-likelihoods.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import side_by_side as bench
from side_by_side import Figure

N_CHOICES, N_CONTEXT, TARGET = 4, 200, 3.0
TOLERANCE = 0.5  # of a continuation's log-likelihood, in nats: kernels are not batch-invariant


def measure(path: Path, n_threads: int, pairs: int, n_questions: int) -> Iterator[Figure]:
    from llamalite.evaluation.likelihoods import LikelihoodScorer, Request
    from llamalite.native.model import NativeModel

    rng = random.Random(1)
    with NativeModel(path) as model, LikelihoodScorer(model, n_threads=n_threads) as scorer:

        def tokens(n: int) -> tuple[int, ...]:
            return tuple(rng.randrange(3, model.n_vocab) for _ in range(n))

        requests = []
        for _ in range(n_questions):
            context = tokens(N_CONTEXT)
            requests += [Request(context, tokens(rng.randint(2, 12))) for _ in range(N_CHOICES)]
        scores: dict[str, list[float]] = {}

        def together() -> float:
            began = time.perf_counter()
            scores["together"] = [score.log_likelihood for score in scorer.score(requests)]
            return len(requests) / (time.perf_counter() - began)

        def one_by_one() -> float:
            began = time.perf_counter()
            scores["alone"] = [scorer.score([request])[0].log_likelihood for request in requests]
            return len(requests) / (time.perf_counter() - began)

        scorer.score(requests[:N_CHOICES])  # warm
        times = bench.in_turns(pairs, together, one_by_one, "likelihoods")
        apart = max(abs(a - b) for a, b in zip(scores["together"], scores["alone"], strict=True))
        if apart > TOLERANCE:
            raise SystemExit(f"log-likelihoods are up to {apart:.3f} apart")
        name = f"multiple choice, {N_CHOICES} continuations of {N_CONTEXT} tokens"
        yield Figure(name, "one request at a time", "requests/s", *times, TARGET, f"at most {apart:.4f} apart")


def main() -> None:
    parser = bench.arguments(__doc__, pairs=3, peers=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("--questions", type=int, default=6)
    options = parser.parse_args()
    bench.report(measure(options.model, bench.threads(options), options.pairs, options.questions), options.json)


if __name__ == "__main__":
    main()
