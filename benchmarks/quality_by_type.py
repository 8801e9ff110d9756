"""Size, perplexity and KL divergence of each type, on one checkpoint and one text. Prints the README's table.

    python benchmarks/quality_by_type.py models/demo -f models/demo/heldout.txt --exact
    python benchmarks/quality_by_type.py models/demo -f models/demo/heldout.txt --exact --calibration calibration.txt

All files are made in one read and compared with the checkpoint in lockstep; `--exact` gives the same digits on any
machine. Bits count tensors only. Lines are ordered by size. With `--calibration` an importance matrix is collected on
that text, and a further column has the divergence of each type made with it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from llamalite.converters import Importance
from llamalite.evaluation.candidates import make_candidates
from llamalite.evaluation.comparison import Comparison, compare
from llamalite.evaluation.imatrix import collect_imatrix
from llamalite.evaluation.windows import read_text

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_0",
         "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K")  # fmt: skip


def compare_types(options: argparse.Namespace, folder: Path, importance: Importance | None) -> Comparison:
    """Convert the checkpoint to every type, in `folder`, and compare the files with it."""
    reference, made = make_candidates(options.checkpoint, TYPES, folder, importance=importance)
    return compare(reference, made, read_text(options.file), chunks=options.chunks, exact=options.exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True, help="the text to measure on")
    parser.add_argument("--calibration", type=Path, help="another text, to collect an importance matrix on")
    parser.add_argument("--chunks", type=int, help="stop after that many chunks of 512 tokens")
    parser.add_argument("--exact", action="store_true", help="F32 cache and no flash attention")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = compare_types(options, folder / "plain", None)
        weighed: dict[str | None, float] = {}
        if options.calibration:
            path = folder / "imatrix.gguf"
            collect_imatrix(plain.reference.path, read_text(options.calibration)).save(
                path, dataset=str(options.calibration)
            )
            candidates = compare_types(options, folder / "weighed", Importance.load(path)).candidates
            weighed = {made.qtype: made.divergence.mean_kld for made in candidates if made.divergence}
    first = plain.candidates[0].divergence
    assert first is not None  # only the reference has none
    base = plain.reference
    print("| type | size | bits per weight | perplexity | mean KLD | same top |" + " with a matrix |" * bool(weighed))
    print("| --- | ---: | ---: | ---: | ---: | ---: |" + " ---: |" * bool(weighed))
    size = f"{base.n_bytes / 2**20:,.2f} MiB | {base.bits_per_weight:.2f}"
    print(f"| {base.qtype} | {size} | {first.ppl_base:.4f} ± {first.ppl_base_err:.4f} | | |" + " |" * bool(weighed))
    for candidate in sorted(plain.candidates, key=lambda candidate: -candidate.n_bytes):
        divergence = candidate.divergence
        assert divergence is not None
        line = f"| {candidate.qtype} | {candidate.n_bytes / 2**20:,.2f} MiB | {candidate.bits_per_weight:.2f} "
        line += f"| {divergence.ppl:.4f} ± {divergence.ppl_err:.4f} "
        line += f"| {divergence.mean_kld:.5f} ± {divergence.mean_kld_err:.5f} | {divergence.same_top_p:.1%} |"
        print(line + (f" {weighed[candidate.qtype]:.5f} |" if weighed else ""))


if __name__ == "__main__":
    main()
