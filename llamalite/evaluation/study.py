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

from llamalite.converters import Importance, Recipe, convert
from llamalite.converters.checkpoints import open_checkpoint
from llamalite.evaluation.comparison import Candidate, Comparison, needed
from llamalite.gguf_check import check
from llamalite.hardware import MemoryNeeded

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
    path, recipe = Path(source), Recipe(importance=importance)
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        made = convert(path, folder, qtype=list(qtypes), recipe=recipe, progress=progress) if qtypes else None
        return path, [output.path for output in made.outputs] if made else []
    with open_checkpoint(path) as checkpoint:
        weights: collections.Counter[str] = collections.Counter()
        for tensor in checkpoint.tensors.values():
            weights[tensor.dtype] += tensor.n_bytes
    own = _REFERENCE_TYPES.get(weights.most_common(1)[0][0], "F32")
    wanted = [own, *(qtype for qtype in qtypes if qtype != own)]
    made = convert(path, folder, qtype=wanted, recipe=recipe, progress=progress)
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
