"""What each type costs on one checkpoint and one text: size, bits a weight, perplexity. Prints the README's table.

    python benchmarks/quality_by_type.py models/demo -f models/demo/heldout.txt --exact

All files are made in one read and measured with llama-perplexity's protocol; `--exact` gives digits that hold on any
machine. The bits count tensors only. Lines are ordered by size.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import llamalite

TYPES = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_0",
         "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True, help="the text")
    parser.add_argument("--chunks", type=int, help="stop after that many chunks of 512 tokens")
    parser.add_argument("--exact", action="store_true", help="F32 cache and no flash attention")
    options = parser.parse_args()
    text = options.file.read_bytes().removesuffix(b"\n")
    with tempfile.TemporaryDirectory() as folder:
        report = llamalite.convert(options.checkpoint, folder, qtype=TYPES)
        print(
            f"{report.n_params / 1e6:,.1f} million weights, {len(TYPES)} files in one read of {report.seconds:.1f} s\n"
        )
        print("| type | size | bits a weight | perplexity | against BF16 |")
        print("| --- | ---: | ---: | ---: | ---: |")
        first = None
        for output in sorted(report.outputs, key=lambda output: -output.n_bytes):
            result = llamalite.perplexity(output.path, text, chunks=options.chunks, exact=options.exact)
            first = first or result
            print(
                f"| {output.qtype} | {output.n_bytes / 1e6:,.2f} MB | {output.bits_per_weight:.2f} | "
                f"{result.ppl:.4f} ± {result.ppl_err:.4f} | {result.ppl / first.ppl - 1:+.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
