"""Is this LoRA adapter one of this model? Held against the two headers, before either file is loaded.

The rules are those of ``llama_adapter_lora_init_impl`` (llama-adapter.cpp), which reads the adapter only when the model
is in memory, and aborts the process on a key of another type than it expects.
"""

from __future__ import annotations

import os
from typing import NoReturn

from llamalite.errors import GGUFError
from llamalite.gguf_check.header import DAMAGED, Header, TensorInfo
from llamalite.gguf_check.reader import read_header
from llamalite.quant_types import NO_WEIGHTS


def check_adapter(path: str | os.PathLike[str], model: Header) -> Header:
    """Return the header of the LoRA adapter at `path`; ``GGUFError`` unless it fits `model`, and llama.cpp loads it."""
    header = read_header(path)
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        kind = header.metadata.type_of(key)
        found = repr(header.metadata[key]) if kind == "string" else kind or "missing"
        if found != repr(wanted):
            raise GGUFError(f"{header.path} is no LoRA adapter: its key {key} is {found:.60}, expected {wanted!r}")
    if header.architecture != model.architecture:
        _foreign(header, model, f"its architecture is {header.architecture:.60}, the model's {model.architecture}")
    if (kind := header.metadata.type_of("adapter.lora.alpha")) not in ("", "float32"):
        _damaged(header, f"key adapter.lora.alpha should be a float32, found {kind}")
    bases = {tensor.name: tensor for tensor in model.all_tensors}
    parts: dict[str, dict[str, TensorInfo]] = {}  # of each matrix that is changed: lora_a, lora_b
    for tensor in header.tensors:
        name, _, part = tensor.name.rpartition(".")
        if tensor.type.name in NO_WEIGHTS:
            _damaged(
                header, f"tensor {tensor.name} is of type {tensor.type.name}, which llama.cpp cannot multiply with"
            )
        if part in ("lora_a", "lora_b"):
            parts.setdefault(name, {})[part] = tensor
        elif not tensor.name.endswith("_norm.weight"):  # which llama.cpp passes over
            _damaged(header, f"tensor {tensor.name} should end in .lora_a or .lora_b")
    for name, pair in parts.items():
        if len(pair) < 2:
            _damaged(header, f"of {name} there is {next(iter(pair))} alone")
        if name not in bases:
            _foreign(header, model, f"it changes {name}, which is not there")
        if name == "token_embd.weight" and "output.weight" not in bases:  # which asks for factors the other way round
            raise GGUFError(
                f"{header.path} changes the embedding, which is the output matrix of {model.path.name} too: llama.cpp "
                "cannot do both; merge the adapter into the checkpoint, and convert that"
            )
        if not _fits(bases[name], pair["lora_a"], pair["lora_b"]):
            shapes = f"{list(pair['lora_a'].shape)} and {list(pair['lora_b'].shape)}"
            _foreign(header, model, f"its factors for {name} are {shapes}, and that is {list(bases[name].shape)}")
    return header


def _fits(base: TensorInfo, a: TensorInfo, b: TensorInfo) -> bool:
    """Tell whether `a` and `b` are factors of what is added to `base`: their shapes share the adapter's rank."""
    (n_in, n_out, *more), (a_0, a_1, *more_a), (b_0, b_1, *more_b) = ((*one.shape, 1, 1, 1)[:4] for one in (base, a, b))
    if base.name == "token_embd.weight":  # its rows are looked up (llm_graph_context::build_inp_embd)
        return (a_1, b_1, a_0) == (n_out, n_in, b_0) and more == more_a == more_b
    return (a_0, b_1, a_1) == (n_in, n_out, b_0) and more == more_a == more_b


def _damaged(header: Header, what: str) -> NoReturn:
    raise GGUFError(f"{header.path}: {what}; {DAMAGED}")


def _foreign(header: Header, model: Header, why: str) -> NoReturn:
    raise GGUFError(f"{header.path} is an adapter of another model than {model.path.name}: {why}")
