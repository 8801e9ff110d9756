"""Which of the compared models to use.

results = check_budgets(comparison, kld_budget=0.05, n_ctx=4096, free_bytes=free_memory_bytes())
chosen = next((result for result in results if result.chosen), None)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamalite.evaluation.comparison import Candidate, Comparison
from llamalite.gguf_check import checked_header
from llamalite.hardware import MemoryNeeded, memory_needed

SMALL_LOSS = 0.05
"""The largest mean KLD, in nats, of a candidate that is recommended: above it, benchmarks begin to show the loss.

llama.cpp's table of Llama 3 8B (tools/perplexity/README.md) has 0.03 for Q4_K_M and 0.10 for Q3_K_M.
"""


@dataclass(frozen=True)
class BudgetResult:
    """Whether a candidate is within a budget of mean KL divergence, and fits into the free memory."""

    candidate: Candidate
    mean_kld: float
    needed: MemoryNeeded
    within_budget: bool
    fits: bool
    chosen: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.candidate.name,
            "mean_kld": self.mean_kld,
            "needed_bytes": self.needed.total_bytes,
            "within_budget": self.within_budget,
            "fits": self.fits,
            "chosen": self.chosen,
        }


def check_budgets(comparison: Comparison, *, kld_budget: float, n_ctx: int, free_bytes: int) -> list[BudgetResult]:
    """Return a result for each candidate, the smallest file first; the first that passes both tests is chosen."""
    results: list[BudgetResult] = []
    for candidate in sorted(comparison.candidates, key=lambda candidate: candidate.n_bytes):
        assert candidate.divergence is not None  # only the reference has none
        needed = memory_needed(checked_header(candidate.path), n_ctx=n_ctx)
        mean_kld = candidate.divergence.mean_kld
        within_budget, fits = mean_kld <= kld_budget, needed.fits(free_bytes)
        chosen = within_budget and fits and not any(result.chosen for result in results)
        results.append(BudgetResult(candidate, mean_kld, needed, within_budget, fits, chosen))
    return results


def short_names(comparison: Comparison) -> dict[Path, str]:
    """Return a name for each model in a table: its type if all are types of the same model, else the file's name."""
    models = (comparison.reference, *comparison.candidates)
    base_names = {model.name.removesuffix(f"-{model.qtype}") for model in models}
    types = {model.qtype for model in models}
    if len(base_names) == 1 and len(types) == len(models) and None not in types:
        return {model.path: str(model.qtype) for model in models}
    return {model.path: model.name for model in models}


def recommend(comparison: Comparison, kld_budget: float = SMALL_LOSS) -> str:
    """Return a sentence that names the smallest file with a mean KLD of at most `kld_budget`, and what it costs."""
    pairs = [(model, model.divergence) for model in comparison.candidates if model.divergence is not None]
    within = [(candidate, divergence) for candidate, divergence in pairs if divergence.mean_kld <= kld_budget]
    if within:
        candidate, divergence = min(within, key=lambda pair: pair[0].n_bytes)
    else:
        candidate, divergence = min(pairs, key=lambda pair: pair[1].mean_kld)
    cost = (
        f"{short_names(comparison)[candidate.path]}: {_relative_size(comparison.reference, candidate)} the reference, "
        f"perplexity {divergence.ppl_ratio - 1:+.2%} ± {divergence.ppl_ratio_err:.2%}, "
        f"{divergence.same_top_p:.1%} same top token."
    )
    if len(pairs) == 1:
        return cost if within else f"{cost} A mean KLD above {kld_budget:g} is a noticeable loss."
    if within:
        return f"The smallest with a mean KLD of at most {kld_budget:g} is {cost}"
    return f"None has a mean KLD of at most {kld_budget:g}: all lose noticeably. The nearest is {cost}"


def _relative_size(reference: Candidate, candidate: Candidate) -> str:
    ratio = reference.n_bytes / candidate.n_bytes
    if 0.95 < ratio < 1.05:
        return "as large as"
    return f"{ratio:.1f} times smaller than" if ratio > 1 else f"{1 / ratio:.1f} times larger than"
