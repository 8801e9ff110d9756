"""Files of torch.save: every tensor is read exactly, and nothing in a file can run or overwhelm the reader."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    Call,
    Global,
    Persistent,
    Weights,
    emit,
    pickled,
    random_weights,
    save_archive,
    save_legacy,
    save_torch,
    storage,
    tensor,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamalite.converters.checkpoints import torch_pickle, torch_zip
from llamalite.converters.checkpoints.interface import SourceFile, SourceTensor
from llamalite.converters.checkpoints.tensor_unpickler import unpickle
from llamalite.errors import CheckpointError, UnsafeCheckpointError


def read(path: Path) -> dict[str, SourceTensor]:
    with contextlib.closing(SourceFile(path)) as file:
        return torch_pickle.read_tensors(file)


def bytes_of(tensor: SourceTensor, *, step: int) -> bytes:
    """The tensor's bytes, read `step` rows at a time into one buffer, as a conversion does."""
    buffer = np.empty(step * tensor.row_bytes, np.uint8)
    out = b""
    for first in range(0, tensor.n_rows, step):
        n = min(step, tensor.n_rows - first)
        tensor.read_rows(first, n, buffer[: n * tensor.row_bytes])
        out += buffer[: n * tensor.row_bytes].tobytes()
    return out


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_dtype_comes_out_as_it_was_written(tmp_path: Path, legacy: bool) -> None:
    weights = {f"w.{dtype}": random_weights((7, 5), dtype, i) for i, dtype in enumerate(("F64", "F32", "F16", "BF16"))}
    weights["norm"] = random_weights((5,), "F32", 9)
    path = save_torch(tmp_path / "pytorch_model.bin", weights, legacy=legacy)
    with contextlib.closing(SourceFile(path)) as file:
        tensors = torch_pickle.read_tensors(file)
        assert list(tensors) == list(weights)
        for name, weight in weights.items():
            assert (tensors[name].dtype, tensors[name].shape) == (weight.dtype, weight.array.shape)
            assert bytes_of(tensors[name], step=3) == weight.raw


@pytest.mark.parametrize("step", [1, 4])
def test_views_of_one_storage_are_read_as_torch_sees_them(tmp_path: Path, step: int) -> None:
    base = np.arange(48, dtype="<f4").reshape(8, 6)
    shared = storage("0", "F32", 48)
    views = {
        "whole": (tensor(shared, (8, 6)), base),
        "rows": (tensor(shared, (3, 6), offset=12), base[2:5]),
        "left half": (tensor(shared, (8, 3), (6, 1)), base[:, :3]),
        "every other row": (tensor(shared, (4, 6), (12, 1)), base[::2]),
        "transposed": (tensor(shared, (6, 8), (1, 6)), base.T),
        "one row": (tensor(shared, (1, 6), (999, 1), offset=6), base[1:2]),
        "vector": (tensor(shared, (6,), offset=42), base[7]),
    }
    path = save_archive(
        tmp_path / "views.bin", {name: view for name, (view, _) in views.items()}, {"0": base.tobytes()}
    )
    with contextlib.closing(SourceFile(path)) as file:
        tensors = torch_pickle.read_tensors(file)
        for name, (_, expected) in views.items():
            assert bytes_of(tensors[name], step=step) == np.ascontiguousarray(expected).tobytes(), name


def test_module_versions_and_parameters_in_a_state_dict_are_read(tmp_path: Path) -> None:
    hooks = Call(Global("collections", "OrderedDict"))
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (tensor(storage("0", "F32", 2), (2,)), True, hooks))
    state = emit(Call(Global("collections", "OrderedDict"))) + b"(" + emit("norm.weight") + emit(parameter) + b"u"
    metadata = emit({"_metadata": {"": {"version": 1}}})
    path = save_archive(tmp_path / "m.bin", state + metadata + b"b", {"0": bytes(8)})
    assert {name: tensor.shape for name, tensor in read(path).items()} == {"norm.weight": (2,)}


# -- nothing runs -----------------------------------------------------------------------------------------------------


