"""Checkpoints as people have them, behind one interface: named tensors that are read when asked for, and a config.

    checkpoint = open_checkpoint(Path("TinyLlama-1.1B"))
    tensor = checkpoint.tensors["model.norm.weight"]
    tensor.dtype, tensor.shape                          # ("BF16", (2048,))
    tensor.read_rows(0, 1, numpy.empty(4096, numpy.uint8))

Opening reads headers and small JSON files only. A reader knows one format and nothing of GGUF or of LLaMA.
"""

from __future__ import annotations

from pathlib import Path

from llamalite.converters.checkpoints import huggingface, meta
from llamalite.converters.checkpoints.folder import listing
from llamalite.converters.checkpoints.interface import DTYPE_BYTES, Checkpoint, SourceTensor
from llamalite.errors import CheckpointError

__all__ = ["DTYPE_BYTES", "Checkpoint", "SourceTensor", "open_checkpoint"]


def open_checkpoint(source: Path) -> Checkpoint:
    """Return the checkpoint at `source`: a Hugging Face folder (``config.json``), or one of Meta's (``params.json``).

    Raises ``FileNotFoundError`` where nothing stands, `CheckpointError` where it is not a checkpoint or a damaged one.
    """
    if not source.exists():
        raise FileNotFoundError(f"no checkpoint at {source}: expected the folder of a model with its config.json")
    if source.is_dir():
        if (source / "config.json").exists():
            return huggingface.open_folder(source)
        if (source / meta.PARAMS).exists():
            return meta.open_folder(source)
        raise CheckpointError(
            f"{source} has neither config.json nor params.json (found {listing(source)}): pass the folder of a "
            "Hugging Face model, or of one of Meta's"
        )
    raise CheckpointError(f"{source} is a file: pass the folder that holds config.json and the weights")
