"""Tries the installed llama.cpp on this processor, in a child process that may crash.

    {"step": "features"}
    {"features": ["SSE3", "AVX2", "AMX_INT8"]}
    {"step": "Q4_K"}
    {"type": "Q4_K", "distance": 0.0148}
    {"end": true}

`main` prints a line of JSON before and after each step, so that its reader (`llamalite.native.verdict`) knows in which
step the process crashed. A step named after a weight type computes a tiny model of that type, with a prompt and one
token of an answer, and measures how far its logits are from those of the same weights as float32.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.errors import GGUFError, ModelLoadError
from llamalite.native import installed, library, quantize
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel
from llamalite.quant_types import TENSOR_TYPES, TensorType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# After a change to the steps, raise `llamalite.native.verdict._VERSION`, or libraries with a verdict skip the trial.
# A row of 256 weights is a whole number of blocks of every type. AMX takes matrices with a multiple of 32 rows,
# other extra buffers with a multiple of 8. 37 tokens fill whole tiles of every kernel, and leave a remainder.
_N_EMBD, _N_VOCAB, _N_PROMPT = 256, 64, 37
_FLOAT_MATRICES = {f"blk.0.attn_{name}.weight": (_N_EMBD, _N_EMBD) for name in ("q", "k", "v", "output")}
_TYPED_MATRICES = {f"blk.0.ffn_{name}.weight": (_N_EMBD, _N_EMBD) for name in ("gate", "up", "down")} | {
    "output.weight": (_N_VOCAB, _N_EMBD)
}
_NUMBERS = {
    "vocab_size": _N_VOCAB, "context_length": _N_EMBD, "embedding_length": _N_EMBD, "block_count": 1,
    "feed_forward_length": _N_EMBD, "attention.head_count": 4,
}  # fmt: skip
_UINT32, _FLOAT32, _STRING = 4, 6, 8  # enum gguf_type (gguf.h)


def main(settings: str) -> None:
    """Run the steps; `settings` is a JSON object of ``extra_buffers``, the ``types`` to try and a ``folder`` to use."""
    wanted = json.loads(settings)
    _die_quietly()
    _print_json(step="features")
    _print_json(features=installed.compiled_features())
    _print_json(step="quantization")
    for name in ("Q8_0", "Q4_K", "Q6_K"):
        quantize.quantize_rows(TENSOR_TYPES[name], np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256))
    _print_json(step="start")
    library.llama()
    for name in wanted["types"]:
        _print_json(step=name)
        try:
            measured = distance(TENSOR_TYPES[name], Path(wanted["folder"]), wanted["extra_buffers"])
            _print_json(type=name, distance=measured)
        except (ModelLoadError, GGUFError) as error:  # a llama.cpp that does not know the type
            _print_json(type=name, refused=str(error))
    _print_json(end=True)


def _print_json(**fields: Any) -> None:
    os.write(1, json.dumps(fields).encode() + b"\n")  # unbuffered, since the next step may crash


def _die_quietly() -> None:
    """Make a crash of this process leave no core file and open no window."""
    if sys.platform == "win32":
        ctypes.windll.kernel32.SetErrorMode(0x8003)  # type: ignore[attr-defined,unused-ignore] # SEM_*: all but one
    else:
        import resource

        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def distance(kind: TensorType, folder: Path, extra_buffers: bool) -> float:
    """Return how far the logits of a tiny model with weights of `kind` are from those of the same weights as float32.

    This is the root mean square of the difference divided by that of the float32 model's logits; NaN if a logit is NaN.
    Since activations are rounded to 8 bits, it is above 0, and below 0.03 for every type of a correct build.
    """
    random = np.random.default_rng(kind.ggml_type)
    floats: dict[str, Floats] = {"token_embd.weight": _normal(random, (_N_VOCAB, _N_EMBD))}
    floats |= {name: _normal(random, shape) for name, shape in _FLOAT_MATRICES.items()}
    norms = ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
    floats |= {f"{name}.weight": np.ones(_N_EMBD, np.float32) for name in norms}
    typed = {name: _blocks(kind, shape, random) for name, shape in _TYPED_MATRICES.items()}
    as_floats = {name: quantize.dequantize_rows(kind, rows, _N_EMBD) for name, rows in typed.items()}
    path = folder / "trial.gguf"
    _write(path, floats, typed, kind)
    logits = _logits(path, extra_buffers)
    _write(path, floats | as_floats, {}, kind)
    expected = _logits(path, extra_buffers=False)
    return float(np.sqrt(np.square(logits - expected).mean() / np.square(expected).mean()))


def _normal(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return (random.standard_normal(shape) / 16).astype(np.float32)


def _blocks(kind: TensorType, shape: tuple[int, int], random: np.random.Generator) -> Bytes:
    """Return a matrix of `shape` as blocks of `kind`, uint8 [n_rows, row bytes]: random bytes with a fixed scale.

    Quantizing random weights instead would take seconds for some types.
    """
    n_rows, n_columns = shape
    if not kind.is_quantized:
        values = _normal(random, shape)
        if kind.name == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype({"F32": np.float32, "F16": np.float16}[kind.name]).view(np.uint8)
    n_blocks = n_rows * n_columns // kind.block_size
    blocks = random.integers(0, 256, (n_blocks, kind.block_bytes), np.uint8)
    for offset in kind.scales:
        blocks[:, offset : offset + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    # Scales that are not float16 (ggml-common.h): an exponent, four small floats, four bits in each of four words.
    if kind.name == "MXFP4":
        blocks[:, 0] = 120
    elif kind.name == "NVFP4":
        blocks[:, :4] = blocks[:, :4] & 0x1F | 0x20
    elif kind.name == "IQ1_M":
        words = blocks[:, 48:].view("<u2")
        words &= 0x0FFF
        words[:, 3] |= 0x2000
    return blocks.reshape(n_rows, -1)


def _write(path: Path, floats: dict[str, Floats], typed: dict[str, Bytes], kind: TensorType) -> None:
    """Write a GGUF file of one layer, without vocabulary: `floats`, and `typed` matrices as blocks of `kind`."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = [text(name) + struct.pack("<I", _STRING) + text(value)
            for name, value in (("general.architecture", "llama"), ("tokenizer.ggml.model", "no_vocab"))]  # fmt: skip
    keys += [text(f"llama.{name}") + struct.pack("<II", _UINT32, value) for name, value in _NUMBERS.items()]
    keys += [text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", _FLOAT32, 1e-5)]
    tensors = [(name, 0, matrix.shape, matrix.tobytes()) for name, matrix in floats.items()]
    tensors += [(name, kind.ggml_type, _TYPED_MATRICES[name], rows.tobytes()) for name, rows in typed.items()]
    header = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys)), *keys]
    offset = 0
    for name, ggml_type, shape, content in tensors:
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header.append(text(name) + sizes + struct.pack("<IQ", ggml_type, offset))
        offset += len(content)  # each a multiple of 32 bytes, the file's alignment
    head = b"".join(header)
    path.write_bytes(head + bytes(-len(head) % 32) + b"".join(content for *_, content in tensors))


def _logits(path: Path, extra_buffers: bool) -> Floats:
    """Return the logits of a prompt and of the token after it, float32 [n_prompt + 1, n_vocab]."""
    with (
        NativeModel(path, extra_buffers=extra_buffers) as model,
        # One thread: on a busy machine, several would wait for each other at every barrier.
        NativeContext(model, ContextOptions(n_ctx=_N_EMBD, n_threads=1)) as context,
    ):
        positions = np.arange(_N_PROMPT)
        context.decode(positions % _N_VOCAB, positions, 0, True)
        prompt = context.logits().copy()
        context.decode_next(5, _N_PROMPT)
        return np.concatenate([prompt, context.logits()])
