"""Hugging Face checkpoints of toy size with seeded random weights, the same bytes on every machine.

    folder = write_checkpoint(tmp_path / "toy", n_layer=2, n_embd=256)

They are written byte by byte (safetensors, SentencePiece's protocol buffer, tokenizer.json), so that digests recorded
for them are valid wherever the tests run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import toy

Floats = npt.NDArray[np.float32]
Dtype = Literal["F32", "F16", "BF16", "F64"]

# Llama 3's split regex, as its tokenizer.json states it: a fact of the format that llama.cpp recognises.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def encode(values: Floats, dtype: Dtype) -> bytes:
    """Return `values` as little-endian bytes of `dtype`; bfloat16 by rounding to nearest even."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, tuple[Floats, Dtype]]) -> None:
    """Write `tensors` in their order, without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, at = [], 0
    for name, (values, dtype) in tensors.items():
        blobs.append(encode(values, dtype))
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + len(blobs[-1])]}
        at += len(blobs[-1])
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(blobs))


def write_checkpoint(
    folder: Path,
    *,
    n_layer: int = 2,
    n_embd: int = 256,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_dim: int | None = None,
    n_ff: int = 512,
    dtype: Dtype = "BF16",
    norm_dtype: Dtype | None = None,
    tied: bool = False,
    tokenizer: Literal["llama", "gpt2"] = "llama",
    n_shards: int = 1,
    bias: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a checkpoint of this shape into `folder` and return it; `config` adds or replaces keys of config.json."""
    folder.mkdir(parents=True)
    write = write_sentencepiece if tokenizer == "llama" else write_bpe
    n_vocab = write(folder)
    width = head_dim or n_embd // n_head
    tensors = dict(
        _tensors(n_layer, n_embd, n_head * width, n_head_kv * width, n_ff, n_vocab, tied, bias, seed, dtype, norm_dtype)
    )
    if n_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
    else:
        weight_map: dict[str, str] = {}
        for i in range(n_shards):
            shard = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
            part = dict(list(tensors.items())[i::n_shards])
            write_safetensors(folder / shard, part)
            weight_map |= dict.fromkeys(part, shard)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    settings: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": n_embd,
        "intermediate_size": n_ff,
        "num_hidden_layers": n_layer,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head_kv,
        "vocab_size": n_vocab,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}[dtype],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if head_dim is not None:
        settings["head_dim"] = head_dim
    if bias:
        settings |= {"attention_bias": True, "mlp_bias": True}
    (folder / "config.json").write_text(json.dumps(settings | config, indent=1))
    return folder


def _tensors(
    n_layer: int, n_embd: int, q: int, kv: int, n_ff: int, n_vocab: int, tied: bool, bias: bool, seed: int,
    dtype: Dtype, norm_dtype: Dtype | None,
) -> Iterator[tuple[str, tuple[Floats, Dtype]]]:  # fmt: skip
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> tuple[Floats, Dtype]:
        # Integers scaled by a power of two, which no platform can round differently.
        return rng.integers(-4096, 4096, shape, dtype=np.int32).astype(np.float32) / np.float32(65536), dtype

    def norm() -> tuple[Floats, Dtype]:
        values = 1 + rng.integers(-64, 64, n_embd, dtype=np.int32).astype(np.float32) / np.float32(512)
        return values, norm_dtype or dtype

    yield "model.embed_tokens.weight", matrix(n_vocab, n_embd)
    for i in range(n_layer):
        layer = f"model.layers.{i}."
        for name, n_out, n_in in (
            ("self_attn.q_proj", q, n_embd),
            ("self_attn.k_proj", kv, n_embd),
            ("self_attn.v_proj", kv, n_embd),
            ("self_attn.o_proj", n_embd, q),
            ("mlp.gate_proj", n_ff, n_embd),
            ("mlp.up_proj", n_ff, n_embd),
            ("mlp.down_proj", n_embd, n_ff),
        ):
            yield f"{layer}{name}.weight", matrix(n_out, n_in)
            if bias:
                yield f"{layer}{name}.bias", matrix(n_out)
        yield f"{layer}input_layernorm.weight", norm()
        yield f"{layer}post_attention_layernorm.weight", norm()
    yield "model.norm.weight", norm()
    if not tied:
        yield "lm_head.weight", matrix(n_vocab, n_embd)


def _field(number: int, value: bytes | int | float) -> bytes:
    """One field of a protocol buffer: a length-delimited one, a varint, or a 32-bit float."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def write_sentencepiece(folder: Path) -> int:
    """Write ``tokenizer.model`` with the vocabulary of `toy`; return its size (sentencepiece_model.proto)."""
    pieces = toy.vocabulary()
    model = b"".join(
        _field(1, _field(1, piece.encode()) + _field(2, score) + _field(3, kind)) for piece, score, kind in pieces
    )
    model += _field(2, _field(3, 2) + _field(4, len(pieces)) + _field(35, 1))  # BPE, vocab_size, byte_fallback
    model += _field(3, _field(1, b"identity") + _field(3, 1) + _field(4, 0) + _field(5, 1))
    (folder / "tokenizer.model").write_bytes(model)
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                "add_bos_token": True, "add_eos_token": False, "chat_template": toy.CHATML, "legacy": True}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(pieces)


def write_bpe(folder: Path) -> int:
    """Write a byte-level ``tokenizer.json`` with Llama 3's split, merges and special tokens; return its size."""
    alphabet = _byte_alphabet()
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    merges = []
    for word in ("the", "Ġthe", "Ġa", "in", "Ġin", "an", "and", "Ġand", "er", "on", "Ġonce", "Ġtime", "12", "123"):
        built = word[0]
        for letter in word[1:]:
            if built + letter not in vocab:
                merges.append(f"{built} {letter}")
                vocab[built + letter] = len(vocab)
            built += letter
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    first = len(vocab)
    added = [
        {"id": first + i, "content": text, "special": True, "normalized": False, "single_word": False, "lstrip": False,
         "rstrip": False} for i, text in enumerate(specials)
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": specials[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"SpecialToken": {"id": specials[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                      {"SpecialToken": {"id": specials[0], "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {specials[0]: {"id": specials[0], "ids": [first], "tokens": [specials[0]]}}}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                  "vocab": vocab, "merges": merges},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": specials[0], "eos_token": specials[4],
                "chat_template": toy.CHATML, "clean_up_tokenization_spaces": True}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocab) + len(specials)


def _byte_alphabet() -> list[str]:
    """GPT-2's letters for the 256 bytes, in the order of the bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
