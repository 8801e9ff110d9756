"""Which tensor gets which type: the meaning of a file type such as Q4_K_M, tensor by tensor.

    Q4_K_M, 22 layers:  blk.0.attn_v.weight  → Q6_K      blk.3.attn_v.weight → Q4_K
                        blk.0.ffn_down.weight → Q6_K     output.weight       → Q6_K
                        blk.0.attn_norm.weight → F32     (one-dimensional, not quantized)

The rules are llama.cpp's (src/llama-quant.cpp, ``llama_tensor_get_type_impl``, ``tensor_type_fallback``,
``tensor_allows_quantization``), for the dense LLaMA architecture: experts and other families' exceptions are left out.
They give more bits to the value projections and the second feed-forward matrix, most of all in the first and last
eighth of the layers, and fall back to another type where a row does not fill the type's blocks. This module knows only
names and shapes; it reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamalite.errors import QuantizationError
from llamalite.quant_types import TENSOR_TYPES, FileType, TensorType

_LAYER = re.compile(r"blk\.(\d+)\.")
_MAX_PATTERN = 1000

# tensor_type_fallback: for rows that do not fill blocks of 256 (Q2_0: 64).
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_OUTPUT_Q5_K = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS"})
_EMBEDDING = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K"),
}
_ATTN_OUTPUT = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
_VERY_LOW = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"})
_NEEDS_IMPORTANCE = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})


@dataclass(frozen=True)
class TensorShape:
    """A tensor of the unquantized GGUF: its name, its shape in NumPy's order, its stored type."""

    name: str
    shape: tuple[int, ...]
    stored: TensorType

    @property
    def n_columns(self) -> int:
        return self.shape[-1]


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a model that the rules depend on."""

    n_layer: int
    n_head: int
    n_head_kv: int

    @property
    def n_gqa(self) -> int:
        return self.n_head // self.n_head_kv if self.n_head_kv else 0

    @property
    def is_70b(self) -> bool:
        """Whether it is like Llama 2 70B: 80 layers, grouped heads (src/models/llama.cpp, ``load_arch_hparams``)."""
        return self.n_layer == 80 and self.n_head != self.n_head_kv


@dataclass(frozen=True)
class Choice:
    """A tensor's type; and the intended type, if the tensor's row length ruled that out."""

    type: TensorType
    instead_of: TensorType | None = None


def layer_order(name: str) -> tuple[int, bytes]:
    """The sort key of llama.cpp's loader (``weight_name_comparer``): by layer (none comes first), then by bytes."""
    match = _LAYER.match(name)
    return (int(match[1]) if match else -1, name.encode())


def allows_quantization(tensor: TensorShape) -> bool:
    """Whether llama.cpp quantizes this tensor at all: a matrix whose name ends in ``weight`` and that is not a norm."""
    return len(tensor.shape) >= 2 and tensor.name.endswith("weight") and "_norm.weight" not in tensor.name


def requires_importance(name: str, chosen: TensorType, file_type: FileType) -> bool:
    """Whether llama.cpp refuses this type without an importance matrix (``tensor_requires_imatrix``)."""
    if name in ("token_embd.weight", "output.weight"):
        return False
    return chosen.name in _NEEDS_IMPORTANCE or (chosen.name == "Q2_K" and file_type.name == "Q2_K_S")


def choose_types(
    file_type: FileType,
    tensors: Sequence[TensorShape],
    model: ModelShape,
    *,
    has_importance: bool = False,
    overrides: Sequence[tuple[str, TensorType]] = (),
    pure: bool = False,
) -> dict[str, Choice]:
    """Return the type of every tensor of a file of type `file_type`, in llama.cpp's order of tensors.

    `overrides` are pairs of a pattern (`name_pattern`) and a type; the first pattern found in a tensor's name replaces
    the rules (llama-quantize's ``--tensor-type``). With `pure` every tensor gets the file type's default.
    """
    rules = _Rules(file_type, model, has_importance, tensors)
    patterns = [(name_pattern(pattern), kind) for pattern, kind in overrides]
    chosen = {}
    for tensor in sorted(tensors, key=lambda t: layer_order(t.name)):
        if not allows_quantization(tensor):
            chosen[tensor.name] = Choice(tensor.stored)
        elif not file_type.tensor_type.is_quantized:
            chosen[tensor.name] = Choice(file_type.tensor_type)
        else:
            kind = next((kind for pattern, kind in patterns if pattern.search(tensor.name)), None)
            if kind is None:
                kind = file_type.tensor_type if pure else rules.type_of(tensor)
            chosen[tensor.name] = _fit(tensor, kind)
    return chosen