class _Runs:
    """Its pickle is an order to create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_that_runs_code_is_refused_and_has_not_run(tmp_path: Path, protocol: int, legacy: bool) -> None:
    marker = tmp_path / "it ran"
    stream = pickle.dumps({"w": _Runs(marker)}, protocol)
    state = stream[2:-1] if protocol < 4 else stream[2 + 9 : -1]  # without PROTO, FRAME and STOP
    path = tmp_path / "evil.bin"
    if legacy:
        save_legacy(path, state, {}, {})
    else:
        save_archive(path, state, {})
    with pytest.raises(UnsafeCheckpointError, match=r"evil\.bin asks for (posix|nt)\.mkdir"):
        read(path)
    assert not marker.exists()
    pickle.loads(stream)  # the control: it is a pickle that does run
    assert marker.exists()


NAME = Global("os", "system")
KNOWN = Global("collections", "OrderedDict")
FLOAT = Global("torch", "FloatStorage")
HOSTILE = {
    "a call": (Call(NAME, ("id",)), "os.system"),
    "a name alone": ({"w": NAME}, "os.system"),
    "a call in a tensor's place": (tensor(Persistent(("storage", NAME, "0", "cpu", 1)), (1,)), "os.system"),
    "eval": (Call(Global("builtins", "eval"), ("1",)), "builtins.eval"),
    "an attribute of a known module": (Global("torch._utils", "_import_dotted_name"), "_utils._import_dotted_name"),
    "a name of torch that loads": (Global("torch", "load"), "torch.load"),
    "a dotted name": (Global("collections", "OrderedDict.__init__.__globals__"), "collections.OrderedDict.__init__"),
    "a name from the stack": (emit("os") + emit("system") + b"\x93", "os.system"),
    "a name with a space": (emit("os system") + emit("") + b"\x93", "os.system"),
    "an instance": (b"(ios\nsystem\n", "os.system"),
    "an instance of something known": (b"(icollections\nOrderedDict\n", "INST"),
    "an object": (b"(" + emit(KNOWN) + b"o", "OBJ"),
    "a new object": (emit(KNOWN) + b")\x81", "NEWOBJ"),
    "an extension": (b"\x82\x01", "EXT1"),
    "a state for a name": (emit(KNOWN) + emit((None, {"x": 1})) + b"b", "a state for a collections.OrderedDict"),
    "a call of a result": (Call(Call(KNOWN), ()), "a call of a dict"),
    "a call of a storage": (Call(FLOAT, (9,)), "a call of a torch.FloatStorage"),
    "an object kept elsewhere": (Persistent(("module", NAME)), "os.system"),
    "something else kept elsewhere": (Persistent(("module", "x")), "persistent object"),
    "a view of a storage": (Persistent(("storage", FLOAT, "0", "cpu", 4, ("1", 0, 4))), "a storage of"),
    "text instructions": (b"I1\n", "INT"),
    "an unknown instruction": (b"\xff", r"b'\\xff'"),
    "bytes": (b"C\x02hi", "SHORT_BINBYTES"),
    "control characters": (Global("o\x1b[2Js", "x"), r"o\?\[2Js\.x"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_anything_but_tensors_is_refused_by_name(tmp_path: Path, what: str) -> None:
    state, named = HOSTILE[what]
    with pytest.raises(UnsafeCheckpointError, match=named):
        read(save_archive(tmp_path / "m.bin", state, {}))


# -- damaged and misshapen files --------------------------------------------------------------------------------------

FLOATS = storage("0", "F32", 4)
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
DAMAGED = {
    "no dict": ([1], "holds a list, expected a dict of tensors"),
    "a number among the tensors": ({"epoch": 3}, "'epoch' is a int, expected a tensor"),
    "a name that is no text": ({7: tensor(FLOATS, (4,))}, "7 is a TensorView, expected a tensor"),
    "more elements than the storage": ({"w": tensor(FLOATS, (5,))}, r"w \[5\] ends at element 5 of its storage's 4"),
    "an offset beyond it": ({"w": tensor(FLOATS, (2,), offset=3)}, "ends at element 5"),
    "strides beyond it": ({"w": tensor(FLOATS, (2, 2), (3, 1))}, "ends at element 5"),
    "one element for all": ({"w": tensor(FLOATS, (1 << 40,), (0,))}, r"strides \[0\], an unsupported layout"),
    "a vector with gaps": ({"w": tensor(FLOATS, (2,), (2,))}, r"strides \[2\], an unsupported layout"),
    "a negative size": ({"w": tensor(FLOATS, (-1,), (1,))}, "sizes are not a tuple of counts"),
    "a negative stride": ({"w": tensor(FLOATS, (2,), (-1,))}, "sizes are not a tuple of counts"),
    "a negative offset": ({"w": tensor(FLOATS, (1,), offset=-1)}, "without storage or offset"),
    "fewer strides than sizes": ({"w": tensor(FLOATS, (2, 2), (1,))}, "2 sizes and 1 strides"),
    "nine dimensions": ({"w": tensor(FLOATS, (1,) * 9)}, "sizes are not a tuple of counts"),
    "too few arguments": ({"w": Call(REBUILD, (FLOATS,))}, "a tensor of 1 arguments"),
    "no storage": ({"w": Call(REBUILD, (None, 0, (1,), (1,)))}, "without storage or offset"),
    "a storage that is not there": ({"w": tensor(storage("7", "F32", 4), (4,))}, "'7' has nothing, expected 16 bytes"),
    "a storage of another length": ({"w": tensor(storage("0", "F64", 4), (4,))}, "'0' has 16 bytes, expected 32 bytes"),
    "two lengths of one storage": (
        {"v": tensor(storage("0", "F64", 9), (4,)), "w": tensor(FLOATS, (4,))}, "'0' is F64 of 9 .* and F32 of 4"),
    "a parameter of nothing": (Call(Global("torch._utils", "_rebuild_parameter"), (None,)), "not a tensor"),
    "an empty stack": (b"\x93", "empty stack"),
    "a missing mark": (b"t", "a mark"),
    "a memo that was not set": (b"h\x07", "entry 7 of its memo"),
    "an unhashable key": (b"}" + emit([]) + emit(1) + b"s", "a list as a key"),
    "items of a number": (emit(1) + emit(2) + emit(3) + b"s", "sets items of a int"),
    "elements of a tuple": (emit(()) + emit(2) + b"a", "appends to a tuple"),
    "a huge number": ({"w": tensor(FLOATS, (4,), offset=1 << 62)}, "without storage or offset"),
    "text that ends early": (b"X\xff\xff\xff\x7fabc", "damaged pickle"),
    "an OrderedDict of pairs of one": (Call(KNOWN, ([("w",)],)), "list of pairs"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_pickle_is_reported_in_one_line(tmp_path: Path, what: str) -> None:
    state, message = DAMAGED[what]
    with pytest.raises(CheckpointError, match=message) as caught:
        read(save_archive(tmp_path / "m.bin", state, {"0": bytes(16)}))
    assert not isinstance(caught.value, UnsafeCheckpointError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_endless_pickle_is_stopped(tmp_path: Path) -> None:
    path = save_archive(tmp_path / "m.bin", b"N" * 310_000 + emit({}), {})
    with pytest.raises(CheckpointError, match="300,000 instructions"):
        read(path)


def test_a_pickle_of_unreasonable_size_is_not_read(tmp_path: Path) -> None:
    path = save_archive(tmp_path / "m.bin", bytes(torch_pickle.MAX_PICKLE_BYTES), {})
    with pytest.raises(CheckpointError, match="data.pkl has"):
        read(path)


def test_big_endian_weights_are_refused(tmp_path: Path) -> None:
    path = save_archive(tmp_path / "m.bin", {}, {}, byteorder="big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read(path)


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = save_archive(tmp_path / "bomb.bin", {"w": tensor(FLOATS, (4,))}, {"0": bytes(16)}, compress=True)
    with pytest.raises(CheckpointError, match="compressed"):
        read(path)


def _central_entries(data: bytes) -> list[int]:
    return [i for i in range(len(data)) if data.startswith(b"PK\x01\x02", i)]


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = save_torch(tmp_path / "m.bin", {"v": random_weights((4,)), "w": random_weights((4,), seed=1)})
    data = bytearray(path.read_bytes())
    first, second = [i for i in _central_entries(bytes(data)) if b"archive/data/" in data[i : i + 64]]
    data[second + 42 : second + 46] = data[first + 42 : first + 46]  # both begin at the same local header
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="inside the member before it"):
        read(path)


def test_a_duplicate_member_is_refused(tmp_path: Path) -> None:
    path = save_torch(tmp_path / "m.bin", {"v": random_weights((4,)), "w": random_weights((4,), seed=1)})
    path.write_bytes(path.read_bytes().replace(b"archive/data/1", b"archive/data/0"))
    with pytest.raises(CheckpointError, match="'archive/data/0' twice"):
        read(path)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = save_torch(tmp_path / "m.bin", {"v": random_weights((4,))})
    data = bytearray(path.read_bytes())
    data[_central_entries(bytes(data))[2] + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="encrypted"):
        read(path)


def test_a_directory_of_unreasonable_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    size = torch_zip.MAX_DIRECTORY_BYTES + 1
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 0, 0))
    with pytest.raises(CheckpointError, match="a zip directory of"):
        read(path)


def test_the_zip_reader_agrees_with_zipfile(tmp_path: Path) -> None:
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(5):
            with archive.open(f"archive/data/{i}", "w", force_zip64=i % 2 == 0) as stream:
                stream.write(bytes([i]) * (10 * i))
    with contextlib.closing(SourceFile(path)) as file, zipfile.ZipFile(path) as archive:
        members = torch_zip.read_members(file)
        assert list(members) == archive.namelist()
        for name, member in members.items():
            assert torch_zip.read_bytes(file, member.offset, member.n_bytes) == archive.read(name)


def test_an_archive_beyond_four_gibibytes_is_read_at_its_64_bit_positions(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    big = 4 << 30  # a hole in the file: it takes no disk
    name = b"archive/data/0"
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    extra = struct.pack("<2H2Q", 1, 16, big, big)
    entry = struct.pack(
        "<4s6H3L5H2L",
        b"PK\x01\x02",
        45,
        45,
        0,
        0,
        0,
        0,
        0,
        0xFFFFFFFF,
        0xFFFFFFFF,
        len(name),
        len(extra),
        0,
        0,
        0,
        0,
        0,
    )
    directory = entry + name + extra
    start = len(local) + big
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), 0xFFFFFFFF, 0)
    with path.open("wb") as file:
        file.write(local)
        file.seek(start)
        file.write(directory + end64 + locator + end)
    with contextlib.closing(SourceFile(path)) as source, zipfile.ZipFile(path) as archive:
        (member,) = torch_zip.read_members(source).values()
        assert (member.offset, member.n_bytes) == (len(local), big)
        assert archive.infolist()[0].file_size == big


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_that_ends_early_is_reported_wherever_it_ends(tmp_path: Path, legacy: bool) -> None:
    path = save_torch(tmp_path / "m.bin", {"w": random_weights((3, 4)), "v": random_weights((4,))}, legacy=legacy)
    data = path.read_bytes()
    for end in (*range(0, len(data), 17), *range(len(data) - 120, len(data))):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            read(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_flipped_bytes_give_tensors_or_one_of_our_errors(tmp_path: Path, legacy: bool) -> None:
    path = save_torch(tmp_path / "m.bin", {"w": random_weights((3, 4)), "v": random_weights((4,))}, legacy=legacy)
    data = path.read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(500):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            mutated[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        path.write_bytes(mutated)
        try:
            read(path)
        except CheckpointError:
            refused += 1
    assert refused > 100


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_stream_gives_a_value_or_one_of_our_errors(stream: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        unpickle(stream, "stream")


INSTRUCTIONS = [
    *(bytes([code]) for code in b"()N}]t\x85\x86easuRbQ\x94"),
    *(b"q\x00", b"h\x00", emit("w"), emit(3), emit(KNOWN), emit(REBUILD), emit(FLOATS)),
]


@given(st.lists(st.sampled_from(INSTRUCTIONS), max_size=40))
@settings(max_examples=400, deadline=None)
def test_any_order_of_known_instructions_gives_a_value_or_one_of_our_errors(instructions: list[bytes]) -> None:
    with contextlib.suppress(CheckpointError):
        unpickle(b"\x80\x02" + b"".join(instructions) + b".", "stream")


# -- torch itself -----------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_saved_by_torch_are_read_as_torch_loads_them(tmp_path: Path, legacy: bool, protocol: int) -> None:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5))
    state = model.state_dict() | {
        "half": torch.randn(3, 4).half(),
        "bfloat16": torch.randn(3, 4).bfloat16(),
        "double": torch.randn(3, 4).double(),
        "transposed": torch.randn(4, 3).t(),
        "part": torch.randn(4, 6)[1:3, 2:5],
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
    }
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    with contextlib.closing(SourceFile(path)) as file:
        tensors = torch_pickle.read_tensors(file)
        assert list(tensors) == list(state)
        for name, expected in state.items():
            raw = expected.detach().contiguous().view(torch.uint8).numpy().tobytes()
            assert bytes_of(tensors[name], step=2) == raw, name


@pytest.mark.parity
def test_our_hand_made_files_are_read_by_torch(tmp_path: Path) -> None:
    import torch

    weights = {"w": random_weights((3, 4)), "n": Weights("I64", np.arange(3))}
    for legacy in (False, True):
        loaded = torch.load(save_torch(tmp_path / f"{legacy}.bin", weights, legacy=legacy), weights_only=True)
        for name, weight in weights.items():
            np.testing.assert_array_equal(loaded[name].numpy(), weight.array)
    assert pickled({})  # the emitter is the one that the other tests use
