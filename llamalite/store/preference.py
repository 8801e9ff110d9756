"""Chooses the type to use if none is given, from those of a model in the models folder or in a repository.

The first choice is Q4_K_M, which checkpoints are converted to as well: the smallest type with hardly noticeable loss.
Next come the other types of 4 bits, which are about as small and as fast. Then come types of more bits, the smaller
ones first: they lose less, and only take more space. Types below 4 bits come last, the larger ones first: their loss
is noticeable.
"""

from __future__ import annotations

from collections.abc import Collection

from llamalite.quant_types import FILE_TYPES

DEFAULT_TYPE = "Q4_K_M"

_FOUR_BITS_AND_MORE = (
    *(DEFAULT_TYPE, "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0"),
    *("Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q6_K", "Q8_0", "BF16", "F16", "F32"),
)
# The table of types is sorted from many bits to few.
TYPES_BY_PREFERENCE = (*_FOUR_BITS_AND_MORE, *(name for name in FILE_TYPES if name not in _FOUR_BITS_AND_MORE))


def preferred(types: Collection[str]) -> str | None:
    """Return the type to use among `types`; None if none of them is known.

    >>> preferred(["F16", "Q8_0", "Q2_K"])
    'Q8_0'
    """
    return next((qtype for qtype in TYPES_BY_PREFERENCE if qtype in types), None)
