"""The one pass: every tensor is read once, converted to llama.cpp's layout, quantized and written, chunk by chunk.

    worker 1   read rows 0-511 of blk.0.attn_q   widen   regroup   quantize   write at its place
    worker 2   read rows 512-1023                widen   regroup   quantize   write at its place
    ...

A chunk is some rows of one tensor. The size of every tensor is known in advance, so a worker writes each chunk to its
final place and no worker waits for another. Chunks are handed out in the file's order, so writes move forward through
the file. Each worker owns its buffers: memory depends on the number of workers, not on the model. The result does not
depend on how a tensor is cut, as quantization never looks beyond a row.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from llamalite.converters import kernels
from llamalite.converters.checkpoints import DTYPE_BYTES
from llamalite.converters.checkpoints.gguf_source import QuantizedTensor
from llamalite.converters.plan import ConversionPlan, PlannedTensor
from llamalite.errors import QuantizationError
from llamalite.quant_types import TENSOR_TYPES, TensorType

CHUNK_WEIGHTS = 1 << 20

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called in the caller's thread with (source bytes done, source bytes in all); an exception from it cancels."""

_F32 = TENSOR_TYPES["F32"]
_EXPONENTS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}  # mask of the exponent's bits
_EXPONENTS_OF_2_15 = {"F32": 142 << 23, "F16": 30 << 10, "BF16": 142 << 7}
# In these types, without importance, 16-bit floats are never larger than twice the largest weight.
_NEVER_LARGER = frozenset({"F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"})


class Sink(Protocol):
    """Receives the bytes of tensors: a file, or something that compares them with a file."""

    def write_at(self, offset: int, data: Bytes) -> None: ...


class Place(NamedTuple):
    """Where the bytes of a tensor go: a file, and the offset from the start of its data."""

    file: Sink
    offset: int


@dataclass(frozen=True)
class _Chunk:
    tensor: PlannedTensor
    places: tuple[Place, ...]
    first: int
    n_rows: int


def run(
    plan: ConversionPlan,
    places: Sequence[Sequence[Place]],
    *,
    n_threads: int,
    progress: Progress | None = None,
) -> None:
    """Write the tensors of `plan`; for each file type, `places` says where each tensor goes.

    Raises `QuantizationError` for NaN, infinity or overflow, which llama.cpp refuses too, and passes on errors from
    reading, writing and `progress`, once the workers have ended.
    """
    chunks = _chunks(plan, places)
    kernels.expect(plan.n_params)
    lock = threading.Lock()
    stop = threading.Event()
    done: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        worker = _Worker(plan.importance)
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


