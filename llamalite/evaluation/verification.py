"""Checks that a GGUF file holds what its checkpoint holds: keys, template, tensors, tokens and logits.

    report = verify("tiny.Q4_K_M.gguf", "./TinyLlama-1.1B")
    report.ok, [check.name for check in report.checks]

- keys: the ``llama.*`` and ``tokenizer.*`` keys are those that a conversion would write, bit for bit;
- template: the chat template is the checkpoint's;
- tensors: the checkpoint is converted again to the file's types, and the result is compared instead of written;
- tokens: both tokenizers give the same tokens for a few thousand texts (`llamalite.converters.vocabulary.probe`);
- logits: for a fixed text, llama.cpp in exact mode agrees with `llamalite.converters.reference` on the same weights.

Neither torch nor transformers is needed. A file made with an importance matrix, or with a ggml that another compiler
built, may differ in its bytes: its tensors must then agree within the error of their types.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.converters import QuantizeParams, header, pipeline, reference
from llamalite.converters.checkpoints import Checkpoint, open_checkpoint
from llamalite.converters.checkpoints.gguf_source import QuantizedTensor
from llamalite.converters.checkpoints.interface import FileTensor, SourceFile
from llamalite.converters.mix import Choice
from llamalite.converters.plan import ConversionPlan, make_plan
from llamalite.converters.vocabulary import probe, read_vocabulary
from llamalite.errors import VerificationError
from llamalite.evaluation.divergence import Divergence, TokenDivergence, diverge, summarize
from llamalite.evaluation.measured_model import Decoder
from llamalite.evaluation.windows import TokenIds
from llamalite.hardware import physical_cores
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel
from llamalite.native.quantize import dequantize_rows
from llamalite.quant_types import FILE_TYPES, TENSOR_TYPES, TensorType

Bytes = npt.NDArray[np.uint8]

# Our own sentences: prose, numbers and code, about 130 tokens in most vocabularies.
TEXT = (
    "The lighthouse keeper counted the ships every evening and wrote their number in a small green book. "
    "On the first of March there were 17, on the second 23, and on the third the fog was so thick that she wrote "
    "nothing at all. Her brother, who lived in the village, asked her why. 'Because,' she said, 'a number that I did "
    "not see is not a number.' def count(ships):\n    return sum(1 for ship in ships if ship.seen)\n"
)
N_TOKENS = 128
TEMPLATE = b"tokenizer.chat_template"
_FEW_BLOCKS = 0.01  # of a tensor: if fewer blocks differ, they are damaged, not quantized in another way


@dataclass(frozen=True)
class Check:
    """The result of one kind of check: whether it passed, a line for people, and its figures."""

    name: str
    ok: bool
    text: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class VerificationReport:
    """All checks in order. If the file cannot be loaded, the tokens and the logits are not checked."""

    path: Path
    against: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def raise_for_failures(self) -> None:
        """Raise ``VerificationError`` that names the failed checks; do nothing if all passed."""
        wrong = [f"{check.name}: {check.text}" for check in self.checks if not check.ok]
        if wrong:
            raise VerificationError(f"{self.path} does not match {self.against}: {'; '.join(wrong)}")

    def to_json(self) -> str:
        """Return the report as a JSON document."""
        return json.dumps(
            {
                "model": str(self.path),
                "against": str(self.against),
                "ok": self.ok,
                "checks": [asdict(check) for check in self.checks],
            },
            indent=1,
        )


def verify(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str],
    *,
    params: QuantizeParams | None = None,
    n_threads: int | None = None,
    progress: pipeline.Progress | None = None,
) -> VerificationReport:
    """Compare the GGUF file at `path` with the checkpoint `against`, and return the report.

    `params` are those that the file was made with: given its importance matrix, bytes are compared instead of errors.
    Raises what opening the file or the checkpoint raises, but not for a failed check.
    """
    with open_checkpoint(Path(path)) as converted, open_checkpoint(Path(against)) as original:
        if converted.carried is None or original.carried is not None:
            raise ValueError("verify compares a GGUF file with the checkpoint that it was made from, in this order")
        planned = make_plan(original, [FILE_TYPES["F32"]], QuantizeParams())
        threads = n_threads or physical_cores()
        checks = [*_keys(converted, original, planned)]
        checks.append(_tensors(converted, planned, params or QuantizeParams(), threads, progress))
        if all(check.ok or check.name == "template" for check in checks) or _can_be_loaded(checks):
            tokens = probe.compare(original.tokenizer_folder, original.config, Path(path))
            checks.append(
                Check("tokens", not tokens.differences, tokens.describe(), {"n_texts": tokens.n_texts,
                      "n_differences": len(tokens.differences), "n_known": len(tokens.known)})
            )  # fmt: skip
            checks.append(_logits(Path(path), converted, original, planned, threads))
    return VerificationReport(Path(path), Path(against), tuple(checks))


def _can_be_loaded(checks: Sequence[Check]) -> bool:
    """Return whether all tensors are there with the right shapes, so that llama.cpp can run the file."""
    return not any(check.figures.get("missing") for check in checks)


def _keys(converted: Checkpoint, original: Checkpoint, planned: ConversionPlan) -> list[Check]:
    assert converted.carried is not None
    vocabulary = read_vocabulary(original.tokenizer_folder, original.config)
    wanted = dict(header.keys_of(original, planned, vocabulary))
    written = dict(converted.carried.pairs)
    keys = [key for key in wanted if key.startswith((b"llama.", b"tokenizer."))]
    wrong = [key.decode() for key in keys if key != TEMPLATE and written.get(key) != wanted[key]]
    text = f"{len(keys)} keys match a new conversion"
    if wrong:
        missing = [key for key in wrong if key.encode() not in written]
        text = f"{', '.join(wrong[:4])} {'is missing' if missing == wrong[:1] else 'differ'}"
    same_template = written.get(TEMPLATE) == wanted.get(TEMPLATE)
    if same_template:
        template_text = "the same chat template" if TEMPLATE in wanted else "no chat template in either"
    elif TEMPLATE not in written:
        template_text = "the file lacks the checkpoint's chat template"
    else:
        template_text = "the file's chat template is not the checkpoint's" + (
            "" if TEMPLATE in wanted else ", which has none"
        )
    return [
        Check("keys", not wrong, text, {"n_keys": len(keys), "wrong": wrong}),
        Check("template", same_template, template_text, {}),
    ]


class _TensorComparer:
    """Stands in for the pipeline's output file: compares the bytes written to it with those of the checked file."""

    def __init__(self, file: SourceFile, offset: int, kind: TensorType) -> None:
        self._file = file
        self._offset = offset
        self.kind = kind
        self.n_blocks = self.n_wrong = 0
        self.square_error = self.square = 0.0
        self._lock = threading.Lock()

    def write_at(self, offset: int, data: Bytes) -> None:
        expected = data.reshape(-1, self.kind.block_bytes)
        actual = np.empty_like(expected)
        self._file.read_into(self._offset + offset, actual.reshape(-1))
        wrong = (expected != actual).any(axis=1)
        square_error = square = 0.0
        if wrong.any():
            blocks = (expected[wrong], actual[wrong])
            a, b = (dequantize_rows(self.kind, rows, self.kind.block_size).astype(np.float64) for rows in blocks)
            with np.errstate(over="ignore", invalid="ignore"):
                square_error = float(np.square(a - b).sum())
            square = float(np.square(a).sum())
        with self._lock:
            self.n_blocks += len(expected)
            self.n_wrong += int(wrong.sum())
            self.square_error += square_error
            self.square += square

    @property
    def relative_error(self) -> float:
        """The RMS difference of the blocks that differ, relative to the RMS of the expected ones."""
        return math.sqrt(self.square_error / self.square) if self.square else math.inf if self.n_wrong else 0.0

    @property
    def fault(self) -> str | None:
        """What is wrong with the tensor; None if it is equal, or within the error of another way to quantize."""
        if not self.n_wrong:
            return None
        unit = "blocks" if self.kind.is_quantized else "weights"
        count = f"{self.n_wrong} of {self.n_blocks} {unit} differ"
        if not self.kind.is_quantized or self.n_wrong < _FEW_BLOCKS * self.n_blocks:
            return count
        if not self.relative_error <= allowed_error(self.kind):
            return f"{count} by {self.relative_error:.1%}, beyond the error of {self.kind.name}"
        return None


