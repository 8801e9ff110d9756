"""The importance matrix of a model over a text: for each column of each matrix, the mean square of its inputs.

    matrix = collect_imatrix("demo-BF16.gguf", text, chunks=32)
    matrix.save(Path("imatrix.gguf"), dataset="calibration.txt")       # for llama-quantize and `convert --imatrix`

Quantization weighs errors by these figures, since a column with large inputs needs smaller errors. They are collected
as llama-imatrix does (tools/imatrix/imatrix.cpp): chunks as in `perplexity`, all tokens counted, products of fewer than
16 rows ignored. Only the sums differ: they are in float64, not float32. This module does not use the figures itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

from llamalite.errors import EvaluationError
from llamalite.evaluation.measured_model import AnyModel, Decoder, opened
from llamalite.evaluation.protocol import EvalProtocol
from llamalite.evaluation.scoring import Float32s, Float64s
from llamalite.evaluation.windows import NOT_SCORED, Text, Window, batches, tokens_of
from llamalite.files.replacing import replacing
from llamalite.native.observer import MatrixObserver

_FEWEST_ROWS = 16  # collect_imatrix, imatrix.cpp: it ignores smaller batches
_BLOCK = 256  # rows converted to float64 at a time


@dataclass
class ImportanceMatrix:
    """Sums of squares by tensor name, float64 [n_columns], and the number of rows in each sum."""

    n_ctx: int
    n_chunks: int = 0
    sums: dict[str, Float64s] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def means(self) -> dict[str, Float64s]:
        """Return the mean square of each column, by tensor name."""
        return {name: values / self.counts[name] for name, values in self.sums.items()}

    def save(self, path: Path, *, dataset: str) -> None:
        """Write the GGUF form that llama-quantize and `convert --imatrix` read, whole or not at all."""
        with replacing(path) as part:
            writer = gguf.GGUFWriter(part, "imatrix")
            writer.kv_data[0].pop("general.architecture")  # llama-imatrix writes none either: this is not a model
            writer.add_type("imatrix")
            writer.add_array("imatrix.datasets", [dataset])
            writer.add_uint32("imatrix.chunk_count", self.n_chunks)
            writer.add_uint32("imatrix.chunk_size", self.n_ctx)
            for name in sorted(self.sums):
                writer.add_tensor(f"{name}.in_sum2", self.sums[name].astype(np.float32))
                writer.add_tensor(f"{name}.counts", np.array([self.counts[name]], dtype=np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()


class _Collector:
    """Adds up squares. An input that several matrices share (q, k, v) arrives once for each and is squared once."""

    def __init__(self, matrix: ImportanceMatrix, *, process_output: bool) -> None:
        self._matrix, self._process_output = matrix, process_output
        self._key, self._squares = 0, np.empty(0)
        self._served: set[str] = set()

    def wanted(self, name: str, n_rows: int) -> bool:
        if "_exps." in name:
            raise EvaluationError(f"{name} belongs to a mixture of experts, which llamalite does not calibrate")
        return n_rows >= _FEWEST_ROWS and (
            name.startswith("blk.") or (self._process_output and name == "output.weight")
        )

    def see(self, name: str, key: int, rows: Float32s) -> None:
        if key != self._key or name in self._served:
            self._key, self._squares, self._served = key, _squares(rows), set()
            if not np.isfinite(self._squares).all():
                raise EvaluationError(f"the input of {name} is not finite: the model file is damaged")
        self._served.add(name)
        if name in self._matrix.sums:
            self._matrix.sums[name] += self._squares
        else:
            self._matrix.sums[name] = self._squares.copy()
        self._matrix.counts[name] = self._matrix.counts.get(name, 0) + len(rows)


def _squares(rows: Float32s) -> Float64s:
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), _BLOCK):
        wide = rows[start : start + _BLOCK].astype(np.float64)
        total += np.einsum("ij,ij->j", wide, wide)
    return total


def collect_imatrix(
    model: AnyModel,
    text: Text,
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    process_output: bool = False,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportanceMatrix:
    """Return the importance matrix of `model` over the first `chunks` chunks of `text`, each of `n_ctx` tokens.

    `process_output` includes the output matrix, which llama.cpp leaves out by default. `progress` is called with the
    chunks done and their total. Raises ``EvaluationError`` for a text shorter than two chunks, a mixture of experts,
    and values that are not finite.
    """
    protocol = EvalProtocol(n_ctx=n_ctx, n_batch=n_ctx, chunks=chunks, n_threads=n_threads)
    matrix = ImportanceMatrix(n_ctx)
    collector = _Collector(matrix, process_output=process_output)
    observer = MatrixObserver(collector.wanted, collector.see)
    with opened(model, n_gpu_layers=n_gpu_layers, device=device) as native:
        scored = protocol.windows(tokens_of(text, native, protocol.tokens_needed()), native)
        # llama.cpp skips the last layer's feed-forward part for tokens without logits, so all of them get logits.
        windows = [Window(window.tokens, 0, np.full(n_ctx, NOT_SCORED, dtype=np.int32)) for window in scored]
        with protocol.context(native, observer) as context:
            decoder = Decoder(context)
            for batch in batches(windows, n_ctx, context.n_batch):
                decoder.decode(batch)
                matrix.n_chunks += len(batch.window_ends)
                if progress is not None:
                    progress(matrix.n_chunks, len(windows))
    return matrix
