"""Time and peak memory of `llamalite verify` of a file against its checkpoint, compared with the promise for 1.1B.

    python benchmarks/verification.py CHECKPOINT [-t Q4_K_M] [--runs 3]

The file is first converted, into a temporary folder. A run is a process with all checks (keys, template, every tensor,
tokens, logits), timed from start to exit, with the checkpoint in the page cache; memory is its peak RSS. The promise is
less than a minute on two cores and less than 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import side_by_side as bench

SECONDS, GIB = 60, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-t", "--type", dest="types", action="append")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument("--scratch", type=Path, help="where the file goes (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    threads = bench.threads(options)
    measured = {}
    for qtype in options.types or ["Q4_K_M"]:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            made = Path(folder) / "made.gguf"
            bench.process(bench.llamalite("-q", "convert", options.checkpoint, "-t", qtype, "-o", made))
            command = bench.llamalite("-q", "verify", made, "--against", options.checkpoint, "--threads", threads)
            runs = [bench.process([*command, "--json"]) for _ in range(options.runs)]
        report = json.loads(runs[0].output)
        seconds, peak = [run.seconds for run in runs], max(run.peak_mib for run in runs)
        middle = statistics.median(seconds)
        held = "met" if middle < SECONDS and peak < GIB * 1024 else "NOT MET"
        print(
            f"verify {qtype}: {middle:.1f} s ({min(seconds):.1f} to {max(seconds):.1f} of {len(seconds)}) on {threads} "
            f"threads, peak {peak:,.0f} MiB; promised {SECONDS} s and {GIB} GiB: {held}; all checks "
            f"{'hold' if report['ok'] else 'do NOT hold'}",
            flush=True,
        )
        measured[qtype] = {"seconds": seconds, "peak_mib": peak, "threads": threads, "ok": report["ok"]}
    if options.json:
        bench.write_json(options.json, {"machine": bench.machine(), "verify": measured})


if __name__ == "__main__":
    main()
