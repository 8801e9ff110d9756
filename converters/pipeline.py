"""The one pass: every tensor is read once, brought into llama.cpp's layout, quantized and written, chunk by chunk.

    worker 1   read rows 0-511 of blk.0.attn_q   widen   regroup   quantize   write at its place
    worker 2   read rows 512-1023                widen   regroup   quantize   write at its place
    ...

A chunk is some rows of one tensor. As the size of every tensor is known beforehand, a worker writes its chunk where it
belongs, and nobody waits for a slow tensor; chunks are handed out in the file's order, so that the writes move forward
through it. Each worker owns its buffers, so that memory depends on the number of workers and not on the model. The
bytes do not depend on how a tensor is cut: quantization never looks beyond a row.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamalite.converters import kernels
from llamalite.converters.planning import Plan, PlannedTensor
from llamalite.errors import QuantizationError
from llamalite.quant_types import TENSOR_TYPES, TensorType

ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
CHUNK_WEIGHTS = 1 << 20

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called in the caller's thread with (source bytes done, source bytes in all); an exception from it cancels."""

_F32 = TENSOR_TYPES["F32"]


@dataclass(frozen=True)
class _Chunk:
    tensor: PlannedTensor
    first: int
    n_rows: int
    offsets: tuple[int, ...]  # of the chunk's first byte, in each output file


class OutputFile:
    """A file of known size that is written at positions, from several threads at once."""

    def __init__(self, path: Path, data_start: int) -> None:
        self.path = path
        self.data_start = data_start
        self._file = path.open("r+b", buffering=0)
        self._lock = threading.Lock()

    def write_at(self, offset: int, data: Bytes) -> None:
        view = data.data.cast("B")
        while view:
            if hasattr(os, "pwrite"):
                n = os.pwrite(self._file.fileno(), view, self.data_start + offset)
            else:
                with self._lock:  # Windows has no positioned write
                    self._file.seek(self.data_start + offset)
                    n = self._file.write(view) or 0
            offset += n
            view = view[n:]

    def finish(self, n_bytes: int) -> None:
        """Give the file its full length (the last padding is zeros), and put it on the disk."""
        self._file.truncate(self.data_start + n_bytes)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def padded(n_bytes: int) -> int:
    """`n_bytes` rounded up to the file's alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def run(
    plan: Plan,
    outputs: Sequence[OutputFile],
    *,
    n_threads: int,
    importance: Mapping[str, Floats] | None = None,
    progress: Progress | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Write the tensor data of `plan` into `outputs`, one for each of its file types.

    Raises `QuantizationError` for NaN, infinity or overflow, as llama.cpp refuses them, and whatever reading, writing
    or `progress` raises; the workers have ended by then.
    """
    chunks = _chunks(plan)
    lock = threading.Lock()
    stop = threading.Event()
    done: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        worker = _Worker(outputs, importance or {}, allow_nonfinite)
        try:
            while not stop.is_set():
                with lock:
                    chunk = next(chunks, None)
                if chunk is None:
                    break
                done.put(worker.convert(chunk))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, which raises it
            done.put(error)
        finally:
            done.put(None)

    workers = [threading.Thread(target=work, name=f"convert-{i}", daemon=True) for i in range(n_threads)]
    for worker in workers:
        worker.start()
    n_done, n_running = 0, len(workers)
    try:
        while n_running:
            message = done.get()
            if message is None:
                n_running -= 1
            elif isinstance(message, BaseException):
                raise message
            else:
                n_done += message
                if progress:
                    progress(n_done, plan.source_bytes)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    for i, output in enumerate(outputs):
        output.finish(sum(padded(tensor.n_bytes(i)) for tensor in plan.tensors))