def name_pattern(source: str) -> re.Pattern[str]:
    """Compile a pattern of ``--tensor-type``, to be searched for in tensors' names; ``ValueError`` if it is invalid.

    llama-quantize uses ``std::regex`` (ECMAScript), whose usual patterns mean the same in Python. An exception is
    ``[[:digit:]]``, which Python reads as a set of other characters: it is refused.
    """
    if len(source) > _MAX_PATTERN:
        raise ValueError(f"the pattern has {len(source):,} characters, expected at most {_MAX_PATTERN:,}")
    if "[:" in source:
        raise ValueError("named classes are not supported: write [0-9] for [[:digit:]]")
    try:
        return re.compile(source, re.ASCII)
    except RecursionError:
        raise ValueError("too many nested parentheses") from None
    except (re.error, OverflowError) as error:
        raise ValueError(str(error)) from None


def overrides_without_effect(tensors: Sequence[TensorShape], overrides: Sequence[tuple[str, TensorType]]) -> list[str]:
    """Return a message for each override that changes no tensor: nothing matches, or earlier ones decide."""
    patterns = [name_pattern(pattern) for pattern, _ in overrides]
    matches = [  # for each matrix, the patterns that match it, in the order given
        [i for i, pattern in enumerate(patterns) if pattern.search(tensor.name)]
        for tensor in tensors
        if allows_quantization(tensor)
    ]
    messages = []
    for i, (source, kind) in enumerate(overrides):
        deciding = {matching[0] for matching in matches if i in matching}
        if not deciding:
            messages.append(f"{source}={kind.name} matches no matrix of this model")
        elif i not in deciding:
            first = overrides[min(deciding)]
            messages.append(
                f"{source}={kind.name} matches only what earlier patterns match, such as {first[0]}={first[1].name}"
            )
    return messages


def _fit(tensor: TensorShape, kind: TensorType) -> Choice:
    if tensor.n_columns % kind.block_size == 0:
        return Choice(kind)
    if kind.block_size > 32 and kind.name not in _FALLBACK:
        raise QuantizationError(
            f"{tensor.name} has rows of {tensor.n_columns} weights, but {kind.name} needs multiples of "
            f"{kind.block_size} and has no fallback: choose another type"
        )
    smaller = TENSOR_TYPES[_FALLBACK.get(kind.name, kind.name)]
    return Choice(smaller if tensor.n_columns % smaller.block_size == 0 else TENSOR_TYPES["F16"], instead_of=kind)


