"""One table of GGUF's tensor types and file types: ids, block sizes, bytes per block, bits per weight.

    >>> TENSOR_TYPES["Q4_K"].bits_per_weight
    4.5
    >>> FILE_TYPES["Q4_K_M"].tensor_type.name, FILE_TYPES["Q4_K_M"].ftype
    ('Q4_K', 15)

A *tensor type* is a layout of one tensor's bytes (``enum ggml_type``, ggml.h). A *file type* is what users ask for
(``enum llama_ftype``, llama.h): a default tensor type, and rules by which some tensors get another one. Those rules are
in `llamalite.converters.mix`; this module has only numbers, which a test compares with the installed library's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """A layout of weights: blocks of `block_size` weights in `block_bytes` bytes each."""

    name: str
    ggml_type: int
    block_size: int
    block_bytes: int
    scales: tuple[int, ...] = ()
    """Offsets in bytes of the block's float16 scales, which ``ggml_validate_row_data`` checks for NaN and Inf."""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size

    @property
    def is_quantized(self) -> bool:
        return self.block_size > 1

    def row_bytes(self, n_columns: int) -> int:
        """Return the bytes of a row (``ggml_row_size``, ggml.c); ``ValueError`` if it does not fill whole blocks."""
        if n_columns % self.block_size:
            raise ValueError(f"a row of {n_columns} weights does not fill blocks of {self.block_size} ({self.name})")
        return n_columns // self.block_size * self.block_bytes


@dataclass(frozen=True)
class FileType:
    """A type of whole files, such as Q4_K_M: its default tensor type, its number in ``general.file_type``, its use."""

    name: str
    ftype: int
    tensor_type: TensorType
    about: str


def _tensor_types(*rows: tuple[str, int, int, int, tuple[int, ...]]) -> dict[str, TensorType]:
    return {row[0]: TensorType(*row) for row in rows}


TENSOR_TYPES = _tensor_types(
    ("F32", 0, 1, 4, ()),
    ("F16", 1, 1, 2, ()),
    ("BF16", 30, 1, 2, ()),
    ("Q4_0", 2, 32, 18, (0,)),
    ("Q4_1", 3, 32, 20, (0, 2)),
    ("Q5_0", 6, 32, 22, (0,)),
    ("Q5_1", 7, 32, 24, (0, 2)),
    ("Q8_0", 8, 32, 34, (0,)),
    ("Q2_K", 10, 256, 84, (80, 82)),
    ("Q3_K", 11, 256, 110, (108,)),
    ("Q4_K", 12, 256, 144, (0, 2)),
    ("Q5_K", 13, 256, 176, (0, 2)),
    ("Q6_K", 14, 256, 210, (208,)),
    ("IQ2_XXS", 16, 256, 66, (0,)),
    ("IQ2_XS", 17, 256, 74, (0,)),
    ("IQ3_XXS", 18, 256, 98, (0,)),
    ("IQ1_S", 19, 256, 50, (0,)),
    ("IQ4_NL", 20, 32, 18, (0,)),
    ("IQ3_S", 21, 256, 110, (0,)),
    ("IQ2_S", 22, 256, 82, (0,)),
    ("IQ4_XS", 23, 256, 136, (0,)),
    ("IQ1_M", 29, 256, 56, ()),
    ("TQ1_0", 34, 256, 54, (52,)),
    ("TQ2_0", 35, 256, 66, (64,)),
    ("MXFP4", 39, 32, 17, ()),
    ("NVFP4", 40, 64, 36, ()),
    ("Q1_0", 41, 128, 18, (0,)),
    ("Q2_0", 42, 64, 18, (0,)),
    # Not for a LLaMA's weights: tables and intermediate forms, which files of other models may hold.
    ("Q8_1", 9, 32, 36, (0, 2)),
    ("Q8_K", 15, 256, 292, ()),
    ("I8", 24, 1, 1, ()),
    ("I16", 25, 1, 2, ()),
    ("I32", 26, 1, 4, ()),
    ("I64", 27, 1, 8, ()),
    ("F64", 28, 1, 8, ()),
)

NO_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})
"""Types that llama.cpp cannot multiply, and on which ``ggml_quantize_chunk`` (ggml.c) aborts the process."""

WEIGHT_TYPES = tuple(name for name in TENSOR_TYPES if name not in NO_WEIGHTS)

TENSOR_TYPES_BY_ID = {t.ggml_type: t for t in TENSOR_TYPES.values()}


def _file_types(*rows: tuple[str, int, str, str]) -> dict[str, FileType]:
    return {name: FileType(name, ftype, TENSOR_TYPES[tensor], about) for name, ftype, tensor, about in rows}