def _chunks(plan: Plan) -> Iterator[_Chunk]:
    """Cut the tensors into runs of rows of about `CHUNK_WEIGHTS` weights; regrouped ones at the borders of heads."""
    starts = [0] * len(plan.file_types)
    for tensor in plan.tensors:
        n_columns = tensor.shape[-1]
        n_rows = tensor.n_weights // n_columns
        step = max(1, CHUNK_WEIGHTS // n_columns)
        if tensor.n_head is not None and len(tensor.shape) > 1:
            head_rows = n_rows // tensor.n_head
            step = max(1, step // head_rows) * head_rows
        elif tensor.n_head is not None:
            step = n_rows  # a bias is one row
        row_bytes = [choice.type.row_bytes(n_columns) for choice in tensor.types]
        for first in range(0, n_rows, step):
            offsets = tuple(start + first * size for start, size in zip(starts, row_bytes, strict=True))
            yield _Chunk(tensor, first, min(step, n_rows - first), offsets)
        starts = [start + padded(tensor.n_bytes(i)) for i, start in enumerate(starts)]


class _Worker:
    """The steps of one chunk, over buffers that live as long as the worker."""

    def __init__(self, outputs: Sequence[OutputFile], importance: Mapping[str, Floats], allow_nonfinite: bool) -> None:
        self._outputs = outputs
        self._importance = importance
        self._allow_nonfinite = allow_nonfinite
        self._raw = np.empty(0, np.uint8)
        self._floats = [np.empty(0, np.float32), np.empty(0, np.float32)]
        self._packed = np.empty(0, np.uint8)

    def convert(self, chunk: _Chunk) -> int:
        """Read, quantize and write one chunk; return the number of source bytes that it took."""
        tensor = chunk.tensor
        rows, n_read = self._rows(chunk)
        made: dict[TensorType, Bytes] = {}
        for output, choice, offset in zip(self._outputs, tensor.types, chunk.offsets, strict=True):
            if choice.type not in made:
                made[choice.type] = self._pack(tensor, choice.type, rows)
                if len(self._outputs) > 1:
                    made[choice.type] = made[choice.type].copy()
            output.write_at(offset, made[choice.type])
        return n_read

    def _rows(self, chunk: _Chunk) -> tuple[Floats, int]:
        """The chunk as float32 [n_rows, n_columns], as they are after llama.cpp's first step, and the bytes read."""
        tensor = chunk.tensor
        n_columns = tensor.shape[-1]
        if tensor.source is None:
            assert tensor.values is not None
            return tensor.values.reshape(-1, n_columns)[chunk.first : chunk.first + chunk.n_rows], 0
        n_bytes = chunk.n_rows * tensor.source.row_bytes
        if self._raw.nbytes < n_bytes:
            self._raw = np.empty(n_bytes, np.uint8)
        raw = self._raw[:n_bytes]
        tensor.source.read_rows(chunk.first, chunk.n_rows, raw)
        rows = kernels.widen(raw, tensor.source.dtype, self._buffer(0, chunk.n_rows, n_columns))
        if tensor.n_head is not None:
            rows = self._regroup(rows, tensor)
        rows = self._through_stored(rows, tensor)
        if not self._allow_nonfinite and not np.isfinite(rows).all():
            what = "NaN" if np.isnan(rows).any() else f"a value beyond {tensor.stored.name}"
            raise QuantizationError(
                f"{tensor.source.name} holds {what} in rows {chunk.first} to {chunk.first + chunk.n_rows - 1}: "
                "the checkpoint is damaged, or its training went wrong"
            )
        return rows, n_bytes

    def _buffer(self, which: int, n_rows: int, n_columns: int) -> Floats:
        if self._floats[which].size < n_rows * n_columns:
            self._floats[which] = np.empty(n_rows * n_columns, np.float32)
        return self._floats[which][: n_rows * n_columns].reshape(n_rows, n_columns)

    def _regroup(self, rows: Floats, tensor: PlannedTensor) -> Floats:
        """Put rotary pairs, half a head apart in Hugging Face's order, next to each other (``LlamaModel.permute``)."""
        assert tensor.n_head is not None
        half = tensor.shape[0] // tensor.n_head // 2
        width = tensor.shape[1] if len(tensor.shape) > 1 else 1  # a bias: its elements are regrouped
        out = self._buffer(1, *rows.shape)
        np.copyto(out.reshape(-1, half, 2, width), rows.reshape(-1, 2, half, width).swapaxes(1, 2))
        return out

    def _through_stored(self, rows: Floats, tensor: PlannedTensor) -> Floats:
        """Round to the type of llama.cpp's unquantized file, where a tensor's own dtype is another one."""
        assert tensor.source is not None
        if tensor.stored is _F32 or tensor.stored.name == tensor.source.dtype:
            return rows
        if tensor.stored.name == "F16":
            with np.errstate(over="ignore"):
                narrow = rows.astype(np.float16)
            np.copyto(rows, narrow)
        else:
            np.left_shift(kernels.narrow_bfloat16(rows), 16, out=rows.view(np.uint32), dtype=np.uint32)
        return rows

    def _pack(self, tensor: PlannedTensor, target: TensorType, rows: Floats) -> Bytes:
        if target is _F32:
            return rows.reshape(-1).view(np.uint8)
        n_bytes = len(rows) * target.row_bytes(rows.shape[1])
        if self._packed.nbytes < n_bytes:
            self._packed = np.empty(n_bytes, np.uint8)
        packed = self._packed[:n_bytes].reshape(len(rows), -1)
        kernels.quantize(target, rows, packed, self._importance.get(tensor.name))
        if not self._allow_nonfinite and not _scales_are_finite(target, packed):
            raise QuantizationError(
                f"{tensor.name} holds values too large for {target.name}: choose a type of wider range, such as BF16"
            )
        return packed


def _scales_are_finite(target: TensorType, packed: Bytes) -> bool:
    """Whether no float16 scale has overflowed (``ggml_validate_row_data``, which also writes to stderr)."""
    if target.name == "F16":
        halves = packed.reshape(-1).view("<u2")
        return not ((halves & 0x7C00) == 0x7C00).any()
    blocks = packed.reshape(-1, target.block_bytes)
    return not any(((blocks[:, at + 1] & 0x7C) == 0x7C).any() for at in target.scales)
