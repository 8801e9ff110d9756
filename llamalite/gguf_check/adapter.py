"""Does this LoRA adapter belong to this model? Answered from the two headers, before either file is loaded.

The rules are those of ``llama_adapter_lora_init_impl`` (llama-adapter.cpp), which reads the adapter only after the
model is in memory, and aborts the process on a key of a type that it does not expect.
"""

from __future__ import annotations

import os
from typing import NoReturn

from llamalite.errors import GGUFError
from llamalite.gguf_check.header import DAMAGED, Header, TensorInfo
from llamalite.gguf_check.reader import read_header
from llamalite.quant_types import NO_WEIGHTS


def check_adapter(path: str | os.PathLike[str], model: Header) -> Header:
    """Return the header of the LoRA adapter at `path`; ``GGUFError`` unless it fits `model` and llama.cpp loads it."""
    header = read_header(path)
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        kind = header.metadata.type_of(key)
        actual = repr(header.metadata[key]) if kind == "string" else kind or "missing"
        if actual != repr(wanted):
            raise GGUFError(f"{header.path} is not a LoRA adapter: its key {key} is {actual:.60}, expected {wanted!r}")
    if header.architecture != model.architecture:
        _wrong_model(header, model, f"its architecture is {header.architecture:.60}, the model's {model.architecture}")
    if (kind := header.metadata.type_of("adapter.lora.alpha")) not in ("", "float32"):
        _damaged(header, f"key adapter.lora.alpha should be a float32, found {kind}")
    bases = {tensor.name: tensor for tensor in model.all_tensors}
    parts: dict[str, dict[str, TensorInfo]] = {}  # changed matrix → its lora_a and lora_b
    for tensor in header.tensors:
        name, _, part = tensor.name.rpartition(".")
        if tensor.type.name in NO_WEIGHTS:
            _damaged(
                header, f"tensor {tensor.name} is of type {tensor.type.name}, which llama.cpp cannot multiply with"
            )
        if part in ("lora_a", "lora_b"):
            parts.setdefault(name, {})[part] = tensor
        elif not tensor.name.endswith("_norm.weight"):  # llama.cpp ignores those
            _damaged(header, f"tensor {tensor.name} should end in .lora_a or .lora_b")
    for name, pair in parts.items():
        if len(pair) < 2:
            _damaged(header, f"tensor {name} has {next(iter(pair))} only, expected lora_a and lora_b")
        if name not in bases:
            _wrong_model(header, model, f"it changes {name}, which the model does not have")
        if name == "token_embd.weight" and "output.weight" not in bases:  # as output matrix it needs transposed factors
            raise GGUFError(
                f"{header.path} changes the embedding, which is also the output matrix of {model.path.name}: llama.cpp "
                "cannot apply it to both; merge the adapter into the checkpoint, and convert that"
            )
        if not _fits(bases[name], pair["lora_a"], pair["lora_b"]):
            shapes = f"{list(pair['lora_a'].shape)} and {list(pair['lora_b'].shape)}"
            _wrong_model(
                header, model, f"its factors for {name} are {shapes}, and the matrix is {list(bases[name].shape)}"
            )
    return header


def _fits(base: TensorInfo, a: TensorInfo, b: TensorInfo) -> bool:
    """Tell whether the product of `a` and `b` has the shape of `base`; the size they share is the adapter's rank."""
    (n_in, n_out, *more), (a_0, a_1, *more_a), (b_0, b_1, *more_b) = ((*t.shape, 1, 1, 1)[:4] for t in (base, a, b))
    if base.name == "token_embd.weight":  # rows of its lora_a are looked up (llm_graph_context::build_inp_embd)
        return (a_1, b_1, a_0) == (n_out, n_in, b_0) and more == more_a == more_b
    return (a_0, b_1, a_1) == (n_in, n_out, b_0) and more == more_a == more_b


def _damaged(header: Header, what: str) -> NoReturn:
    raise GGUFError(f"{header.path}: {what}; {DAMAGED}")


def _wrong_model(header: Header, model: Header, why: str) -> NoReturn:
    raise GGUFError(f"{header.path} is not an adapter for {model.path.name}: {why}")
