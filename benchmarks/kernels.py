"""The fast kernels beside ggml's, on one core: the same rows, interleaved, the same bytes.

    python benchmarks/kernels.py [-t Q4_K ...] [--dtype BF16] [--rounds 9] [--json FILE] [--cold]

A round quantizes the same rows once with ggml's kernel and once with ours; its ratio is the one time over the other.
Times are CPU time of the one thread that works, so that a busy machine disturbs little. From BF16 or F16 rows the
widening is counted on both sides: NumPy's before ggml's kernel, ours within. `--cold` also measures, in processes of
their own, what loading the kernels costs with an empty cache, when they are compiled, and what with a warm one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llamalite.converters import kernels
from llamalite.converters.kernels import fast
from llamalite.converters.kernels.fast.recipes import RECIPES
from llamalite.native.quantize import quantize_rows
from llamalite.quant_types import TENSOR_TYPES

N_COLUMNS = 2048
COLD = """
import time; start = time.process_time(); clock = time.perf_counter()
from llamalite.converters.kernels import fast
from llamalite.quant_types import TENSOR_TYPES
before = time.process_time() - start, time.perf_counter() - clock
for name in {names}:
    assert fast.kernel_for(TENSOR_TYPES[name], 1, weighted=False)
print(time.process_time() - start - before[0], time.perf_counter() - clock - before[1])
"""


def cpu_time(action: Callable[[], object]) -> float:
    start = time.thread_time()
    action()
    return time.thread_time() - start


def measure(name: str, dtype: str, weighted: bool, n_rows: int, rounds: int) -> dict[str, Any]:
    tensor_type = TENSOR_TYPES[name]
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((n_rows, N_COLUMNS)).astype(np.float32) * np.float32(0.02)
    rows, source = fast.held_as(dtype, rows)
    importance = rng.random(N_COLUMNS).astype(np.float32) if weighted else None
    wide = np.empty_like(rows)
    theirs, ours = (np.empty((n_rows, tensor_type.row_bytes(N_COLUMNS)), np.uint8) for _ in range(2))

    def ggml() -> None:
        os.environ["LLAMALITE_KERNELS"] = "ggml"
        values = rows if dtype == "F32" else kernels.widen(source, dtype, wide)
        quantize_rows(tensor_type, values, theirs, importance)

    def ours_does() -> None:
        os.environ["LLAMALITE_KERNELS"] = "fast"
        kernels.quantize_source(tensor_type, source, dtype, N_COLUMNS, ours, importance)

    ggml()
    ours_does()
    if not np.array_equal(theirs, ours):
        sys.exit(f"{name}: the bytes differ")
    times = [(cpu_time(ggml), cpu_time(ours_does)) for _ in range(rounds)]
    ratios = [a / b for a, b in times]
    return {
        "type": name,
        "dtype": dtype,
        "importance": weighted,
        "ggml_ns_per_weight": statistics.median(a for a, _ in times) / rows.size * 1e9,
        "ours_ns_per_weight": statistics.median(b for _, b in times) / rows.size * 1e9,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def loading(names: list[str]) -> dict[str, dict[str, float]]:
    """CPU and wall-clock seconds to load `names`: first with an empty cache, then from it; Numba's import included."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for state in ("empty cache", "warm cache"):
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder, "LLAMALITE_KERNELS": "fast"}
            command = [sys.executable, "-c", COLD.format(names=names)]
            output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            cpu_s, wall_s = map(float, output.split())
            figures[state] = {"cpu_s": cpu_s, "wall_s": wall_s}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-t", "--type", dest="types", action="append", choices=[n for n in RECIPES if n != "F32"])
    parser.add_argument("--dtype", choices=list(fast.SOURCES), default="BF16", help="what the rows are held in")
    parser.add_argument("--rows", type=int, default=256, help=f"rows of {N_COLUMNS} weights (default: 256)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--cold", action="store_true", help="also measure loading and compiling")
    args = parser.parse_args()
    os.environ["LLAMALITE_KERNELS"] = "fast"
    found = []
    print(f"from {args.dtype}; nanoseconds of CPU time a weight; ratio: median (smallest to largest of {args.rounds})")
    print(f"{'type':6} {'importance':10} {'ggml':>8} {'ours':>8}   ratio")
    for name in args.types or [n for n in RECIPES if n != "F32"]:
        for weighted in (False, True):
            if weighted and RECIPES[name].weighted is None:
                continue
            one = measure(name, args.dtype, weighted, args.rows, args.rounds)
            found.append(one)
            print(f"{name:6} {'yes' if weighted else 'no':10} {one['ggml_ns_per_weight']:8.2f} "
                  f"{one['ours_ns_per_weight']:8.2f}   {one['ratio']:.1f} "
                  f"({one['ratio_min']:.1f} to {one['ratio_max']:.1f})", flush=True)  # fmt: skip
    loads = {}
    if args.cold:
        for names in (["Q4_K", "Q6_K"], ["Q8_0"]):
            loads["+".join(names)] = figures = loading(names)
            for state, figure in figures.items():
                print(f"loading {', '.join(names)}, {state}: {figure['cpu_s']:.1f} s CPU, {figure['wall_s']:.1f} s")
    if args.json:
        args.json.write_text(json.dumps({"kernels": found, "loading": loads}, indent=1) + "\n")


if __name__ == "__main__":
    main()
