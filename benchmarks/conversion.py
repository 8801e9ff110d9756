"""`llamalite convert` beside llama.cpp's two steps, interleaved on this machine: time, peak memory, the same bytes.

    python benchmarks/conversion.py CHECKPOINT LLAMA_CPP_SOURCE LLAMA_QUANTIZE [-t Q4_K_M] [-t Q8_0] [--pairs 3]

LLAMA_CPP_SOURCE is vendor/llama.cpp of the pinned llama-cpp-python's sdist and LLAMA_QUANTIZE the program built from it
(cmake -B build && cmake --build build --target llama-quantize); its converter needs torch and transformers. A step is a
process, timed from start to exit; memory is the process's peak RSS, mapped files included. Both sides flush what they
wrote to the disk (ours by itself, theirs by `sync`), and find the checkpoint in the page cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(command: list[str | Path], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Run `command` to its end and return (seconds, peak RSS in MiB); its output is shown only where it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=output, env=os.environ | (environment or {})
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{command[0]} failed:\n{output.read().decode(errors='replace')}")
    return time.perf_counter() - started, usage.ru_maxrss / (1 if sys.platform == "linux" else 1024) / 1024


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("llama_quantize", type=Path)
    parser.add_argument("-t", "--type", dest="types", action="append")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    types = args.types or ["Q4_K_M", "Q8_0"]
    config = json.loads((args.checkpoint / "config.json").read_text())
    stored = {"bfloat16": "bf16", "float16": "f16"}.get(config.get("torch_dtype") or config.get("dtype"), "f32")
    figures: dict[str, dict[str, list[float]]] = {t: {"two": [], "ours": [], "ratio": [], "rss": []} for t in types}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        step1, step2, ours = (Path(scratch) / name for name in ("step1.gguf", "step2.gguf", "ours.gguf"))
        for pair in range(args.pairs):
            converter = [sys.executable, args.llama_cpp / "convert_hf_to_gguf.py", args.checkpoint]
            source = {"PYTHONPATH": str(args.llama_cpp / "gguf-py")}
            first, _ = run([*converter, "--outtype", stored, "--outfile", step1], source)
            for qtype in types:
                second, _ = run([args.llama_quantize, step1, step2, qtype])
                synced, _ = run(["sync", step2])
                one, rss = run([sys.executable, "-m", "llamalite", "-q", "convert", args.checkpoint, "-t", qtype,
                                "-o", ours, "--force"])  # fmt: skip
                if digest(step2) != digest(ours):
                    sys.exit(f"{qtype}: the two files differ")
                both = first + second + synced
                for key, value in (("two", both), ("ours", one), ("ratio", one / both), ("rss", rss)):
                    figures[qtype][key].append(value)
                print(f"pair {pair + 1} {qtype}: two steps {first:.1f} + {second:.1f} s, one pass {one:.1f} s, "
                      f"ratio {one / both:.2f}, peak {rss:.0f} MiB, same bytes", flush=True)  # fmt: skip
                step2.unlink()
                ours.unlink()
            step1.unlink()
    print("\n| type | two steps, s | one pass, s | ratio | peak memory, MiB |\n|---|---|---|---|---|")
    for qtype, rows in figures.items():
        print(f"| {qtype} | {spread(rows['two'])} | {spread(rows['ours'])} | {spread(rows['ratio'])} "
              f"| {max(rows['rss']):.0f} |")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
