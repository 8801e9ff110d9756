"""A pickle reader that knows tensors, storages and plain containers, and cannot run any code.

    cos\\nsystem\\n(X\\x02\\x00\\x00\\x00idtR.   →   UnsafeCheckpointError: ... asks for os.system ...

A pickle is a program for a small stack machine. Python's own reader can restrict the names that are looked up, but it
still calls and modifies what it looked up. This one looks nothing up: a name stays a name. A table lists the few names
that ``torch.save`` writes for tensors; any other name or instruction raises `UnsafeCheckpointError`. The result
consists of dicts, lists, tuples, strings, numbers, and `TensorView`, which says where a tensor's bytes are.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llamalite.errors import CheckpointError, UnsafeCheckpointError

MAX_INSTRUCTIONS = 300_000  # a 70B model takes about 35,000; read within a second
_MAX_COUNT = 1 << 60

STORAGE_DTYPES = {
    "torch DoubleStorage": "F64",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ShortStorage": "I16",
    "torch CharStorage": "I8",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}
"""torch's name of a storage → safetensors' name of its dtype."""


@dataclass(frozen=True)
class Storage:
    """A sequence of `n_elements` weights, which lies outside the pickle under `key`."""

    key: str
    dtype: str
    n_elements: int


@dataclass(frozen=True)
class TensorView:
    """A tensor as torch represents it: a storage, the offset of its first element, sizes, and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A known name, as ``module name``."""

    name: str


_MARK = object()


def unpickle(pickle: bytes, source: str, start: int = 0) -> tuple[Any, int]:
    """Return the value of the pickle at ``pickle[start:]``, and the position after it; errors name `source`."""
    machine = _Machine(source)
    at = start
    for _ in range(MAX_INSTRUCTIONS):
        code = pickle[at : at + 1]
        at += 1
        if code not in _ARGUMENTS:
            raise (
                machine.unsafe(f"the instruction {_INSTRUCTION_NAMES.get(code, repr(code))}")
                if code
                else _ended(source)
            )
        name, take = _ARGUMENTS[code]
        try:
            argument, at = take(pickle, at) if take else (None, at)
        except (struct.error, UnicodeDecodeError, ValueError):
            raise _ended(source) from None
        if name == "STOP":
            return machine.pop(), at
        machine.run(name, argument)
    raise CheckpointError(f"{source} has more than {MAX_INSTRUCTIONS:,} instructions, too many for a list of tensors")


def _ended(source: str) -> CheckpointError:
    return CheckpointError(f"{source} is a damaged pickle: it ends inside an instruction; download it again")


class _Machine:
    """The stack, the memo, and the effect of each known instruction (CPython, Lib/pickle.py, ``_Unpickler``)."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name == "LITERAL":
            self.stack.append(argument)
        elif name == "PUT":
            self.memo[argument] = self.top()
        elif name == "GET":
            if argument not in self.memo:
                raise self.damaged(f"it refers to entry {argument} of its memo, which it has not set")
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self.stack.append(self.known_name(argument))
        elif name == "INST":
            self.known_name(argument)
            raise self.unsafe("the instruction INST")
        elif name != "SKIP":
            _INSTRUCTIONS[name](self)

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.damaged("it takes from an empty stack")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise self.damaged("it looks for a mark that it has not set")

    def known_name(self, name: str) -> _Name:
        if name not in _CALLS and name not in STORAGE_DTYPES:
            raise self.unsafe(name.replace(" ", "."))
        return _Name(name)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise self.damaged("a name that is not a text")
        self.stack.append(self.known_name(f"{module} {name}"))

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.top()

    def make_tuple(self, n: int | None = None) -> None:
        items = self.pop_to_mark() if n is None else [self.pop() for _ in range(n)][::-1]
        self.stack.append((*items,))

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.top(), list):
            raise self.damaged(f"it appends to a {_kind(self.top())}")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if not isinstance(self.top(), dict) or len(items) % 2:
            raise self.damaged(f"it sets items of a {_kind(self.top())}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise self.damaged(f"a {_kind(key)} as a key")
            self.stack[-1][key] = value

    def storage(self) -> None:
        persistent_id = self.pop()
        if not (isinstance(persistent_id, tuple) and len(persistent_id) in (5, 6) and persistent_id[0] == "storage"):
            raise self.unsafe(f"a persistent object that is not a storage ({_kind(persistent_id)})")
        _, kind, key, _device, n_elements, *view = persistent_id
        if not isinstance(kind, _Name) or kind.name not in STORAGE_DTYPES or view not in ([], [None]):
            raise self.unsafe("a storage of an unknown kind")
        if not isinstance(key, str) or not _is_count(n_elements):
            raise self.damaged("a storage without name or length")
        self.stack.append(Storage(key, STORAGE_DTYPES[kind.name], n_elements))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or function.name not in _CALLS:
            raise self.unsafe(f"a call of a {_kind(function)}")
        if not isinstance(arguments, tuple):
            raise self.damaged(f"a call with a {_kind(arguments)} of arguments")
        self.stack.append(_CALLS[function.name](self, arguments))

    def ordered_dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        pairs = arguments[0] if arguments else []
        if len(arguments) > 1 or not isinstance(pairs, list):
            raise self.damaged("an OrderedDict of something other than a list of pairs")
        self.stack.append({})
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise self.damaged("an OrderedDict of something other than a list of pairs")
            self.set_items([*pair])
        return self.stack.pop()  # type: ignore[no-any-return]

    def tensor(self, arguments: tuple[Any, ...]) -> TensorView:
        """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata)``."""
        if len(arguments) < 4:
            raise self.damaged(f"a tensor of {len(arguments)} arguments")
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, Storage) or not _is_count(offset):
            raise self.damaged("a tensor without storage or offset")
        for sizes in (shape, strides):
            if not isinstance(sizes, tuple) or len(sizes) > 8 or not all(map(_is_count, sizes)):
                raise self.damaged("a tensor whose sizes are not a tuple of counts")
        if len(shape) != len(strides):
            raise self.damaged(f"a tensor of {len(shape)} sizes and {len(strides)} strides")
        return TensorView(storage, offset, shape, strides)

    def parameter(self, arguments: tuple[Any, ...]) -> TensorView:
        if not arguments or not isinstance(arguments[0], TensorView):
            raise self.damaged("a parameter that is not a tensor")
        return arguments[0]

    def build(self) -> None:
        """Drop the state of an OrderedDict: ``_metadata``, the version numbers of torch's modules."""
        self.pop()
        if not isinstance(self.top(), dict):
            raise self.unsafe(f"a state for a {_kind(self.top())}")

    def unsafe(self, what: str) -> UnsafeCheckpointError:
        shown = "".join(c if c.isprintable() else "?" for c in what[:120])
        return UnsafeCheckpointError(
            f"{self.source} asks for {shown}, which is not part of a tensor: none of it was run; use the model's "
            "safetensors, or ask who made the file"
        )

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.source} is a damaged pickle: {what}; download it again")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _kind(value: Any) -> str:
    return value.name.replace(" ", ".") if isinstance(value, _Name) else type(value).__name__


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_INSTRUCTIONS: dict[str, Callable[[_Machine], None]] = {
    "EMPTY_DICT": lambda m: m.stack.append({}),
    "EMPTY_LIST": lambda m: m.stack.append([]),
    "MEMOIZE": _Machine.memoize,
    "STACK_GLOBAL": _Machine.stack_global,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda m: m.make_tuple(1),
    "TUPLE2": lambda m: m.make_tuple(2),
    "TUPLE3": lambda m: m.make_tuple(3),
    "APPEND": lambda m: m.append([m.pop()]),
    "APPENDS": lambda m: m.append(m.pop_to_mark()),
    "SETITEM": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m: m.set_items(m.pop_to_mark()),
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
_CALLS: dict[str, Callable[[_Machine, tuple[Any, ...]], Any]] = {
    "collections OrderedDict": _Machine.ordered_dict,
    "torch._utils _rebuild_tensor": _Machine.tensor,
    "torch._utils _rebuild_tensor_v2": _Machine.tensor,
    "torch._utils _rebuild_parameter": _Machine.parameter,
}


# -- the encoding of instructions (CPython, Lib/pickletools.py, ``opcodes``) -------------------------------------------

_Take = Callable[[bytes, int], tuple[Any, int]]


def _number(form: str) -> _Take:
    size = struct.calcsize(form)
    return lambda pickle, at: (struct.unpack_from(form, pickle, at)[0], at + size)


def _sized(form: str, of: Callable[[bytes], Any]) -> _Take:
    take_size = _number(form)

    def take(pickle: bytes, at: int) -> tuple[Any, int]:
        size, at = take_size(pickle, at)
        if size > len(pickle) - at:
            raise ValueError(size)
        return of(pickle[at : at + size]), at + size

    return take


def _text(raw: bytes) -> str:
    return raw.decode("utf-8")


def _whole_number(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _two_lines(pickle: bytes, at: int) -> tuple[str, int]:
    middle = pickle.index(b"\n", at)
    end = pickle.index(b"\n", middle + 1)
    return f"{_text(pickle[at:middle])} {_text(pickle[middle + 1 : end])}", end + 1


_INSTRUCTION_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
_ARGUMENTS: dict[bytes, tuple[str, _Take | None]] = {
    b"\x80": ("SKIP", _number("<B")),  # PROTO
    b"\x95": ("SKIP", _number("<Q")),  # FRAME
    b"J": ("LITERAL", _number("<i")),
    b"K": ("LITERAL", _number("<B")),
    b"M": ("LITERAL", _number("<H")),
    b"\x8a": ("LITERAL", _sized("<B", _whole_number)),
    b"G": ("LITERAL", _number(">d")),
    b"X": ("LITERAL", _sized("<I", _text)),
    b"\x8c": ("LITERAL", _sized("<B", _text)),
    b"\x8d": ("LITERAL", _sized("<Q", _text)),
    b"q": ("PUT", _number("<B")),
    b"r": ("PUT", _number("<I")),
    b"h": ("GET", _number("<B")),
    b"j": ("GET", _number("<I")),
    b"c": ("GLOBAL", _two_lines),
    b"i": ("INST", _two_lines),
    **{
        code: (name, None)
        for code, name in _INSTRUCTION_NAMES.items()
        if name in _CONSTANTS or name in _INSTRUCTIONS or name == "STOP"
    },
}
