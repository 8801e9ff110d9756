"""Where a compiler contracts a product and a sum into one instruction, which rounds once. No Numba in here.

ARM64 has such instructions always, x86-64 where FMA is asked for, and compilers use them for ``a * b + c`` in C unless
they are told not to. ggml doesn't tell them. Which of its sums they contract depends on the compiler:

- clang contracts what stands in one statement;
- GCC contracts across statements and inlined functions, but no product that something else needs too;
- both leave a sum alone whose loop they make vector code of: there products are rounded, and then added in order.

So each place in ggml-quants.c is contracted or not, and a `Contraction` says which are. The kernels have one text, in
which ``mul_add`` and its siblings (fused.py) name their place.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

STATEMENT = 1 << 0  # a product and a sum in one statement, unless it is one of those below
ACROSS = 1 << 1  # a product that an inlined function or a later statement adds to: nearest_int(a * b), `x0 + 8.5f`
SECOND = 1 << 2  # of `sum_w * sum_xl - sum_x * sum_l` (make_qkx2_quants, make_qkx3_quants) the second, not the first
LEVELS = 1 << 3  # sum_l of a candidate (make_qkx2_quants, make_qkx3_quants), whose product two other sums need
RANGES = 1 << 4  # sum_l2 and sum_xl of a candidate, in the same place
SYMMETRIC = 1 << 5  # sumlx and suml2 of a candidate (make_qx_quants)
FITTED = 1 << 6  # the sums over all scales (make_qp_quants), up to where it moves one after the other
SQUARES = 1 << 7  # the sum of the squares of a block (quantize_row_q2_K_impl and its siblings)


@dataclass(frozen=True)
class Contraction:
    """`places` are those where a product and a sum are one instruction."""

    name: str
    places: int = 0


PLAIN = Contraction("none")
GCC = Contraction("GCC's for ARM64", STATEMENT | ACROSS | SECOND | RANGES | FITTED | SQUARES)
CLANG = Contraction("clang's for ARM64", STATEMENT | SYMMETRIC | SQUARES)
GCC_X86 = Contraction("GCC's for x86-64", STATEMENT | ACROSS | SECOND | RANGES | FITTED)
CLANG_X86 = Contraction("clang's for x86-64", STATEMENT | LEVELS | RANGES | SYMMETRIC | FITTED | SQUARES)


def by_likelihood() -> list[Contraction]:
    """Return the contractions that are known, the one first which this machine's ggml most likely has."""
    if platform.machine().lower() not in ("arm64", "aarch64"):
        return [PLAIN, GCC_X86, CLANG_X86, GCC, CLANG]
    if sys.platform == "linux":
        return [GCC, CLANG, CLANG_X86, GCC_X86, PLAIN]
    return [CLANG, CLANG_X86, GCC, GCC_X86, PLAIN]
