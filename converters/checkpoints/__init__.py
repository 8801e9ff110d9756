"""Every form of checkpoint behind one interface: a config, and named tensors that are read on demand.

    checkpoint = open_checkpoint(Path("TinyLlama-1.1B"))
    tensor = checkpoint.tensors["model.norm.weight"]
    tensor.dtype, tensor.shape                          # ("BF16", (2048,))
    tensor.read_rows(0, 1, numpy.empty(4096, numpy.uint8))

Opening reads headers and small JSON files only. Each reader knows one format, and nothing about how the tensors are
used.
"""

from __future__ import annotations

from pathlib import Path

from llamalite.converters.checkpoints import adapter, gguf_source, huggingface, meta
from llamalite.converters.checkpoints.folder import listing, refuse_pointer
from llamalite.converters.checkpoints.interface import DTYPE_BYTES, Checkpoint, SourceTensor, model_name
from llamalite.errors import CheckpointError

__all__ = ["DTYPE_BYTES", "Checkpoint", "SourceTensor", "model_name", "open_checkpoint"]


def open_checkpoint(source: Path) -> Checkpoint:
    """Return the checkpoint at `source`: a folder with ``config.json`` or Meta's ``params.json``, or a GGUF file.

    Raises ``FileNotFoundError`` if nothing is there, `CheckpointError` if it is damaged or not a checkpoint,
    ``GGUFError`` for a damaged GGUF file.
    """
    if not source.exists():
        raise FileNotFoundError(f"no checkpoint at {source}: expected the folder of a model with its config.json")
    if source.is_file() and gguf_source.is_gguf(source):
        return gguf_source.open_file(source)
    if source.is_dir():
        if (source / "config.json").exists():
            return huggingface.open_folder(source)
        if (source / meta.PARAMS).exists():
            return meta.open_folder(source)
        adapter.refuse(source)
        raise CheckpointError(
            f"{source} has neither config.json nor params.json (found {listing(source)}): pass a model "
            "folder in Hugging Face's or Meta's format"
        )
    if source.is_file():
        refuse_pointer(source)
    raise CheckpointError(
        f"{source} is not a GGUF file: pass one, or the folder that holds config.json and the weights"
    )
