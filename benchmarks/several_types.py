"""Several types in one read against a run for each: time and peak memory of `llamalite convert`.

    python benchmarks/several_types.py CHECKPOINT [-t F16 -t Q8_0 -t Q4_0] [--pairs 5]

A run is a process, timed from start to exit with its files on the disk; the checkpoint is in the page cache. The time
of the separate runs is their sum, their memory that of the largest. The files of both sides must be the same bytes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import side_by_side as bench
from conversion import digest
from side_by_side import Figure

TYPES = ("F16", "Q8_0", "Q4_0")
TIME_TARGET, MEMORY_TARGET = 0.45, 1.3


def measure(checkpoint: Path, types: Sequence[str], pairs: int, scratch: Path | None = None) -> Iterator[Figure]:
    """Yield a figure for time and one for peak memory; exit if bytes differ."""
    peaks: tuple[list[float], list[float]] = ([], [])
    asked = [word for qtype in types for word in ("-t", qtype)]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        together, apart = Path(folder) / "together", Path(folder) / "apart"

        def in_one_read() -> float:
            shutil.rmtree(together, ignore_errors=True)
            ran = bench.process(bench.llamalite("-q", "convert", checkpoint, *asked, "-o", together))
            peaks[0].append(ran.peak_mib)
            return ran.seconds

        def one_by_one() -> float:
            shutil.rmtree(apart, ignore_errors=True)
            apart.mkdir()
            runs = [
                bench.process(bench.llamalite("-q", "convert", checkpoint, "-t", qtype, "-o", apart / f"{qtype}.gguf"))
                for qtype in types
            ]
            peaks[1].append(max(ran.peak_mib for ran in runs))
            return sum(ran.seconds for ran in runs)

        times = bench.in_turns(pairs, in_one_read, one_by_one, "one read / runs apart")
        for qtype in types:
            (made,) = together.glob(f"*-{qtype}.gguf")
            if digest(made) != digest(apart / f"{qtype}.gguf"):
                sys.exit(f"{qtype}: the two files differ")
    names = ", ".join(types)
    yield Figure(f"{names} in one read", f"{len(types)} runs", "s", *times, target=TIME_TARGET)
    yield Figure(f"{names} in one read, peak memory", "the largest of the runs", "MiB", *peaks, target=MEMORY_TARGET)


def main() -> None:
    parser = bench.arguments(__doc__, pairs=5, peers=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-t", "--type", dest="types", action="append")
    parser.add_argument("--scratch", type=Path, help="where the files go (default: a temporary folder)")
    options = parser.parse_args()
    bench.report(measure(options.checkpoint, options.types or TYPES, options.pairs, options.scratch), options.json)


if __name__ == "__main__":
    main()
