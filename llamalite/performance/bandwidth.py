"""Memory bandwidth, measured: the bytes per second that a number of threads read from this machine's memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np

from llamalite.native.child import ONLY_INSTALLED

_TOTAL_BYTES = 256 << 20  # more than the processor's caches hold
_PASSES = 5


def memory_bandwidth(n_threads: int) -> float:
    """Return the bytes per second that `n_threads` threads read from memory: the best of five passes over 256 MiB.

    The measurement runs in a process of its own, so that its buffers do not count towards this process's memory.
    """
    program = f"from llamalite.performance.bandwidth import read_memory; print(read_memory({int(n_threads)}))"
    done = subprocess.run([sys.executable, "-c", ONLY_INSTALLED + program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def read_memory(n_threads: int) -> float:
    """Measure `memory_bandwidth` in this process."""
    # NumPy's maximum over integers waits for memory and nothing else, and releases the interpreter lock.
    blocks = [np.ones(_TOTAL_BYTES // 8 // n_threads, dtype=np.int64) for _ in range(n_threads)]
    best = 0.0
    for _ in range(_PASSES):
        threads = [threading.Thread(target=np.max, args=(block,)) for block in blocks]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(block.nbytes for block in blocks) / (time.perf_counter() - start))
    return best
