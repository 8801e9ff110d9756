"""The files of ``torch.save`` (``pytorch_model.bin``, ``consolidated.00.pth``), read without torch and without pickle.

    state_dict = {"model.norm.weight": tensor}     →     data.pkl: names, sizes, strides     data/0: the bytes

The small pickle of names and sizes goes through `tensor_unpickler`, which cannot run any code; the weights are read at
their positions, one tensor at a time, like those of a safetensors file. Both of torch's containers are read: the zip of
torch 1.6 and later, and the older sequence of pickles (torch/serialization.py, ``_legacy_save``). Tensors may share a
storage, and a matrix may be stored transposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.converters.checkpoints import torch_zip
from llamalite.converters.checkpoints.interface import DTYPE_BYTES, FileTensor, SourceFile, SourceTensor
from llamalite.converters.checkpoints.tensor_unpickler import Storage, TensorView, unpickle
from llamalite.errors import CheckpointError

MAX_PICKLE_BYTES = 8 << 20  # the names and sizes of a 70B model are about 200 KB
_STORAGE_BYTES = {**DTYPE_BYTES, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_PICKLE_MAGIC = b"\x80"
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C


def read_tensors(file: SourceFile) -> dict[str, SourceTensor]:
    """Return the tensors of an open file of ``torch.save``, in the file's order.

    Raises `UnsafeCheckpointError` for a pickle that asks for more than tensors, `CheckpointError` for a damaged file.
    """
    magic = torch_zip.read_bytes(file, 0, min(len(torch_zip.MAGIC), file.n_bytes))
    if magic == torch_zip.MAGIC:
        state, offsets = _read_zip(file)
    elif magic.startswith(_PICKLE_MAGIC):
        state, offsets = _read_legacy(file)
    else:
        raise CheckpointError(f"{file.path} begins with {magic!r}: it is neither a zip nor a pickle of torch.save")
    if not isinstance(state, dict):
        raise CheckpointError(f"{file.path} holds a {type(state).__name__}, expected a dict of tensors by their names")
    tensors = {}
    for name, view in state.items():
        if not isinstance(name, str) or not isinstance(view, TensorView):
            raise CheckpointError(f"{file.path}: {name!r} is a {type(view).__name__}, expected a tensor")
        tensors[name] = _tensor(file, name, view, offsets[view.storage.key])
    return tensors


@dataclass(frozen=True)
class StridedTensor(SourceTensor):
    """A matrix whose rows are not adjacent: a slice of a wider matrix, or one stored column by column (transposed)."""

    file: SourceFile
    offset: int
    strides: tuple[int, int]
    """Bytes from row to row, and from column to column."""

    def read_rows(self, first: int, count: int, into: npt.NDArray[np.uint8]) -> None:
        n_columns = self.shape[1]
        item = self.row_bytes // n_columns
        row_stride, column_stride = self.strides
        start = self.offset + first * row_stride
        if column_stride == item:
            for i in range(count):
                self.file.read_into(start + i * row_stride, into[i * self.row_bytes : (i + 1) * self.row_bytes])
            return
        rows = into.reshape(count, n_columns, item)
        column = np.empty(count * item, np.uint8)
        for j in range(n_columns):
            self.file.read_into(start + j * column_stride, column)
            rows[:, j] = column.reshape(count, item)


def _tensor(file: SourceFile, name: str, view: TensorView, storage_offset: int) -> SourceTensor:
    dtype, shape = view.storage.dtype, view.shape
    item = _STORAGE_BYTES[dtype]
    extent = view.offset
    if math.prod(shape):
        extent += 1 + sum((size - 1) * stride for size, stride in zip(shape, view.strides, strict=True))
    if extent > view.storage.n_elements:
        raise CheckpointError(
            f"{file.path}: {name} {list(shape)} ends at element {extent:,} of its storage's {view.storage.n_elements:,}"
        )
    offset = storage_offset + view.offset * item
    if _is_contiguous(shape, view.strides):
        return FileTensor(name, dtype, shape, file, offset)
    if len(shape) == 2 and (view.strides[1] == 1 or view.strides[0] == 1) and 0 not in view.strides:
        return StridedTensor(name, dtype, shape, file, offset, (view.strides[0] * item, view.strides[1] * item))
    raise CheckpointError(
        f"{file.path}: {name} has sizes {list(shape)} and strides {list(view.strides)}, an unsupported layout: "
        "save it again with torch after .contiguous()"
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return math.prod(shape) == 0
        expected *= size
    return True


def _storages(file: SourceFile, state: Any) -> dict[str, Storage]:
    storages: dict[str, Storage] = {}
    for view in state.values() if isinstance(state, dict) else ():
        if isinstance(view, TensorView):
            storage = view.storage
            other = storages.setdefault(storage.key, storage)
            if other != storage:
                raise CheckpointError(
                    f"{file.path}: the storage {storage.key!r} is {other.dtype} of {other.n_elements} for one tensor "
                    f"and {storage.dtype} of {storage.n_elements} for another"
                )
    return storages


def _read_zip(file: SourceFile) -> tuple[Any, dict[str, int]]:
    """Return the state dict and the offset of each storage it uses."""
    members = torch_zip.read_members(file)
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError(f"{file.path} is a zip without exactly one data.pkl: it is not a file of torch.save")
    (root,) = roots
    order = members.get(f"{root}byteorder")
    if order is not None and torch_zip.read_bytes(file, order.offset, min(order.n_bytes, 8)) != b"little":
        raise CheckpointError(f"{file.path} was written on a big-endian machine: save it again on a little-endian one")
    pickle = members[f"{root}data.pkl"]
    if pickle.n_bytes > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{file.path}: data.pkl has {pickle.n_bytes:,} bytes, expected at most {MAX_PICKLE_BYTES:,}"
        )
    state, _ = unpickle(torch_zip.read_bytes(file, pickle.offset, pickle.n_bytes), str(file.path))
    offsets = {}
    for key, storage in _storages(file, state).items():
        member = members.get(f"{root}data/{key}")
        expected = storage.n_elements * _STORAGE_BYTES[storage.dtype]
        if member is None or member.n_bytes != expected:
            actual = "nothing" if member is None else f"{member.n_bytes:,} bytes"
            raise CheckpointError(f"{file.path}: the storage {key!r} has {actual}, expected {expected:,} bytes")
        offsets[key] = member.offset
    return state, offsets


def _read_legacy(file: SourceFile) -> tuple[Any, dict[str, int]]:
    """Like `_read_zip`, for the older container: four pickles, a list of storages, then their lengths and bytes."""
    pickles = torch_zip.read_bytes(file, 0, min(MAX_PICKLE_BYTES, file.n_bytes))
    magic, end = unpickle(pickles, str(file.path))
    if magic != _LEGACY_NUMBER:
        raise CheckpointError(f"{file.path} is a pickle, but not of torch.save: save it again with torch")
    version, end = unpickle(pickles, str(file.path), end)
    system, end = unpickle(pickles, str(file.path), end)
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{file.path} is of another version of torch.save or another byte order: save it again")
    state, end = unpickle(pickles, str(file.path), end)
    keys, end = unpickle(pickles, str(file.path), end)
    storages = _storages(file, state)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise CheckpointError(f"{file.path} is damaged: its list of storages does not match its tensors")
    offsets = {}
    for key in keys:
        n_elements = int.from_bytes(torch_zip.read_bytes(file, end, 8), "little")
        expected = storages[key].n_elements
        if n_elements != expected:
            raise CheckpointError(
                f"{file.path}: the storage {key!r} has {n_elements:,} elements, expected {expected:,}"
            )
        offsets[key] = end + 8
        end += 8 + n_elements * _STORAGE_BYTES[storages[key].dtype]
    if end != file.n_bytes:
        raise CheckpointError(f"{file.path} has {file.n_bytes:,} bytes, expected {end:,}: download it again")
    return state, offsets
