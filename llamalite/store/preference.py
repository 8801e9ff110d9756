"""Which type is taken where nobody names one: of the types of a model that lie in a folder, or in a repository.

Q4_K_M, which is also what checkpoints are converted to: the smallest type whose loss people hardly notice. Where there
is none, another type of 4 bits, which is about as small and as fast; else one of more bits, the smaller the sooner, as
it loses less and only takes more room. Types below 4 bits come last, the larger ones first: their loss shows.
"""

from __future__ import annotations

from collections.abc import Collection

from llamalite.quant_types import FILE_TYPES

DEFAULT_TYPE = "Q4_K_M"

_FOUR_BITS_AND_MORE = (
    *(DEFAULT_TYPE, "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0"),
    *("Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q6_K", "Q8_0", "BF16", "F16", "F32"),
)
# The table of types itself goes from many bits to few.
TYPES_BY_PREFERENCE = (*_FOUR_BITS_AND_MORE, *(name for name in FILE_TYPES if name not in _FOUR_BITS_AND_MORE))


def preferred(types: Collection[str]) -> str | None:
    """Return the one of `types` to take; None where none of them is known.

    >>> preferred(["F16", "Q8_0", "Q2_K"])
    'Q8_0'
    """
    return next((qtype for qtype in TYPES_BY_PREFERENCE if qtype in types), None)
