"""A product and a sum, rounded once or twice, as ggml's compiler chose in that place.

The first argument of the kernels and of their parts, `contraction`, is a `Contraction`. For Numba it is a type without
a value: each contraction has its own machine code, in which nothing is decided at run time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import OpaqueModel
from numba.core.datamodel.registry import register_default
from numba.core.typing.typeof import typeof_impl
from numba.extending import NativeValue, unbox

from llamalite.converters.kernels.fast.contractions import Contraction
from llamalite.converters.kernels.fast.vectors import Vector, operation, spread


class ContractionType(types.Type):  # type: ignore[misc]
    """Numba's type of a `Contraction`, a different one for each set of places."""

    def __init__(self, places: int) -> None:
        self.places = places
        super().__init__(name=f"Contraction({places})")


register_default(ContractionType)(OpaqueModel)


@typeof_impl.register(Contraction)  # type: ignore[untyped-decorator]
def _type_of(contraction: Contraction, _context: Any) -> ContractionType:
    return ContractionType(contraction.places)


@unbox(ContractionType)  # type: ignore[untyped-decorator]
def _no_value(_type: ContractionType, _value: Any, call: Any) -> Any:
    return NativeValue(call.context.get_dummy_value())


def _contracts(contraction: Any, place: Any) -> Any:
    value = ir.Constant(ir.IntType(1), bool(contraction.places & place.literal_value))
    return types.boolean(contraction, place), lambda _builder, _contraction, _place: value


def _without(contraction: Any, place: Any) -> Any:
    other = ContractionType(contraction.places & ~place.literal_value)
    return other(contraction, place), lambda _builder, value, _place: value


def _mul_add(contraction: Any, place: Any, a: Any, b: Any, c: Any) -> Any:
    vector = next(operand for operand in (a, b, c) if isinstance(operand, Vector))
    contracted = contraction.places & place.literal_value

    def emit(builder: ir.IRBuilder, _contraction: ir.Value, _place: ir.Value, *values: ir.Value) -> ir.Value:
        a, b, c = (spread(builder, value, vector) for value in values)
        if not contracted:
            return builder.fadd(builder.fmul(a, b), c)
        kind = ir.FunctionType(vector.llvm, [vector.llvm] * 3)
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{vector.lanes}f32"), [a, b, c]
        )

    operands = (operand if isinstance(operand, Vector) else types.float32 for operand in (a, b, c))
    return vector(contraction, place, *operands), emit


# (contraction, place, a, b, c): a · b + c, rounded once if `contraction` has this place; one or two may be scalars
mul_add = operation(_mul_add, literal=True)
contracts = operation(_contracts, literal=True)  # (contraction, place): whether `contraction` has this place
without = operation(_without, literal=True)  # (contraction, place): `contraction` without this place
