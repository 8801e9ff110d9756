"""Recognizes an adapter (LoRA), which is not a model, and says what can be done with it. It reads no weights."""

from __future__ import annotations

from pathlib import Path

from llamalite.converters.checkpoints.folder import member
from llamalite.converters.checkpoints.json_file import read_object
from llamalite.errors import UnsupportedArchitectureError

CONFIG = "adapter_config.json"


def refuse(folder: Path) -> None:
    """Raise `UnsupportedArchitectureError` if `folder` holds an adapter in peft's format; do nothing otherwise."""
    if not (folder / CONFIG).exists():
        return
    base = read_object(member(folder, CONFIG)).get("base_model_name_or_path")
    of = f" of {base:.120}" if isinstance(base, str) and base else ""
    raise UnsupportedArchitectureError(
        f"{folder} is an adapter (LoRA){of}, not a whole model: merge it into that model with peft's merge_and_unload "
        "and save_pretrained, and convert the result; or make it a GGUF file with llama.cpp's "
        "convert_lora_to_gguf.py, for llamalite run BASE --lora FILE"
    )
