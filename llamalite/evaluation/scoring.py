"""Rows of logits → negative log-likelihoods, and likelihoods → a perplexity with its standard error.

    >>> logits = np.log(np.array([[0.5, 0.25, 0.25]], dtype=np.float32))
    >>> negative_log_likelihoods(logits, np.array([0])).round(6)        # -ln 0.5
    array([0.693147])

The rows are read in place, a few at a time and on several threads (NumPy releases the interpreter
lock), so that nothing as large as the logits is allocated. Scoring takes a few thousandths of the decoding time
(`docs/evaluation.md`). Copying the rows, to score them while the next batch decodes, would save less than that and
double the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]

# Bytes of the temporaries of a slice, which stay in a core's own cache.
_SLICE_BYTES = 1 << 20


def negative_log_likelihoods(logits: Float32s, targets: Ints) -> Float64s:
    """Return −ln p(target) of each row, in nats, as float64 [n_rows].

    `logits` is float32 [n_rows, n_vocab], `targets` holds one token id per row. To print the same digits as llama.cpp,
    the precisions are those of ``log_softmax`` in its tools/perplexity/perplexity.cpp: the exponentials are rounded to
    float32, their sum and its logarithm are float64. The exponentials are computed in float64 and then rounded, as C's
    ``expf`` is nearly always correctly rounded, and NumPy's float32 one is off by up to 2.5 units in the last place.
    """
    n_rows = len(targets)
    result = np.empty(n_rows, dtype=np.float64)
    for start, end in row_slices(n_rows, logits.shape[-1] * 4):
        rows = logits[start:end]
        maximum = rows.max(axis=1)
        terms = rows - maximum[:, None]  # float32 [rows of the slice, n_vocab]
        chosen = terms[np.arange(end - start), targets[start:end]].astype(np.float64)
        terms = np.exp(terms, dtype=np.float64).astype(np.float32)
        result[start:end] = np.log(terms.sum(axis=1, dtype=np.float64)) - chosen
    return result


def row_slices(n_rows: int, row_bytes: int) -> list[tuple[int, int]]:
    """Cut `n_rows` into consecutive ``(start, end)`` slices whose rows, of `row_bytes` each, stay in a core's cache."""
    step = max(1, _SLICE_BYTES // max(1, row_bytes))
    return [(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


class RowWorkers:
    """Threads that score disjoint ranges of rows; use it in a ``with`` block."""

    def __init__(self, n_threads: int) -> None:
        self._n_threads = max(1, n_threads)
        self._pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="llamalite-scoring")

    def __enter__(self) -> RowWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def over(self, n_rows: int, score: Callable[[int, int], None]) -> None:
        """Call ``score(start, end)`` for ranges that cover all `n_rows`, and return when all calls have ended."""
        step = max(1, -(-n_rows // (4 * self._n_threads)))
        futures: list[Future[None]] = []
        try:
            for start in range(0, n_rows, step):
                span = start, min(start + step, n_rows)
                try:
                    futures.append(self._pool.submit(score, *span))
                except RuntimeError:  # no thread can be started, or the pool has ended with the interpreter
                    score(*span)
            for future in futures:
                future.result()
        finally:
            wait(futures)  # also after an interrupt: the caller may then free the rows


@dataclass(frozen=True)
class MeanError:
    """A mean and its standard error, over `count` values."""

    mean: float
    error: float
    count: int


def mean_error(values: Float64s | Sequence[float]) -> MeanError:
    """Return the mean of `values` and its standard error, √(s²/n) with s² the unbiased sample variance.

    The tokens of a text depend on each other, so the true error is somewhat larger; llama.cpp reports the same figure.
    The error of a single value is NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n == 0:
        return MeanError(math.nan, math.nan, 0)
    mean = float(array.mean())
    # Two passes: llama.cpp's E[x²] − E[x]² loses its digits if all values are nearly equal.
    error = math.sqrt(float(np.square(array - mean).sum()) / (n - 1) / n) if n > 1 else math.nan
    return MeanError(mean, error, n)


class RunningMean:
    """Count, mean and standard error of values added in blocks (the update of Chan, Golub and LeVeque, 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # Σ (x − mean)²

    def add(self, values: Float64s) -> None:
        n = len(values)
        if n == 0:
            return
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        total = self.count + n
        delta = mean - self.mean
        self._squares += squares + delta * delta * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    @property
    def error(self) -> float:
        return math.sqrt(self._squares / (self.count - 1) / self.count) if self.count > 1 else math.nan