def allowed_error(kind: TensorType) -> float:
    """Return the relative RMS difference that two ways of quantizing to `kind` may have: some steps of its grid."""
    return 2.5 * math.pow(2, -kind.bits_per_weight)


def _tensors(
    converted: Checkpoint,
    planned: ConversionPlan,
    params: QuantizeParams,
    n_threads: int,
    progress: pipeline.Progress | None,
) -> Check:
    names = {tensor.name: tensor for tensor in planned.tensors}
    missing = [
        name for name in names if name not in converted.tensors or converted.tensors[name].shape != names[name].shape
    ]
    unknown = [name for name in converted.tensors if name not in names]
    comparers: dict[str, _TensorComparer] = {}
    tensors = []
    for name, tensor in names.items():
        if name in missing:
            continue
        source = converted.tensors[name]
        assert isinstance(source, FileTensor | QuantizedTensor)
        kind = source.type if isinstance(source, QuantizedTensor) else TENSOR_TYPES[source.dtype]
        comparers[name] = _TensorComparer(source.file, source.offset, kind)
        tensors.append(dataclasses.replace(tensor, types=(Choice(kind),)))
    importance = params.importance.rows if params.importance else {}
    again = dataclasses.replace(planned, tensors=tuple(tensors), importance=importance)
    places = [[pipeline.Place(comparers[tensor.name], 0) for tensor in tensors]]
    pipeline.run(again, places, n_threads=n_threads, progress=progress)
    faults = {name: comparer.fault for name, comparer in comparers.items() if comparer.fault}
    faults |= dict.fromkeys(missing, "is missing, or has another shape") | dict.fromkeys(
        unknown, "does not belong to the model"
    )
    exact = sum(not comparer.n_wrong for comparer in comparers.values())
    text = f"all {len(comparers)} tensors match a new conversion, byte for byte"
    if exact < len(comparers):
        text = f"{exact} of {len(comparers)} tensors agree byte for byte, the others within the error of their types"
    if faults:
        name, fault = next(iter(faults.items()))
        others = f", and {len(faults) - 1} more tensors" if len(faults) > 1 else ""
        text = f"{name}: {fault}{others}"
    return Check("tensors", not faults, text, {"exact": exact, "faults": faults, "missing": missing})


