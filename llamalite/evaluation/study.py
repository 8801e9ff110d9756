"""Around a comparison: the candidates that are made for it, and which of them to take.

paths = make_candidates("TinyLlama-1.1B", ["Q8_0", "Q4_K_M"], folder)     # the reference first, in its own dtype
verdicts = judge(comparison, kld_budget=0.05, n_ctx=4096, free_bytes=free_memory_bytes())
chosen = next((v for v in verdicts if v.chosen), None)
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamalite.converters import Importance, QuantizeParams, convert
from llamalite.converters.checkpoints import open_checkpoint
from llamalite.evaluation.comparison import Candidate, Comparison, needed
from llamalite.gguf_check import check
from llamalite.hardware import MemoryNeeded

SMALL_LOSS = 0.05
"""A mean KLD, in nats, up to which a candidate is recommended: beyond it benchmarks begin to show the loss.

llama.cpp's table of Llama 3 8B (tools/perplexity/README.md) has 0.03 for Q4_K_M and 0.10 for Q3_K_M.
"""
_REFERENCE_TYPES = {"F64": "F32", "F32": "F32", "F16": "F16", "BF16": "BF16"}


def make_candidates(
    source: str | os.PathLike[str],
    qtypes: Sequence[str],
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    importance: Importance | None = None,
) -> tuple[Path, list[Path]]:
    """Convert `source` to a reference and one candidate for each of `qtypes`, all in one read, into `folder`.

    Return the reference and the candidates. A checkpoint's reference has the dtype of most of its weights; a GGUF file
    is its own. `progress` is called with bytes done and in all; `importance` weighs the columns. Raises what
    `llamalite.convert` raises.
    """
    path, params = Path(source), QuantizeParams(importance=importance)
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        made = convert(path, folder, qtype=list(qtypes), params=params, progress=progress) if qtypes else None
        return path, [output.path for output in made.outputs] if made else []
    with open_checkpoint(path) as checkpoint:
        weights: collections.Counter[str] = collections.Counter()
        for tensor in checkpoint.tensors.values():
            weights[tensor.dtype] += tensor.n_bytes
    own = _REFERENCE_TYPES.get(weights.most_common(1)[0][0], "F32")
    wanted = [own, *(qtype for qtype in qtypes if qtype != own)]
    made = convert(path, folder, qtype=wanted, params=params, progress=progress)
    outputs = {output.qtype: output.path for output in made.outputs}
    return outputs[own], [outputs[qtype] for qtype in wanted[1:]]


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate keeps within a budget of mean KL divergence, and within this machine's memory."""

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


def judge(comparison: Comparison, *, kld_budget: float, n_ctx: int, free_bytes: int) -> list[Verdict]:
    """Return a verdict for each candidate, the smallest file first; the first that passes both tests is chosen."""
    verdicts: list[Verdict] = []
    found = False
    for one in sorted(comparison.candidates, key=lambda candidate: candidate.n_bytes):
        assert one.divergence is not None  # only the reference has none
        need = needed(check(one.path), n_ctx)
        within, fits = one.divergence.mean_kld <= kld_budget, need.total_bytes <= free_bytes
        verdicts.append(Verdict(one, one.divergence.mean_kld, need, within, fits, within and fits and not found))
        found = found or verdicts[-1].chosen
    return verdicts


def labels(comparison: Comparison) -> dict[Path, str]:
    """Return what each model is called in a table: its type, where they are types of one model, else its name."""
    everyone = (comparison.reference, *comparison.candidates)
    bare = {one.name.removesuffix(f"-{one.qtype}") for one in everyone}
    types = {one.qtype for one in everyone}
    if len(bare) == 1 and len(types) == len(everyone) and None not in types:
        return {one.path: str(one.qtype) for one in everyone}
    return {one.path: one.name for one in everyone}


def lesson(comparison: Comparison, kld_budget: float = SMALL_LOSS) -> str:
    """Return what to take from it, in a sentence: the smallest file whose mean KLD is at most `kld_budget`."""
    pairs = [(one, one.divergence) for one in comparison.candidates if one.divergence is not None]
    within = [(one, found) for one, found in pairs if found.mean_kld <= kld_budget]
    one, found = min(within or pairs, key=lambda pair: pair[0].n_bytes if within else pair[1].mean_kld)
    name = labels(comparison)[one.path]
    ratio = comparison.reference.n_bytes / one.n_bytes
    size = f"{ratio:.1f} times smaller than" if ratio >= 1.05 else f"{1 / ratio:.1f} times larger than"
    if 0.95 < ratio < 1.05:
        size = "as large as"
    told = (
        f"{name}: {size} the reference, perplexity {found.ppl_ratio - 1:+.2%} ± {found.ppl_ratio_err:.2%}, "
        f"{found.same_top_p:.1%} same top token."
    )
    if len(pairs) == 1:
        return told if within else f"{told} A mean KLD above {kld_budget:g} is a loss that shows."
    if within:
        return f"The smallest with a mean KLD of at most {kld_budget:g} is {told}"
    return f"None has a mean KLD of at most {kld_budget:g}: all lose something that shows. Nearest is {told}"
