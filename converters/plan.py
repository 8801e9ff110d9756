"""The plan of a conversion: every output tensor, decided and checked before a byte is written.

A `ConversionPlan` is made from headers and configs alone, within a second. All problems are reported at once: tensors
that are missing, misshapen or unknown, and types that need an importance matrix.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamalite.converters import mix
from llamalite.converters.checkpoints import DTYPE_BYTES, Checkpoint, SourceTensor
from llamalite.converters.checkpoints.gguf_source import QuantizedTensor
from llamalite.converters.importance import Importance
from llamalite.converters.llama import LlamaConfig, TensorRule
from llamalite.errors import CheckpointError, QuantizationError, UnsupportedArchitectureError
from llamalite.native.quantize import needs_importance
from llamalite.quant_types import FILE_TYPES, NO_WEIGHTS, TENSOR_TYPES, FileType, TensorType

# Buffers in old checkpoints that follow from the config (conversion/base.py, prepare_tensors).
_IGNORED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
_VALUE_HEAD = "v_head."  # what training by reinforcement adds (trl); no answer depends on it, and transformers drops it


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor: the source of its weights, how they change on the way, and its type in each output file.

    `stored` is its type in llama.cpp's unquantized GGUF: weights pass through it, as they do there. `types` has an
    entry for each output file. Either `source` or `values` is set.
    """

    name: str
    shape: tuple[int, ...]
    stored: TensorType
    types: tuple[mix.Choice, ...]
    source: SourceTensor | None = None
    values: npt.NDArray[np.float32] | None = None
    n_head: int | None = None

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    def n_bytes(self, i_output: int) -> int:
        return math.prod(self.shape[:-1]) * self.types[i_output].type.row_bytes(self.shape[-1])


@dataclass(frozen=True)
class QuantizeParams:
    """What decides the tensors' types, besides the file type.

    `importance` is an importance matrix. `overrides` are pairs of a regular expression and a type; the first one whose
    expression matches in a tensor's name decides (llama-quantize's ``--tensor-type``). With `pure` every tensor gets
    the file type's default. Weights that are already quantized in a GGUF source change their type only with
    `allow_requantize`.
    """

    importance: Importance | None = None
    overrides: Sequence[tuple[str, TensorType]] = ()
    pure: bool = False
    allow_requantize: bool = False

    def __post_init__(self) -> None:
        for pattern, kind in self.overrides:
            if kind.name in NO_WEIGHTS:
                raise ValueError(f"{pattern}={kind.name}: weights cannot be stored as {kind.name}")


@dataclass(frozen=True)
class ConversionPlan:
    """Everything that a conversion will do, in llama.cpp's order of tensors, for one or several output files."""

    config: LlamaConfig | None
    """None for a GGUF source, whose keys are copied."""
    file_types: tuple[FileType, ...]
    stored: FileType
    tensors: tuple[PlannedTensor, ...]
    importance: Mapping[str, npt.NDArray[np.float32]]

    @property
    def n_params(self) -> int:
        return sum(tensor.n_weights for tensor in self.tensors)

    @property
    def source_bytes(self) -> int:
        return sum(tensor.source.n_bytes for tensor in self.tensors if tensor.source)

    def tensor_bytes(self, i_output: int) -> int:
        return sum(tensor.n_bytes(i_output) for tensor in self.tensors)

    def bits_per_weight(self, i_output: int) -> float:
        """The average number of bits per weight in one output file, tensors only, as llama-quantize prints it."""
        return 8 * self.tensor_bytes(i_output) / self.n_params

    def bits_without_fallbacks(self, i_output: int) -> float:
        """What `bits_per_weight` would be if every row filled the blocks of its intended type."""
        bits = 0.0
        for tensor in self.tensors:
            choice = tensor.types[i_output]
            bits += (choice.instead_of or choice.type).bits_per_weight * tensor.n_weights
        return bits / self.n_params

    def fallbacks(self, i_output: int) -> dict[str, mix.Choice]:
        """The tensors whose row length ruled out their intended type."""
        choices = {tensor.name: tensor.types[i_output] for tensor in self.tensors}
        return {name: choice for name, choice in choices.items() if choice.instead_of}


def make_plan(checkpoint: Checkpoint, file_types: Sequence[FileType], params: QuantizeParams) -> ConversionPlan:
    """Return the plan for `checkpoint`; `CheckpointError` lists everything that does not fit its config.

    A GGUF source keeps its names, keys and row order. `QuantizationError` if one of its tensors is already quantized
    and would change its type, unless `params` allow that.
    """
    config = None
    if checkpoint.carried is not None:
        pairs = [(TensorRule(name, name, tensor.shape), tensor) for name, tensor in checkpoint.tensors.items()]
        model = checkpoint.carried.shape
    else:
        config = LlamaConfig.from_dict(checkpoint.config)
        pairs = _match(checkpoint, list(config.tensor_rules(permuted=checkpoint.permuted)))
        model = config.shape
    stored = _majority([tensor for _, tensor in pairs])
    shapes = [
        mix.TensorShape(rule.name, tensor.shape, _stored_type(checkpoint, rule, tensor, stored))
        for rule, tensor in pairs
    ]
    factors = config.rope_factors() if config is not None else None
    if factors is not None:
        shapes.append(mix.TensorShape("rope_freqs.weight", factors.shape, TENSOR_TYPES["F32"]))
    choices = [
        mix.choose_types(
            file_type,
            shapes,
            model,
            has_importance=params.importance is not None,
            overrides=params.overrides,
            pure=params.pure,
        )
        for file_type in file_types
    ]
    importance = _fitting_importance(params.importance, shapes)
    for file_type, chosen in zip(file_types, choices, strict=True):
        _refuse_missing_importance(file_type, shapes, chosen, params.importance)
        if not params.allow_requantize:
            _refuse_requantizing(checkpoint, chosen)
    by_name = {rule.name: (rule, tensor) for rule, tensor in pairs}
    tensors = []
    for shape in sorted(shapes, key=lambda s: mix.layer_order(s.name)):
        types = tuple(chosen[shape.name] for chosen in choices)
        if shape.name in by_name:
            rule, source = by_name[shape.name]
            stored_type = TENSOR_TYPES["F32"] if isinstance(source, QuantizedTensor) else shape.stored
            planned = PlannedTensor(shape.name, shape.shape, stored_type, types, source, n_head=rule.n_head)
        else:
            planned = PlannedTensor(shape.name, shape.shape, shape.stored, types, values=factors)
        tensors.append(planned)
    return ConversionPlan(config, tuple(file_types), stored, tuple(tensors), importance)