class _Rules:
    """``llama_tensor_get_type_impl`` for a dense LLaMA; its counters advance tensor by tensor, in layer order."""

    def __init__(self, file_type: FileType, model: ModelShape, has_importance: bool, tensors: Sequence[TensorShape]):
        names = [tensor.name for tensor in tensors]
        self.ftype = file_type.name
        self.default = file_type.tensor_type
        self.model = model
        self.has_importance = has_importance
        self.is_tied = "output.weight" not in names
        self.n_attn_v = sum("attn_v.weight" in name for name in names)
        self.i_attn_v = self.i_ffn_down = self.i_ffn_gate = self.i_ffn_up = 0

    def type_of(self, tensor: TensorShape) -> TensorType:
        return TENSOR_TYPES[self._name_of_type(tensor)]

    def _name_of_type(self, tensor: TensorShape) -> str:
        name, ftype = tensor.name, self.ftype
        if name == "output.weight" or (self.is_tied and name == "token_embd.weight"):
            return self._output(tensor)
        if ftype == "MXFP4_MOE":  # only experts become MXFP4, and a dense model has none
            return "Q8_0"
        if name == "token_embd.weight":
            return _EMBEDDING.get(ftype, self.default.name)
        if ftype in _VERY_LOW:
            return self._very_low(name)
        if "attn_v.weight" in name:
            return self._attn_v()
        if "attn_k.weight" in name or "attn_q.weight" in name:
            return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(ftype, self.default.name)
        if "attn_output.weight" in name:
            return _ATTN_OUTPUT.get(ftype, self.default.name)
        if "ffn_down" in name:
            return self._ffn_down()
        if "ffn_gate" in name:
            self.i_ffn_gate += 1
            return self._ffn_gate_or_up(self.i_ffn_gate - 1)
        if "ffn_up" in name:
            self.i_ffn_up += 1
            return self._ffn_gate_or_up(self.i_ffn_up - 1)
        return self.default.name

    def _output(self, tensor: TensorShape) -> str:
        if self.ftype == "MXFP4_MOE" or tensor.n_columns % self.default.block_size:
            return "Q8_0"
        if self.ftype in _OUTPUT_Q5_K:
            return "Q5_K"
        return "Q8_0" if self.default.name == "Q8_0" else "Q6_K"

    def _very_low(self, name: str) -> str:
        richer = "IQ3_S" if self.ftype in ("IQ2_S", "IQ2_M") else "Q2_K"
        if "attn_v.weight" in name:
            self.i_attn_v += 1
            return "Q4_K" if self.model.n_gqa >= 4 else richer
        if "ffn_down" in name:
            self.i_ffn_down += 1
            return richer if self.i_ffn_down - 1 < self.model.n_layer // 8 else self.default.name
        if "attn_output.weight" in name:
            if self.ftype in ("IQ1_S", "IQ1_M"):
                return "IQ2_XXS"
            return "IQ3_S" if self.ftype in ("IQ2_S", "IQ2_M") else self.default.name
        return self.default.name

    def _attn_v(self) -> str:
        ftype, i, grouped = self.ftype, self.i_attn_v, self.model.n_gqa >= 4
        self.i_attn_v += 1
        kind = self.default.name
        if ftype == "Q2_K":
            kind = "Q4_K" if grouped else "Q3_K"
        elif ftype == "IQ3_XXS":
            kind = "Q4_K" if grouped else "IQ3_XXS" if self.has_importance else "IQ3_S"
        elif ftype == "IQ3_M" or (grouped and ftype in ("Q2_K_S", "IQ3_XS", "IQ3_S")):
            kind = "Q4_K"
        elif ftype == "Q3_K_M":
            kind = "Q5_K" if i < 2 else "Q4_K"
        elif ftype == "Q3_K_L" or (grouped and ftype in ("IQ4_NL", "IQ4_XS")) or (ftype == "Q4_K_S" and i < 4):
            kind = "Q5_K"
        elif ftype in ("Q4_K_M", "Q5_K_M") and _wants_more_bits(i, self.n_attn_v):
            kind = "Q6_K"
        if self.model.is_70b and kind in ("Q3_K", "Q4_K"):
            # Eight query heads share one value head there, so more bits cost almost nothing.
            kind = "Q5_K"
        return kind

    def _ffn_down(self) -> str:
        ftype, i, n = self.ftype, self.i_ffn_down, self.model.n_layer
        self.i_ffn_down += 1
        first_eighth = i < n // 8
        if ftype == "Q2_K":
            return "Q3_K"
        if ftype == "Q3_K_M":
            return "Q5_K" if i < n // 16 else "Q4_K"
        if ftype == "Q3_K_L":
            return "Q5_K"
        if ftype == "IQ3_XXS" and not self.has_importance:
            return "Q4_K" if first_eighth else "Q3_K"
        if ftype in ("Q4_K_M", "Q5_K_M") and _wants_more_bits(i, n):
            return "Q6_K"
        if first_eighth:
            if ftype in ("Q2_K_S", "IQ3_M"):
                return "Q4_K"
            if ftype == "Q4_K_S" or (ftype in ("IQ4_NL", "IQ4_XS") and not self.has_importance):
                return "Q5_K"
            if ftype in ("Q4_0", "Q5_0") and self.has_importance:
                return "Q4_1" if ftype == "Q4_0" else "Q5_1"
        return self.default.name

    def _ffn_gate_or_up(self, i: int) -> str:
        n = self.model.n_layer
        return "IQ3_XXS" if self.ftype == "IQ3_XS" and n // 8 <= i < 7 * n // 8 else self.default.name


def _wants_more_bits(i_layer: int, n_layers: int) -> bool:
    eighth = n_layers // 8
    return i_layer < eighth or i_layer >= 7 * n_layers // 8 or (i_layer - eighth) % 3 == 2


def importance_missing(
    choices: Mapping[str, Choice], file_type: FileType, available: Sequence[str] | frozenset[str] = ()
) -> list[str]:
    """Return the tensors that need a row of an importance matrix and have none in `available`."""
    return [
        name
        for name, choice in choices.items()
        if requires_importance(name, choice.type, file_type) and name not in available
    ]
