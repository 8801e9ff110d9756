"""`llamalite convert` against llama.cpp's two steps, in turns: time and peak memory, for files of the same bytes.

    python benchmarks/conversion.py CHECKPOINT --llama-cpp FOLDER [-t Q4_K_M -t Q8_0] [--pairs 3]

llama.cpp's converter needs torch and transformers. A step is a process, timed from start to exit; memory is its peak
RSS, including mapped files. Both sides flush their files to the disk (ours by itself, theirs by `sync`), with the
checkpoint in the page cache. With several types, one run for all of them is also measured against the sum of their
two-step conversions.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import side_by_side as bench
from side_by_side import Figure, Peers

TARGETS = {"Q4_K_M": 0.20, "Q8_0": 0.15, "Q4_0": 0.10, "BF16": 0.15}
SHORT = {"bfloat16": "bf16", "float16": "f16"}


def digest(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            sha256.update(block)
    return sha256.hexdigest()


def measure(
    checkpoint: Path, peers: Peers, types: Sequence[str], pairs: int, scratch: Path | None = None
) -> Iterator[Figure]:
    """Yield time and memory for each of `types`, then for all in one read; exit if bytes differ."""
    config = json.loads((checkpoint / "config.json").read_text())
    stored = SHORT.get(config.get("torch_dtype") or config.get("dtype"), "f32")
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in (*types, "all")}
    peaks: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in (*types, "all")}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        step1, step2, ours = (Path(folder) / name for name in ("step1.gguf", "step2.gguf", "ours.gguf"))
        for pair in range(pairs):
            first = bench.process(
                [sys.executable, peers.source / "convert_hf_to_gguf.py", checkpoint, "--outtype", stored,
                 "--outfile", step1],
                {"PYTHONPATH": str(peers.source / "gguf-py")},
            )  # fmt: skip
            together = 0.0
            for qtype in types:
                second = bench.process([peers.program("llama-quantize"), step1, step2, qtype])
                synced = bench.process(["sync", step2])
                mine = bench.process(bench.llamalite("-q", "convert", checkpoint, "-t", qtype, "-o", ours, "--force"))
                if digest(step2) != digest(ours):
                    sys.exit(f"{qtype}: the two files differ")
                both = first.seconds + second.seconds + synced.seconds
                together += both
                times[qtype][0].append(mine.seconds)
                times[qtype][1].append(both)
                peaks[qtype][0].append(mine.peak_mib)
                peaks[qtype][1].append(max(first.peak_mib, second.peak_mib))
                print(
                    f"  pair {pair + 1} {qtype}: {mine.seconds:.1f} / {first.seconds:.1f} + "
                    f"{second.seconds + synced.seconds:.1f} s = {mine.seconds / both:.3f}, same bytes",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                ours.unlink()
            step1.unlink()
            step2.unlink()
            if len(types) > 1:
                asked = [word for qtype in types for word in ("-t", qtype)]
                mine = bench.process(bench.llamalite("-q", "convert", checkpoint, *asked, "-o", Path(folder) / "all"))
                times["all"][0].append(mine.seconds)
                times["all"][1].append(together)
                for made in (Path(folder) / "all").iterdir():
                    made.unlink()
                (Path(folder) / "all").rmdir()
    for qtype in types:
        yield Figure(f"convert to {qtype}", "llama.cpp's two steps", "s", *times[qtype], TARGETS.get(qtype))
        yield Figure(f"convert to {qtype}, peak memory", "llama.cpp's two steps", "MiB", *peaks[qtype])
    if len(types) > 1:
        yield Figure(f"convert to {' + '.join(types)} in one read", "the two steps of each", "s", *times["all"], 0.16)


def main() -> None:
    parser = bench.arguments(__doc__, pairs=3)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-t", "--type", dest="types", action="append")
    parser.add_argument("--scratch", type=Path, help="where the files go (default: a temporary folder)")
    options = parser.parse_args()
    types = options.types or ["Q4_K_M", "Q8_0"]
    bench.report(measure(options.checkpoint, Peers.given(options), types, options.pairs, options.scratch), options.json)


if __name__ == "__main__":
    main()