def _stored_type(checkpoint: Checkpoint, rule: TensorRule, tensor: SourceTensor, stored: FileType) -> TensorType:
    """Return the type in the file that llama-quantize would read: the GGUF source, or the converter's result."""
    if isinstance(tensor, QuantizedTensor):
        return tensor.type
    if checkpoint.carried is not None:
        return TENSOR_TYPES[tensor.dtype]
    return TENSOR_TYPES["F32"] if len(rule.shape) < 2 else stored.tensor_type


def _refuse_requantizing(checkpoint: Checkpoint, choices: Mapping[str, mix.Choice]) -> None:
    for name, tensor in checkpoint.tensors.items():
        if isinstance(tensor, QuantizedTensor) and choices[name].type != tensor.type:
            raise QuantizationError(
                f"{name} is {tensor.type.name} already and would become {choices[name].type.name}: weights quantized "
                "twice are worse than once; convert the original model, or pass --allow-requantize"
            )


def _match(checkpoint: Checkpoint, rules: Sequence[TensorRule]) -> list[tuple[TensorRule, SourceTensor]]:
    """Pair each rule with its tensor; `CheckpointError` lists all that are missing, misshapen or unknown."""
    problems: list[str] = []
    pairs = []
    unknown = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.endswith(_IGNORED) and not name.startswith(_VALUE_HEAD)
    }
    for rule in rules:
        tensor = unknown.pop(rule.source, None)
        if tensor is None:
            if not rule.optional:
                problems.append(f"{rule.source} is missing")
            continue
        if tensor.dtype not in DTYPE_BYTES:
            raise UnsupportedArchitectureError(
                f"{rule.source} has dtype {tensor.dtype}: the checkpoint is already quantized; "
                f"llamalite supports {', '.join(DTYPE_BYTES)}"
            )
        if tensor.shape != rule.shape:
            problems.append(f"{rule.source} has shape {list(tensor.shape)}, config.json implies {list(rule.shape)}")
        pairs.append((rule, tensor))
    problems += [f"{name} is not a tensor of a LLaMA model" for name in unknown]
    if "lm_head.weight" not in checkpoint.tensors and checkpoint.config.get("tie_word_embeddings") is False:
        problems.append("lm_head.weight is missing, and config.json says that the embeddings are not tied")
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{checkpoint.folder}: {'; '.join(problems[:8])}{more}")
    return pairs


def _majority(tensors: Sequence[SourceTensor]) -> FileType:
    """Return the type to which llama.cpp's first step would convert: the dtype of most weights, F32 for F64."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts["F32" if tensor.dtype == "F64" else tensor.dtype] += math.prod(tensor.shape)
    return FILE_TYPES[counts.most_common(1)[0][0]]


def _fitting_importance(
    importance: Importance | None, shapes: Sequence[mix.TensorShape]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the matrix's rows for these tensors; `QuantizationError` for a row of another length.

    A wrong row for the embedding is ignored, as in llama-quantize (src/llama-quant.cpp): llama-imatrix cannot see which
    tokens were read.
    """
    fitting = {}
    for tensor in shapes:
        row = importance.rows.get(tensor.name) if importance else None
        if importance is None or row is None or len(tensor.shape) < 2:
            continue
        if row.shape == (tensor.n_columns,):
            fitting[tensor.name] = row
        elif tensor.name != "token_embd.weight":
            raise QuantizationError(
                f"{importance.file} has {row.size} values for {tensor.name}, whose rows have {tensor.n_columns}: "
                "it was made from another model"
            )
    return fitting


def _refuse_missing_importance(
    file_type: FileType,
    shapes: Sequence[mix.TensorShape],
    choices: Mapping[str, mix.Choice],
    importance: Importance | None,
) -> None:
    available = frozenset(importance.rows if importance else ())
    missing = mix.importance_missing(choices, file_type, available)
    missing += [
        tensor.name
        for tensor in shapes
        if tensor.name not in available
        and tensor.name not in missing
        and choices[tensor.name].type != tensor.stored
        and needs_importance(choices[tensor.name].type)
    ]
    if missing:
        others = f" and {len(missing) - 4} more tensors" if len(missing) > 4 else ""
        advice = f", which {importance.file} lacks" if importance else ": pass one with --imatrix"
        raise QuantizationError(
            f"{file_type.name} needs an importance matrix for {', '.join(missing[:4])}{others}{advice}"
        )