FILE_TYPES = _file_types(
    ("F32", 0, "F32", "every weight as 32-bit float"),
    ("F16", 1, "F16", "16-bit float, 5 bits of exponent"),
    ("BF16", 32, "BF16", "16-bit float, 8 bits of exponent: what most checkpoints hold"),
    ("Q8_0", 7, "Q8_0", "8 bits: next to no loss"),
    ("Q6_K", 18, "Q6_K", "6 bits: very small loss"),
    ("Q5_K_M", 17, "Q5_K", "5 bits, 6 for the tensors that need them"),
    ("Q5_K_S", 16, "Q5_K", "5 bits"),
    ("Q5_1", 9, "Q5_1", "5 bits, an older layout with an offset"),
    ("Q5_0", 8, "Q5_0", "5 bits, an older layout"),
    ("Q4_K_M", 15, "Q4_K", "4 bits, 6 for the tensors that need them: the usual choice"),
    ("Q4_K_S", 14, "Q4_K", "4 bits, 5 for the first layers"),
    ("Q4_1", 3, "Q4_1", "4 bits, an older layout with an offset"),
    ("Q4_0", 2, "Q4_0", "4 bits, an older layout: fast on Arm"),
    ("IQ4_NL", 25, "IQ4_NL", "4 bits on a curved scale, for rows that are not a multiple of 256"),
    ("IQ4_XS", 30, "IQ4_XS", "4 bits on a curved scale, a little smaller than Q4_K_S"),
    ("Q3_K_L", 13, "Q3_K", "3 bits, 5 for the tensors that need them"),
    ("Q3_K_M", 12, "Q3_K", "3 bits, 4 and 5 for the tensors that need them"),
    ("Q3_K_S", 11, "Q3_K", "3 bits: a clear loss"),
    ("Q2_K", 10, "Q2_K", "2 bits, 3 and 4 for the tensors that need them: a large loss"),
    ("Q2_K_S", 21, "Q2_K", "2 bits; needs an importance matrix"),
    ("IQ3_M", 27, "IQ3_S", "3.7 bits from a codebook"),
    ("IQ3_S", 26, "IQ3_S", "3.4 bits from a codebook"),
    ("IQ3_XS", 22, "IQ3_S", "3.3 bits from a codebook; needs an importance matrix"),
    ("IQ3_XXS", 23, "IQ3_XXS", "3.1 bits from a codebook; needs an importance matrix"),
    ("IQ2_M", 29, "IQ2_S", "2.7 bits from a codebook; needs an importance matrix"),
    ("IQ2_S", 28, "IQ2_XS", "2.5 bits from a codebook; needs an importance matrix"),
    ("IQ2_XS", 20, "IQ2_XS", "2.3 bits from a codebook; needs an importance matrix"),
    ("IQ2_XXS", 19, "IQ2_XXS", "2.1 bits from a codebook; needs an importance matrix"),
    ("IQ1_M", 31, "IQ1_M", "1.8 bits from a codebook; needs an importance matrix"),
    ("IQ1_S", 24, "IQ1_S", "1.6 bits from a codebook; needs an importance matrix"),
    ("TQ2_0", 37, "TQ2_0", "ternary weights, 2.1 bits: only for models trained ternary"),
    ("TQ1_0", 36, "TQ1_0", "ternary weights, 1.7 bits: only for models trained ternary"),
    ("MXFP4_MOE", 38, "MXFP4", "4-bit floats for experts; a dense model becomes Q8_0"),
    ("Q2_0", 41, "Q2_0", "2 bits in blocks of 64: only for models trained for it"),
    ("Q1_0", 40, "Q1_0", "1 bit in blocks of 128: only for models trained for it"),
)


ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Names of tensor types that stand for a file type, as in llama-quantize (``QUANT_OPTIONS``, quantize.cpp)."""


def type_name(name: str) -> str:
    """Return `name` as the table of file types spells it: in upper case, an alias replaced by its full name."""
    return ALIASES.get(name.upper(), name.upper())


def file_type(name: str) -> FileType:
    """Return the file type `name`, an alias included, in upper or lower case; ``ValueError`` names the known types."""
    try:
        return FILE_TYPES[type_name(name)]
    except KeyError:
        near = nearest_type(name)
        hint = f" (did you mean {near}?)" if near else ""
        raise ValueError(f"unknown type {name!r}{hint}; known are {', '.join(FILE_TYPES)}") from None


def nearest_type(name: str) -> str | None:
    """Return the file type that `name` was probably meant to be; None if there is no similar one.

    >>> nearest_type("q4"), nearest_type("Q6_K_M"), nearest_type("q4km"), nearest_type("gptq")
    ('Q4_K_M', 'Q6_K', 'Q4_K_M', None)
    """
    import difflib  # needed for mistyped names only

    wanted = name.upper()
    longer = [known for known in FILE_TYPES if wanted and known.startswith(wanted)]
    usual = [known for known in longer if known.endswith("_M")]
    shorter = [known for known in FILE_TYPES if wanted.startswith(known)]
    return next(iter([*usual, *longer, *shorter, *difflib.get_close_matches(wanted, FILE_TYPES, n=1)]), None)
