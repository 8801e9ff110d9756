"""The fast kernels against ggml's, on one core: the same rows, interleaved, the same bytes.

    python benchmarks/kernels.py [-t Q4_K ...] [--dtype BF16] [--pairs 9] [--json FILE] [--cold]

A pair quantizes the same rows once with ggml's kernel and once with ours; its ratio is our time over ggml's. Times are
the CPU time of the working thread, which a busy machine hardly changes. For BF16 or F16 rows both sides include the
widening: NumPy's before ggml's kernel, ours inside the kernel. `--cold` also measures, in separate processes, the time
to load the kernels with an empty cache, when they are compiled, and with a warm one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import side_by_side as bench
from side_by_side import Figure

from llamalite.converters import kernels
from llamalite.converters.kernels import fast
from llamalite.converters.kernels.fast.recipes import RECIPES
from llamalite.native.quantize import quantize_rows
from llamalite.quant_types import TENSOR_TYPES

N_COLUMNS = 2048
TYPES = [name for name in RECIPES if name != "F32"]
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


def measure_one(name: str, dtype: str, weighted: bool, n_rows: int, rounds: int) -> Figure:
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
    nanoseconds = 1e9 / rows.size
    times = bench.in_turns(rounds, lambda: cpu_time(ours_does) * nanoseconds, lambda: cpu_time(ggml) * nanoseconds)
    return Figure(
        f"{name} from {dtype}{' with importance' if weighted else ''}", "ggml's kernel", "ns a weight", *times
    )


def measure(types: Sequence[str], dtype: str, n_rows: int, rounds: int) -> Iterator[Figure]:
    """Yield a figure for each type, and one with importance if the kernel takes it."""
    before = os.environ.get("LLAMALITE_KERNELS")
    try:
        for name in types:
            for weighted in (False, True):
                if not weighted or RECIPES[name].weighted is not None:
                    yield measure_one(name, dtype, weighted, n_rows, rounds)
    finally:
        os.environ.pop("LLAMALITE_KERNELS", None)
        if before is not None:
            os.environ["LLAMALITE_KERNELS"] = before


def loading(names: list[str]) -> dict[str, dict[str, float]]:
    """Return CPU and wall-clock seconds to load `names`, including Numba: with an empty cache, then with a warm one."""
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
    parser = bench.arguments(__doc__, pairs=9, peers=False)
    parser.add_argument("-t", "--type", dest="types", action="append", choices=TYPES)
    parser.add_argument("--dtype", choices=list(fast.SOURCES), default="BF16", help="the dtype of the rows")
    parser.add_argument("--rows", type=int, default=256, help=f"rows of {N_COLUMNS} weights (default: 256)")
    parser.add_argument("--cold", action="store_true", help="also measure loading and compiling")
    options = parser.parse_args()
    bench.report(measure(options.types or TYPES, options.dtype, options.rows, options.pairs), options.json)
    if options.cold:
        for names in (["Q4_K", "Q6_K"], ["Q8_0"]):
            for state, figure in loading(names).items():
                print(f"loading {', '.join(names)}, {state}: {figure['cpu_s']:.1f} s CPU, {figure['wall_s']:.1f} s")


if __name__ == "__main__":
    main()