def _chunks(plan: ConversionPlan, places: Sequence[Sequence[Place]]) -> Iterator[_Chunk]:
    """Cut the tensors into chunks of about `CHUNK_WEIGHTS` weights; regrouped tensors are cut between heads."""
    for tensor, *where in zip(plan.tensors, *places, strict=True):
        n_columns = tensor.shape[-1]
        n_rows = tensor.n_weights // n_columns
        step = max(1, CHUNK_WEIGHTS // n_columns)
        if tensor.n_head is not None and len(tensor.shape) > 1:
            head_rows = n_rows // tensor.n_head
            step = max(1, step // head_rows) * head_rows
        elif tensor.n_head is not None:
            step = n_rows  # a bias is one row
        for first in range(0, n_rows, step):
            yield _Chunk(tensor, tuple(where), first, min(step, n_rows - first))


class _Worker:
    """Converts chunks, in buffers that live as long as the worker."""

    def __init__(self, importance: Mapping[str, Floats]) -> None:
        self._importance = importance
        self._buffers: dict[str, Bytes] = {}

    def convert(self, chunk: _Chunk) -> int:
        """Read, quantize and write one chunk; return the number of source bytes read."""
        tensor = chunk.tensor
        rows, n_read = self._rows(chunk)
        are_small = self._check_finite(chunk, rows)
        bytes_by_type: dict[TensorType, Bytes] = {tensor.stored: rows}
        if isinstance(tensor.source, QuantizedTensor):
            bytes_by_type[tensor.source.type] = self._blocks(tensor.source, chunk)
        for choice, place in zip(tensor.types, chunk.places, strict=True):
            if choice.type not in bytes_by_type:
                bytes_by_type[choice.type] = self._pack(chunk, choice.type, rows)
                if not are_small or choice.type.name not in _NEVER_LARGER or tensor.name in self._importance:
                    self._check_overflow(tensor, choice.type, bytes_by_type[choice.type])
            skipped = chunk.first * choice.type.row_bytes(tensor.shape[-1])
            place.file.write_at(place.offset + skipped, bytes_by_type[choice.type])
        return n_read

    def _rows(self, chunk: _Chunk) -> tuple[Bytes, int]:
        """Return the chunk's bytes as llama.cpp's first step would store them, and the number of bytes read."""
        tensor, source = chunk.tensor, chunk.tensor.source
        n_columns = tensor.shape[-1]
        if source is None:
            assert tensor.values is not None
            return tensor.values.reshape(-1, n_columns)[chunk.first : chunk.first + chunk.n_rows].view(np.uint8), 0
        n_bytes = chunk.n_rows * source.row_bytes
        rows = self._buffer("source", n_bytes)
        source.read_rows(chunk.first, chunk.n_rows, rows)
        if source.dtype != tensor.stored.name:
            rows = self._restored(rows, source.dtype, tensor.stored)
        if tensor.n_head is not None:
            rows = self._regrouped(rows, tensor)
        return rows, n_bytes

    def _buffer(self, name: str, n_bytes: int) -> Bytes:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < n_bytes:
            buffer = self._buffers[name] = np.empty(n_bytes, np.uint8)
        return buffer[:n_bytes]

    def _restored(self, rows: Bytes, dtype: str, stored: TensorType) -> Bytes:
        """Convert weights to the type of llama.cpp's unquantized file, by way of float32 as llama.cpp does."""
        n = rows.size // DTYPE_BYTES[dtype]
        with np.errstate(over="ignore"):  # `_check_finite` reports an overflow with the tensor's name
            values = kernels.widen(rows, dtype, self._buffer("widened", 4 * n).view(np.float32))
            if stored is _F32:
                return values.view(np.uint8)
            if stored.name == "BF16":
                return kernels.narrow_bfloat16(values).view(np.uint8)
            return values.astype("<f2").view(np.uint8)

    def _regrouped(self, rows: Bytes, tensor: PlannedTensor) -> Bytes:
        """Move the rows of each rotary pair, which are half a head apart, side by side (``LlamaModel.permute``)."""
        assert tensor.n_head is not None
        half = tensor.shape[0] // tensor.n_head // 2
        n_weights = tensor.shape[1] if len(tensor.shape) > 1 else 1  # a bias: its elements are regrouped
        width = n_weights * tensor.stored.block_bytes
        out = self._buffer("regrouped", rows.size)
        np.copyto(out.reshape(-1, half, 2, width), rows.reshape(-1, 2, half, width).swapaxes(1, 2))
        return out

    def _check_finite(self, chunk: _Chunk, rows: Bytes) -> bool:
        """Raise `QuantizationError` for NaN and infinity; return whether all weights are smaller than 2**15."""
        tensor, stored = chunk.tensor, chunk.tensor.stored
        if tensor.source is None:
            return False
        largest, all_ones = self._largest_exponent(rows, stored), _EXPONENTS[stored.name]
        if largest == all_ones:
            values = kernels.widen(rows, stored.name, np.empty(rows.size // stored.block_bytes, np.float32))
            content = "NaN" if np.isnan(values).any() else f"infinity, or a value beyond {stored.name},"
            raise QuantizationError(
                f"{tensor.source.name} holds {content} in rows {chunk.first} to {chunk.first + chunk.n_rows - 1}: "
                "the checkpoint is damaged, or its training went wrong"
            )
        return largest < _EXPONENTS_OF_2_15[stored.name]

    def _largest_exponent(self, floats: Bytes, kind: TensorType) -> int:
        """Return the largest exponent among `floats`, masked but not shifted: all ones means NaN or infinity."""
        exponent, width = _EXPONENTS[kind.name], kind.block_bytes
        # The most negative float has the largest bits as an unsigned integer, the most positive one the largest bits
        # as a signed integer.
        return max(int(floats.view(f"<{sign}{width}").max()) & exponent for sign in "ui")

    def _check_overflow(self, tensor: PlannedTensor, target: TensorType, packed: Bytes) -> None:
        """Raise `QuantizationError` if a 16-bit float or a block's scale overflowed (``ggml_validate_row_data``)."""
        if target.name in ("F16", "BF16"):
            fits = self._largest_exponent(packed.reshape(-1), target) < _EXPONENTS[target.name]
        else:
            blocks = packed.reshape(-1, target.block_bytes)
            fits = not any(((blocks[:, at + 1] & 0x7C) == 0x7C).any() for at in target.scales)
        if not fits:
            raise QuantizationError(
                f"{tensor.name} holds values too large for {target.name}: choose a type of wider range, such as "
                + ("F32" if target.name == "BF16" else "BF16")
            )

    def _pack(self, chunk: _Chunk, target: TensorType, rows: Bytes) -> Bytes:
        tensor, n_columns = chunk.tensor, chunk.tensor.shape[-1]
        packed = self._buffer(target.name, chunk.n_rows * target.row_bytes(n_columns)).reshape(chunk.n_rows, -1)
        kernels.quantize_source(
            target,
            rows,
            tensor.stored.name,
            n_columns,
            packed,
            self._importance.get(tensor.name),
            self._buffer("widened", 4 * chunk.n_rows * n_columns).view(np.float32),
        )
        return packed

    def _blocks(self, source: QuantizedTensor, chunk: _Chunk) -> Bytes:
        """Return the chunk's blocks of a GGUF source unchanged, for a file in which the tensor keeps its type."""
        blocks = np.empty((chunk.n_rows, source.block_row_bytes), np.uint8)
        source.read_blocks(chunk.first, chunk.n_rows, blocks)
        return blocks
