"""A product and a sum, rounded once or twice, as ggml's compiler chose in that place.

`how`, the first argument of the kernels and of their parts, is a `Contraction`. For Numba it is a type without a value:
each contraction has its own machine code, in which nothing is decided at run time.
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


class How(types.Type):  # type: ignore[misc]
    """Numba's type of a `Contraction`, a different one for each set of places."""

    def __init__(self, places: int) -> None:
        self.places = places
        super().__init__(name=f"How({places})")


register_default(How)(OpaqueModel)


@typeof_impl.register(Contraction)  # type: ignore[untyped-decorator]
def _type_of(contraction: Contraction, _context: Any) -> How:
    return How(contraction.places)


@unbox(How)  # type: ignore[untyped-decorator]
def _no_value(_how: How, _contraction: Any, call: Any) -> Any:
    return NativeValue(call.context.get_dummy_value())


def _contracts(how: Any, place: Any) -> Any:
    contracted = bool(how.places & place.literal_value)
    return types.boolean(how, place), lambda _builder, _how, _place: ir.Constant(ir.IntType(1), contracted)


def _without(how: Any, place: Any) -> Any:
    return How(how.places & ~place.literal_value)(how, place), lambda _builder, how, _place: how


def _mul_add(how: Any, place: Any, a: Any, b: Any, c: Any) -> Any:
    vector = next(operand for operand in (a, b, c) if isinstance(operand, Vector))
    contracted = how.places & place.literal_value

    def emit(builder: ir.IRBuilder, _how: ir.Value, _place: ir.Value, *values: ir.Value) -> ir.Value:
        a, b, c = (spread(builder, value, vector) for value in values)
        if not contracted:
            return builder.fadd(builder.fmul(a, b), c)
        kind = ir.FunctionType(vector.llvm, [vector.llvm] * 3)
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{vector.lanes}f32"), [a, b, c]
        )

    operands = (operand if isinstance(operand, Vector) else types.float32 for operand in (a, b, c))
    return vector(how, place, *operands), emit


# (how, place, a, b, c): a · b + c, of which one or two may be scalars; rounded once if `how` contracts this place
mul_add = operation(_mul_add, literal=True)
contracts = operation(_contracts, literal=True)  # (how, place): whether `how` contracts this place
without = operation(_without, literal=True)  # (how, place): `how` without this place
