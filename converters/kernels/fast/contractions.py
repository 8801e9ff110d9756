"""Where a compiler contracts a product and a sum into one instruction, which rounds once. No Numba in here.

ARM64 always has such instructions, x86-64 has them if the compiler may use FMA, and C compilers use them for
``a * b + c`` unless told not to, which ggml does not do. Where they do so depends on the compiler:

- clang contracts within one statement;
- GCC also contracts across statements and inlined functions, but not a product that is also used elsewhere;
- neither contracts a loop of sums that it vectorises: there products are rounded, then added in order.

So each place in ggml-quants.c is contracted or not, and a `Contraction` lists those that are. The kernels have one
source, in which each ``mul_add`` (fused.py) names its place.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

STATEMENT = 1 << 0  # a product and a sum in one statement that is not listed below
ACROSS = 1 << 1  # a product that an inlined function or a later statement adds to: nearest_int(a * b), `x0 + 8.5f`
SECOND = 1 << 2  # of `sum_w * sum_xl - sum_x * sum_l` (make_qkx2_quants, make_qkx3_quants) the second, not the first
LEVELS = 1 << 3  # sum_l of a candidate (make_qkx2_quants, make_qkx3_quants), whose product two other sums also use
RANGES = 1 << 4  # sum_l2 and sum_xl, likewise
FIRST_RANGE = 1 << 5  # the error before the candidates (best_error and best_mad, in the same functions)
SYMMETRIC = 1 << 6  # sumlx and suml2 of a candidate (make_qx_quants)
FIRST_SYMMETRIC = 1 << 7  # sumlx and suml2 before the candidates (make_qx_quants)
FITTED = 1 << 8  # errors and sums over all scales (make_qp_quants), before scales are moved one by one
BLOCK_SQUARES = 1 << 9  # the sum of the squares of 256 weights (quantize_row_q2_K_impl and its siblings)
SQUARES = 1 << 10  # the sum of the squares of 32 weights (quantize_row_q4_K_ref, quantize_row_q5_K_ref)
# Not a place: with importance, quantize_q6_K inlines make_qx_quants for each sub-block of a block except the first; for
# the first it calls the function, whose loop over candidates is vectorised, and therefore not contracted.
CALLED = 1 << 11

_CLANG = STATEMENT | SYMMETRIC | SQUARES
_GCC = STATEMENT | ACROSS | SECOND | RANGES | FIRST_RANGE | FIRST_SYMMETRIC | FITTED


@dataclass(frozen=True)
class Contraction:
    """A compiler's choice: `places` are those where a product and a sum are one instruction."""

    compiler: str
    places: int = 0


PLAIN = Contraction("a compiler that does not contract")
GCC = Contraction("GCC 11 and 12 for ARM64", _GCC | SQUARES | BLOCK_SQUARES)
GCC_O2 = Contraction("GCC 12 for ARM64 with -O2", GCC.places | SYMMETRIC)
GCC_X86 = Contraction("GCC 12 for x86-64 with FMA", _GCC)
CLANG_14 = Contraction("clang 14 for ARM64", _CLANG | FIRST_RANGE | FIRST_SYMMETRIC | BLOCK_SQUARES)
CLANG_15 = Contraction("clang 15 and 16 for ARM64", _CLANG | CALLED | FITTED | BLOCK_SQUARES)
CLANG_19 = Contraction("clang 19 for ARM64", _CLANG | CALLED | FITTED)
CLANG_X86 = Contraction("clang 14 for x86-64 with FMA", CLANG_14.places | LEVELS | RANGES | FITTED)


def by_likelihood() -> list[Contraction]:
    """Return the known contractions, in order of how likely this machine's ggml has them."""
    gcc, clang = [GCC, GCC_O2], [CLANG_19, CLANG_15, CLANG_14]
    if platform.machine().lower() not in ("arm64", "aarch64"):
        return [PLAIN, GCC_X86, CLANG_X86, *gcc, *clang]
    return [*gcc, *clang, PLAIN] if sys.platform == "linux" else [*clang, *gcc, PLAIN]
