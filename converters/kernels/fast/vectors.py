"""SIMD vectors in Numba: values of LLVM's vector types, with the arithmetic that the kernels need.

    @inlined
    def squares(source):             # source: a pointer to 32-bit floats
        x = load(source, 0, 16)      # 16 lanes: one instruction with AVX-512, two with AVX2, four with NEON
        return x * x

A vector is a value, not an array. Operators work lane by lane; a scalar operand is spread over all lanes, as float32 or
int32. LLVM compiles each operation to the widest instructions of the processor. No operation has a fast-math flag, so
each rounds once, like the same operation in scalar C; LLVM itself contracts no product and sum. Numba's loop vectoriser
could do some of this if it could prove that no arrays overlap; here nothing needs to be proved. This module knows
nothing of quantization.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.core.datamodel.registry import register_default
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

_SCALARS = {"f32": types.float32, "i32": types.int32, "u16": types.uint16, "u8": types.uint8, "mask": types.boolean}
_LLVM = {
    "f32": ir.FloatType(),
    "i32": ir.IntType(32),
    "u16": ir.IntType(16),
    "u8": ir.IntType(8),
    "mask": ir.IntType(1),
}
_KINDS = {types.float32: "f32", types.uint16: "u16", types.uint8: "u8"}
_I32, _I64 = ir.IntType(32), ir.IntType(64)


class Vector(types.Type):  # type: ignore[misc]
    """`lanes` elements of one kind: f32, i32, u16, u8 or mask (one bit)."""

    def __init__(self, kind: str, lanes: int) -> None:
        self.kind, self.lanes = kind, lanes
        self.scalar = _SCALARS[kind]
        self.llvm = ir.VectorType(_LLVM[kind], lanes)
        super().__init__(name=f"Vector({kind}, {lanes})")


@register_default(Vector)
class _VectorModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` into each of its callers, without a call and without fast-math; division as in IEEE 754."""
    compiled: Callable[..., Any] = njit(
        forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(function)
    return compiled


def operation(rule: Callable[..., Any], *, literal: bool = False) -> Callable[..., Any]:
    """Return a function for compiled code; `rule(*types)` returns its signature and ``emit(builder, *values)``.

    Arguments are cast to the signature's types. With `literal`, `rule` sees the values of constant integers.
    """

    def typing(_context: Any, *arguments: Any) -> Any:
        declared, emit = rule(*arguments)

        def codegen(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
            return emit(builder, *values)

        return declared, codegen

    # Numba needs the names of the arguments.
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(rule).parameters.values()
    typing.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    typing.__name__ = rule.__name__
    operation: Callable[..., Any] = intrinsic(prefer_literal=literal)(typing)
    return operation


# --- operators


def spread(builder: ir.IRBuilder, value: ir.Value, vector: Vector) -> ir.Value:
    """Return `value` if it is a vector, else a vector with `value` in every lane."""
    if isinstance(value.type, ir.VectorType):
        return value
    undefined = ir.Constant(vector.llvm, ir.Undefined)
    first_lane = builder.insert_element(undefined, value, _I32(0))
    return builder.shuffle_vector(first_lane, undefined, ir.Constant(ir.VectorType(_I32, vector.lanes), None))


def _common(a: types.Type, b: types.Type) -> Vector | None:
    """Return the vector type for an operation on `a` and `b`, of which one may be a scalar; None if none fits."""
    if isinstance(a, Vector):
        return a if not isinstance(b, Vector) or a == b else None
    return b if isinstance(b, Vector) else None


def _cast(operand: types.Type, vector: Vector) -> types.Type:
    return operand if isinstance(operand, Vector) else vector.scalar


# operator → LLVM's instruction on floats, and on integers and masks
_ARITHMETIC = {
    operator.add: ("fadd", "add"),
    operator.sub: ("fsub", "sub"),
    operator.mul: ("fmul", "mul"),
    operator.truediv: ("fdiv", None),
    operator.and_: (None, "and_"),
    operator.or_: (None, "or_"),
    operator.xor: (None, "xor"),
    operator.lshift: (None, "shl"),
    operator.rshift: (None, "lshr"),
}
# As in C, comparisons with NaN are false, except `!=`.
_COMPARISONS = {
    operator.lt: "<",
    operator.gt: ">",
    operator.le: "<=",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}


def _register(symbol: Any, result: Callable[[Vector], Vector], emit: Callable[..., ir.Value]) -> None:
    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            vector = _common(*args) if len(args) == 2 else None
            return None if vector is None else signature(result(vector), *(_cast(operand, vector) for operand in args))

    def lower(_context: Any, builder: ir.IRBuilder, declared: Any, values: Any) -> ir.Value:
        vector = _common(*declared.args)
        assert vector is not None
        return emit(builder, vector, *(spread(builder, value, vector) for value in values))

    infer_global(symbol)(Template)
    for pair in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(symbol, *pair)(lower)


def _calculation(on_floats: str | None, on_integers: str | None) -> Callable[..., ir.Value]:
    def emit(builder: ir.IRBuilder, vector: Vector, left: ir.Value, right: ir.Value) -> ir.Value:
        return getattr(builder, str(on_floats if vector.kind == "f32" else on_integers))(left, right)

    return emit


def _comparison(sign: str) -> Callable[..., ir.Value]:
    def emit(builder: ir.IRBuilder, vector: Vector, left: ir.Value, right: ir.Value) -> ir.Value:
        if vector.kind != "f32":
            return builder.icmp_signed(sign, left, right)
        return (builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered)(sign, left, right)

    return emit


for _symbol, _names in _ARITHMETIC.items():
    _register(_symbol, lambda vector: vector, _calculation(*_names))
for _symbol, _sign in _COMPARISONS.items():
    _register(_symbol, lambda vector: Vector("mask", vector.lanes), _comparison(_sign))


@infer_global(operator.neg)
class _Negation(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        return signature(args[0], args[0]) if isinstance(args[0], Vector) else None


@lower_builtin(operator.neg, Vector)  # type: ignore[untyped-decorator]
def _negated(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
    return builder.fneg(values[0])


def _select(mask: Any, yes: Any, no: Any) -> Any:
    vector = _common(yes, no)
    assert vector is not None

    def emit(builder: ir.IRBuilder, condition: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return builder.select(condition, spread(builder, a, vector), spread(builder, b, vector))

    return vector(mask, _cast(yes, vector), _cast(no, vector)), emit


def _splat(_scalar: Any, lanes: Any) -> Any:
    vector = Vector("f32", lanes.literal_value)
    return vector(types.float32, lanes), lambda builder, value, _: spread(builder, value, vector)


select = operation(_select)  # (mask, a, b): in each lane a if the mask is set, else b; one may be a scalar
splat = operation(_splat, literal=True)  # (scalar, lanes): the float32 `scalar` in each of `lanes` (a constant) lanes

# --- memory


def _load(pointer: Any, _index: Any, lanes: Any) -> Any:
    vector = Vector(_KINDS[pointer.dtype], lanes.literal_value)

    def emit(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, _lanes: ir.Value) -> ir.Value:
        value = builder.load(builder.bitcast(builder.gep(base, [index]), vector.llvm.as_pointer()))
        value.align = 1
        return value

    return vector(pointer, types.intp, lanes), emit


def _store(pointer: Any, _index: Any, vector: Any) -> Any:
    def emit(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, value: ir.Value) -> ir.Value:
        builder.store(value, builder.bitcast(builder.gep(base, [index]), vector.llvm.as_pointer())).align = 1
        return cgutils.voidptr_t(None)

    return types.void(pointer, types.intp, vector), emit


def _from_index(pointer: Any, _index: Any) -> Any:
    return pointer(pointer, types.intp), lambda builder, base, index: builder.gep(base, [index])


def _as_bytes(pointer: Any) -> Any:
    kind = _LLVM["u8"].as_pointer()
    return types.CPointer(types.uint8)(pointer), lambda builder, base: builder.bitcast(base, kind)


def _scratch(element: types.Type) -> Callable[..., Any]:
    kind = _LLVM[_KINDS[element]]

    def scratch(size: Any) -> Any:
        def emit(builder: ir.IRBuilder, _size: ir.Value) -> ir.Value:
            with builder.goto_entry_block():
                array = builder.alloca(ir.ArrayType(kind, size.literal_value))
                array.align = 64
            return builder.bitcast(array, kind.as_pointer())

        return types.CPointer(element)(size), emit

    return operation(scratch, literal=True)


def _pointer(element: types.Type) -> Callable[..., Any]:
    kind = _LLVM[_KINDS[element]]

    def place(_address: Any) -> Any:
        return types.CPointer(element)(types.uintp), lambda builder, value: builder.inttoptr(value, kind.as_pointer())

    return operation(place)


load = operation(_load, literal=True)  # (pointer, index, lanes): `lanes` (a constant) elements from pointer[index] on
store = operation(_store)  # (pointer, index, vector): write the lanes from pointer[index] on
from_index = operation(_from_index)  # (pointer, index): the pointer to pointer[index]
as_bytes = operation(_as_bytes)  # (pointer): the same address, as bytes

# (size): a pointer to `size` (a constant) elements on the stack, aligned to a cache line, valid until the kernel
# returns; at most a memory page, as Windows would have to probe more
scratch_floats = _scratch(types.float32)
scratch_bytes = _scratch(types.uint8)

# (address): a pointer to that address, aligned or not
bytes_at = _pointer(types.uint8)
shorts_at = _pointer(types.uint16)
floats_at = _pointer(types.float32)

# --- functions of lanes


def _conversion(of: str, to: str, instruction: str) -> Callable[..., Any]:
    def convert(vector: Any) -> Any:
        if vector.kind != of:
            raise TypeError(f"{vector} where lanes of {of} are needed")
        result = Vector(to, vector.lanes)
        return result(vector), lambda builder, value: getattr(builder, instruction)(value, result.llvm)

    return operation(convert)


def _intrinsic_call(name: str) -> Callable[..., Any]:
    def call(vector: Any) -> Any:
        def emit(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
            kind = ir.FunctionType(vector.llvm, [vector.llvm])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{vector.lanes}f32")
            return builder.call(function, [value])

        return vector(vector), emit

    return operation(call)


def _bits(mask: Any) -> Any:
    def emit(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
        return builder.zext(builder.bitcast(value, ir.IntType(mask.lanes)), _I64)

    return types.int64(mask), emit


def _half(start: int) -> Callable[..., Any]:
    def half(vector: Any) -> Any:
        lanes = vector.lanes // 2

        def emit(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
            places = ir.Constant(ir.VectorType(_I32, lanes), [start * lanes + i for i in range(lanes)])
            return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), places)

        return Vector(vector.kind, lanes)(vector), emit

    return operation(half)


def _largest_lane(vector: Any) -> Any:
    def emit(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
        integers = ir.VectorType(_I32, vector.lanes)  # floats that are not negative have the order of their bits
        name = f"llvm.vector.reduce.umax.v{vector.lanes}i32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, [integers]), name)
        return builder.bitcast(builder.call(function, [builder.bitcast(value, integers)]), ir.FloatType())

    return types.float32(vector), emit


floats = _conversion("i32", "f32", "sitofp")
truncate = _conversion("f32", "i32", "fptosi")  # toward zero; out of range, the result depends on the processor
bits_of_floats = _conversion("f32", "i32", "bitcast")
floats_of_bits = _conversion("i32", "f32", "bitcast")
low_bytes = _conversion("i32", "u8", "trunc")
low_shorts = _conversion("i32", "u16", "trunc")
widen_u16 = _conversion("u16", "i32", "zext")
absolute = _intrinsic_call("fabs")
square_root = _intrinsic_call("sqrt")  # correctly rounded, like sqrtf
bits = operation(_bits)  # the lanes of a mask as an integer, lane 0 in bit 0: not zero if any lane is set
first_half, second_half = _half(0), _half(1)
largest_lane = operation(_largest_lane)  # of f32 lanes without negative ones, as a float32

# --- the width of the searches


_TRIPLE, _NAME, _FEATURES = cpu_target.target_context.codegen().magic_tuple()
# Two of the widest registers: one half is computed while the other waits for its sums.
LANES = 32 if "+avx512f" in _FEATURES else 16
HAS_FMA = "+fma" in _FEATURES or _TRIPLE.startswith(("aarch64", "arm64"))
