"""Makes the reference and the candidates of a comparison from one checkpoint.

reference, candidates = make_candidates("TinyLlama-1.1B", ["Q8_0", "Q4_K_M"], folder)
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from llamalite.converters import Importance, QuantizeParams, convert
from llamalite.converters.checkpoints import open_checkpoint

# The dtype of most of a checkpoint's weights → the type of the reference.
_REFERENCE_TYPES = {"F64": "F32", "F32": "F32", "F16": "F16", "BF16": "BF16"}


def make_candidates(
    source: str | os.PathLike[str],
    qtypes: Sequence[str],
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    importance: Importance | None = None,
) -> tuple[Path, list[Path]]:
    """Convert `source` to a reference and one candidate for each of `qtypes` in `folder`, and return their paths.

    `source` is read once. The reference of a checkpoint has the dtype of most of its weights; a GGUF file is its own
    reference. `progress` is called with (bytes done, all bytes). `importance` is an importance matrix for the
    candidates. Raises what `llamalite.convert` raises.
    """
    path, params = Path(source), QuantizeParams(importance=importance)
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        if not qtypes:
            return path, []
        report = convert(path, folder, qtype=list(qtypes), params=params, progress=progress)
        return path, [output.path for output in report.outputs]
    own_type = _own_type(path)
    wanted = [own_type, *(qtype for qtype in qtypes if qtype != own_type)]
    report = convert(path, folder, qtype=wanted, params=params, progress=progress)
    outputs = {output.qtype: output.path for output in report.outputs}
    return outputs[own_type], [outputs[qtype] for qtype in wanted[1:]]


def _own_type(folder: Path) -> str:
    """Return the file type in which most weights of the checkpoint in `folder` are already stored."""
    n_bytes: collections.Counter[str] = collections.Counter()
    with open_checkpoint(folder) as checkpoint:
        for tensor in checkpoint.tensors.values():
            n_bytes[tensor.dtype] += tensor.n_bytes
    return _REFERENCE_TYPES.get(n_bytes.most_common(1)[0][0], "F32")