def _logits(path: Path, converted: Checkpoint, original: Checkpoint, planned: ConversionPlan, n_threads: int) -> Check:
    """Run a text through llama.cpp, and through the NumPy forward pass with the file's weights and the checkpoint's.

    The weights themselves are compared elsewhere. This check passes if llama.cpp, with the file's weights, agrees with
    NumPy, with the same weights and the checkpoint's config; it also reports how far the logits are from those of the
    checkpoint's weights.
    """
    with NativeModel(path) as model:
        ids = model.tokenize(TEXT, add_special=True, parse_special=False)[:N_TOKENS]
        options = ContextOptions(n_ctx=max(len(ids), 32), exact=True, n_threads=n_threads)
        with NativeContext(model, options) as context:
            Decoder(context).compute(lambda: context.decode(ids, np.arange(len(ids)), 0, True))
            ours = context.logits().copy()  # float32 [n_tokens, n_vocab]
    with np.errstate(over="ignore", invalid="ignore"):  # a broken file gives infinities, which are found below
        expected = reference.forward(_with_weights(converted, original, planned), ids.tolist())
        theirs = reference.forward(original, ids.tolist())
        computed, lost = _divergence(expected, ours, ids), _divergence(theirs, ours, ids)
    limit = allowed_kld(converted)
    ok = bool(np.isfinite(ours).all()) and computed.mean_kld <= limit
    text = (
        f"llama.cpp's logits are {'' if ok else 'not '}those of the file's weights: mean KL divergence "
        f"{computed.mean_kld:.1e} nats (at most {limit:.0e})"
    )
    text += f"; from the checkpoint {lost.mean_kld:.6f}, same top token {lost.same_top_p:.1%}, over {len(ids)} tokens"
    figures = {"computed_kld": _finite(computed.mean_kld), "limit_kld": limit}
    figures |= {"max_difference": _finite(float(np.abs(ours - theirs).max()))}
    return Check("logits", ok, text, figures | lost.to_json())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _with_weights(converted: Checkpoint, original: Checkpoint, planned: ConversionPlan) -> Checkpoint:
    """Return the checkpoint with the file's weights, by the checkpoint's names, for `reference.forward`.

    q and k keep the file's row order, that of Meta's checkpoints: not permuted.
    """
    assert planned.config is not None  # the checkpoint is not a GGUF file
    rules = planned.config.tensor_rules(permuted=False)
    tensors = {rule.source: converted.tensors[rule.name] for rule in rules if rule.name in converted.tensors}
    return Checkpoint(converted.folder, original.config, tensors, permuted=False)


def _divergence(base: npt.NDArray[np.float32], other: npt.NDArray[np.float32], ids: TokenIds) -> Divergence:
    tokens = TokenDivergence(len(ids) - 1)
    diverge(base[:-1], [other[:-1]], ids[1:], [tokens], 0)
    return summarize(tokens)


# The largest mean KL divergence (nats) allowed between llama.cpp in exact mode and NumPy, both with the file's weights.
# It does not come from the quantization of weights: llama.cpp rounds the activations to 8 bits before it multiplies
# them with a quantized matrix, and to 16 bits with a matrix of 16 bits (``vec_dot_type``, ggml-cpu.c). Measured with 15
# types on models of 0.26 and 5.8 million weights, and with Q4_K_M on 1.1 billion, it was at most 1.3e-3 with quantized
# matrices of any number of bits, 3.3e-5 with BF16, 5e-7 with F16 and 5e-12 with F32. The bounds are at least seven
# times that. For comparison, the demo model with a rope base half too large has 0.02.
_MOST_KLD = {"quantized": 1e-2, "16 bits": 1e-3, "F32": 1e-6}


def allowed_kld(converted: Checkpoint) -> float:
    """Return the mean KL divergence (nats) above which llama.cpp and NumPy, with the same weights, do not agree."""
    matrices = [tensor for tensor in converted.tensors.values() if len(tensor.shape) > 1]
    if any(isinstance(matrix, QuantizedTensor) for matrix in matrices):
        return _MOST_KLD["quantized"]
    return _MOST_KLD["F32" if all(matrix.dtype == "F32" for matrix in matrices) else "16 bits"]
