"""Small GGUF models of every kind that the architecture ``llama`` allows, and thousands of ways to damage them.

    file = variant(rng)          # a consistent model: random sizes, weight types, vocabulary, experts, biases
    damage(file, rng)            # one to three random mutations of its keys, tensors, arrays or raw bytes

Everything follows from the seed of `rng`, so that a crash can be made again from its number alone.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable

import gguf
import numpy as np
import toy
from gguf_bytes import (
    ARRAY,
    BOOL,
    FLOAT32,
    FLOAT64,
    FORMS,
    INT32,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Array,
    GgufBytes,
    Key,
    Tensor,
)  # fmt: skip

from llamalite.quant_types import TENSOR_TYPES

WEIGHTS = [t for name, t in TENSOR_TYPES.items() if name not in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")]
NUMBERS = [0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257, 511, 512, 513, 1 << 15, 1 << 16,
           (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip
FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e38, math.inf, -math.inf, math.nan, 0.5, 2.0, 1e-5, 10000.0]
STRINGS = [b"", b"llama", b"gpt2", b"bert", b"t5", b"rwkv", b"plamo2", b"none", b"no_vocab", b"test", b"default",
           b"llama-bpe", b"qwen2", b"deepseek-llm", b"linear", b"yarn", b"longrope", b"none", b"su", b"phi-3",
           b"\xff\xfe", b"a\0b", b"x" * 5000, "é▁漢".encode(), b"%s%n%d", b"<s>", b"[EMPTY_1]"]  # fmt: skip
ARCHITECTURES = sorted(name.encode() for name in gguf.MODEL_ARCH_NAMES.values())


def _known_keys() -> list[str]:
    """Every key that the gguf package knows, spelled for architecture llama."""
    keys = []
    todo: list[object] = [gguf.Keys]
    while todo:
        owner = todo.pop()
        for name, value in vars(owner).items():
            if isinstance(value, str) and not name.startswith("_") and "." in value:
                keys.append(value.replace("{arch}", "llama"))
            elif isinstance(value, type):
                todo.append(value)
    extra = ["nextn_predict_layers", "embedding_length_out", "classifier.output_labels", "rope.scaling.alpha",
             "attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"]  # fmt: skip
    more = ["suppress_tokens", "eom_token_id", "fim_sep_token_id", "prefix_token_id", "middle_token_id"]
    keys += [f"llama.{name}" for name in extra] + [f"tokenizer.ggml.{name}" for name in more]
    return sorted(set(keys) - {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"})


KNOWN_KEYS = _known_keys()


_PLAUSIBLE = np.random.default_rng(0).uniform(-0.1, 0.1, 1 << 19).astype("<f4").tobytes()


def _content(rng: random.Random, kind: int, n_bytes: int) -> bytes:
    if kind == 0 and n_bytes < len(_PLAUSIBLE):  # F32 weights of which something finite comes out
        start = 4 * rng.randrange((len(_PLAUSIBLE) - n_bytes) // 4)
        return _PLAUSIBLE[start : start + n_bytes]
    return rng.randbytes(n_bytes)


def _bpe(rng: random.Random) -> tuple[list[bytes], list[int], list[bytes]]:
    """Return tokens, types and merges of a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) if b in printable else chr(256 + i) for i, b in enumerate(range(256))]
    tokens = [letter.encode() for letter in dict.fromkeys(letters)]
    merges = []
    for _ in range(rng.randrange(20)):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if left + right not in tokens:
            tokens.append(left + right)
            merges.append(left + b" " + right)
    special = [b"<|begin_of_text|>", b"<|eot_id|>", b"<|end_of_text|>"]
    return tokens + special, [1] * len(tokens) + [3] * len(special), merges


def variant(rng: random.Random) -> GgufBytes:
    """Return a consistent model: whatever `rng` chooses, llama.cpp can load it and run it."""
    file = GgufBytes()
    width = rng.choice([32, 32, 64, 256])
    head_dim = rng.choice([2, 8, 16, 32])
    n_head_kv = rng.choice([1, 2, 3])
    n_head = n_head_kv * rng.choice([1, 2, 4])
    n_ff, n_layer = rng.choice([32, 64, 256]), rng.choice([1, 1, 2, 3])
    n_expert = rng.choice([0, 0, 0, 4])
    for key, value in [
        ("context_length", rng.choice([8, 512, 131072])), ("embedding_length", width), ("block_count", n_layer),
        ("feed_forward_length", n_ff), ("attention.head_count", n_head), ("attention.head_count_kv", n_head_kv),
        ("attention.key_length", head_dim), ("attention.value_length", head_dim), ("rope.dimension_count", head_dim),
    ]:  # fmt: skip
        if rng.random() < 0.2 and key in ("feed_forward_length", "attention.head_count"):
            file.set(f"llama.{key}", ARRAY, Array(UINT32, [value] * n_layer))
        else:
            file.set(f"llama.{key}", UINT32, value)
    file.set("general.architecture", STRING, b"llama")
    file.set("general.name", STRING, b"fuzz")
    file.set("general.file_type", UINT32, rng.choice([0, 1, 7, 15]))
    file.set("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5)
    file.set("llama.rope.freq_base", FLOAT32, rng.choice([10000.0, 500000.0]))
    scaling = rng.choice([None, None, b"linear", b"yarn", b"longrope"])
    if scaling:
        file.set("llama.rope.scaling.type", STRING, scaling)
        file.set("llama.rope.scaling.factor", FLOAT32, 4.0)
        file.set("llama.rope.scaling.original_context_length", UINT32, 64)
    if n_expert:
        file.set("llama.expert_count", UINT32, n_expert)
        file.set("llama.expert_used_count", UINT32, 2)
    n_vocab = _add_vocabulary(file, rng)
    _add_tensors(file, rng, width, head_dim * n_head, head_dim * n_head_kv, n_ff, n_layer, n_expert, n_vocab)
    factors = [1.0] * (head_dim // 2)
    if scaling == b"longrope":
        for kind in (b"long", b"short"):
            name = b"rope_factors_%s.weight" % kind
            file.tensors.append(Tensor(name, [head_dim // 2], 0, struct.pack(f"<{len(factors)}f", *factors)))
    elif rng.random() < 0.3:
        file.tensors.append(
            Tensor(b"rope_freqs.weight", [head_dim // 2], 0, struct.pack(f"<{len(factors)}f", *factors))
        )
    return file


def _add_vocabulary(file: GgufBytes, rng: random.Random) -> int:
    if rng.random() < 0.5:
        tokens, types, merges = _bpe(rng)
        file.set("tokenizer.ggml.model", STRING, b"gpt2")
        file.set("tokenizer.ggml.pre", STRING, rng.choice([b"llama-bpe", b"default", b"gpt-2", b"qwen2", b"smollm"]))
        file.set("tokenizer.ggml.tokens", ARRAY, Array(STRING, tokens))
        file.set("tokenizer.ggml.merges", ARRAY, Array(STRING, merges))
        bos, eos = len(tokens) - 3, len(tokens) - 1
    else:
        pieces = toy.vocabulary()
        tokens, types = [piece.encode() for piece, _, _ in pieces], [kind for _, _, kind in pieces]
        file.set("tokenizer.ggml.model", STRING, b"llama")
        file.set("tokenizer.ggml.tokens", ARRAY, Array(STRING, tokens))
        file.set("tokenizer.ggml.scores", ARRAY, Array(FLOAT32, [score for _, score, _ in pieces]))
        bos, eos = toy.BOS, toy.EOS
    file.set("tokenizer.ggml.token_type", ARRAY, Array(INT32, types))
    if rng.random() < 0.9:
        file.set("tokenizer.ggml.bos_token_id", UINT32, bos)
        file.set("tokenizer.ggml.eos_token_id", UINT32, eos)
    if rng.random() < 0.5:
        file.set("tokenizer.ggml.add_bos_token", BOOL, rng.randrange(2))
        file.set("tokenizer.ggml.add_eos_token", BOOL, rng.randrange(2))
    return len(tokens)


def _add_tensors(
    file: GgufBytes, rng: random.Random, width: int, n_q: int, n_kv: int, n_ff: int, n_layer: int, n_expert: int,
    n_vocab: int,
) -> None:  # fmt: skip
    def matrix(name: str, *shape: int, plain: bool = False) -> None:
        fitting = [t for t in WEIGHTS if shape[0] % t.block_size == 0]
        kind = TENSOR_TYPES["F32"] if plain or rng.random() < 0.4 else rng.choice(fitting)
        n_bytes = math.prod(shape[1:]) * kind.row_bytes(shape[0])
        file.tensors.append(Tensor(name.encode(), list(shape), kind.ggml_type, _content(rng, kind.ggml_type, n_bytes)))

    def vector(name: str, n: int) -> None:
        file.tensors.append(Tensor(name.encode(), [n], 0, _content(rng, 0, 4 * n)))

    matrix("token_embd.weight", width, n_vocab)
    vector("output_norm.weight", width)
    if rng.random() < 0.6:
        matrix("output.weight", width, n_vocab)
    biases, fused = rng.random() < 0.2, rng.random() < 0.1
    for i in range(n_layer):
        block = f"blk.{i}."
        vector(block + "attn_norm.weight", width)
        vector(block + "ffn_norm.weight", width)
        parts = {"attn_output": (n_q, width)}
        if fused:
            parts["attn_qkv"] = (width, n_q + 2 * n_kv)
        else:
            parts |= {"attn_q": (width, n_q), "attn_k": (width, n_kv), "attn_v": (width, n_kv)}
        if not n_expert:
            parts |= {"ffn_gate": (width, n_ff), "ffn_up": (width, n_ff), "ffn_down": (n_ff, width)}
        for part, shape in parts.items():
            matrix(f"{block}{part}.weight", *shape)
            if biases:
                vector(f"{block}{part}.bias", shape[1])
        if n_expert:
            matrix(block + "ffn_gate_inp.weight", width, n_expert, plain=True)
            for part, columns, rows in (("gate", width, n_ff), ("up", width, n_ff), ("down", n_ff, width)):
                matrix(f"{block}ffn_{part}_exps.weight", columns, rows, n_expert)


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _number(rng: random.Random, kind: int, old: object) -> object:
    """Return a value for a scalar of type `kind`, near the old one or at an edge."""
    if kind == STRING:
        return rng.choice(STRINGS)
    if kind in (FLOAT32, FLOAT64):
        return rng.choice(FLOATS)
    if kind == BOOL:
        return rng.choice([0, 1, 1, 0, 2])
    size = 8 * struct.calcsize("<" + FORMS[kind])
    value = rng.choice(NUMBERS)
    if isinstance(old, int) and rng.random() < 0.6:
        value = rng.choice([old + 1, old - 1, old * 2, old // 2, old ^ (1 << rng.randrange(size)), -old])
    value &= (1 << size) - 1
    return value - (1 << size) if FORMS[kind].islower() and value >> (size - 1) else value


def _value(rng: random.Random, kind: int) -> object:
    if kind == ARRAY:
        element = rng.choice([*FORMS, STRING, ARRAY])
        if element == ARRAY:
            return Array(ARRAY, [])
        return Array(element, [_number(rng, element, 1) for _ in range(rng.choice([0, 1, 2, 3, 4, 300]))])
    return _number(rng, kind, rng.choice(NUMBERS))


def change_value(file: GgufBytes, rng: random.Random) -> None:
    key = rng.choice([key for key in file.keys if key.type != ARRAY])
    key.value = _number(rng, key.type, key.value)


def change_type(file: GgufBytes, rng: random.Random) -> None:
    key = rng.choice(file.keys)
    kind = rng.choice([*FORMS, STRING, ARRAY])
    if key.type == ARRAY and rng.random() < 0.5 and kind in FORMS:
        old = key.value.values
        key.value = Array(kind, [_number(rng, kind, element) for element in old[: rng.randrange(len(old) + 1)]])
        return
    same = kind in FORMS and key.type in FORMS and kind not in (FLOAT32, FLOAT64) and isinstance(key.value, int)
    value = key.value & ((1 << (8 * struct.calcsize("<" + FORMS[kind]) - 1)) - 1) if same else _value(rng, kind)
    key.type, key.value = kind, value


def add_key(file: GgufBytes, rng: random.Random) -> None:
    kind = rng.choice([UINT32, UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32, UINT64, UINT16, UINT8])
    file.set(rng.choice(KNOWN_KEYS), kind, _value(rng, kind))


def drop_key(file: GgufBytes, rng: random.Random) -> None:
    file.keys.remove(rng.choice(file.keys))


def rename_key(file: GgufBytes, rng: random.Random) -> None:
    key = rng.choice(file.keys)
    key.name = rng.choice([rng.choice(file.keys).name, rng.choice(KNOWN_KEYS).encode(), key.name[:-1], key.name + b"x"])


def change_array(file: GgufBytes, rng: random.Random) -> None:
    key = rng.choice([key for key in file.keys if key.type == ARRAY] or file.keys)
    if key.type != ARRAY or not key.value.values:
        return
    values: list[object] = key.value.values
    where = rng.randrange(len(values))
    choice = rng.randrange(7)
    if choice == 0:
        del values[where]
    elif choice == 1:
        values.insert(where, values[rng.randrange(len(values))])
    elif choice == 2:
        del values[where:]
    elif choice == 3:
        other = rng.randrange(len(values))
        values[where], values[other] = values[other], values[where]
    elif choice == 4 and isinstance(values[where], bytes):
        text = values[where]
        assert isinstance(text, bytes)
        values[where] = rng.choice([b"", text[:-1], text + b"\0", rng.randbytes(3), b" ", text.lower(), b"<0x>"])
    elif choice == 5:
        for _ in range(rng.randrange(1, 20)):
            values[rng.randrange(len(values))] = _number(rng, key.value.type, values[where])
    else:
        values[where] = _number(rng, key.value.type, values[where])


def change_vocabulary(file: GgufBytes, rng: random.Random) -> None:
    """Lengthen or shorten all arrays of the vocabulary alike, so that they agree with one another."""
    names = (b"tokenizer.ggml.tokens", b"tokenizer.ggml.scores", b"tokenizer.ggml.token_type")
    arrays = [key.value for key in file.keys if key.name in names and key.type == ARRAY]
    n = min((len(array.values) for array in arrays), default=0)
    if not n:
        return
    if rng.random() < 0.5:
        where = rng.randrange(n)
        for array in arrays:
            del array.values[where : where + rng.choice([1, 1, 5, n])]
    else:
        for array in arrays:
            array.values.append(b"new%d" % n if array.type == STRING else 1)
    if rng.random() < 0.8:  # and the tensors with them
        n = len(arrays[0].values)
        for tensor in file.tensors:
            if tensor.name in (b"token_embd.weight", b"output.weight") and len(tensor.shape) == 2 and tensor.shape[1]:
                row = len(tensor.content) // tensor.shape[1]
                tensor.shape[1] = n
                tensor.content = (tensor.content * 2)[: row * n]


def change_shape(file: GgufBytes, rng: random.Random) -> None:
    tensor = rng.choice(file.tensors)
    if not tensor.shape or rng.random() < 0.2:
        tensor.shape = rng.choice([[], [*tensor.shape, 1], [1, *tensor.shape], tensor.shape[::-1], tensor.shape[:-1]])
        return
    where = rng.randrange(len(tensor.shape))
    old = tensor.shape[where]
    tensor.shape[where] = rng.choice([*NUMBERS, old + 1, max(0, old - 1), old * 2, old // 2])


def change_tensor_type(file: GgufBytes, rng: random.Random) -> None:
    tensor = rng.choice(file.tensors)
    tensor.type = rng.choice([*range(45), 1 << 31, (1 << 32) - 1])
    known = next((t for t in TENSOR_TYPES.values() if t.ggml_type == tensor.type), None)
    if known and tensor.shape and tensor.shape[0] % known.block_size == 0 and rng.random() < 0.9:
        n_bytes = math.prod(tensor.shape[1:]) * known.row_bytes(tensor.shape[0])
        if n_bytes < 1 << 22:  # a shape that was damaged before may stand for more than there is
            tensor.content = rng.randbytes(n_bytes)


def change_table(file: GgufBytes, rng: random.Random) -> None:
    tensor = rng.choice(file.tensors)
    choice = rng.randrange(6)
    if choice == 0:
        file.tensors.remove(tensor)
    elif choice == 1:
        file.tensors.append(Tensor(tensor.name, list(tensor.shape), tensor.type, tensor.content))
    elif choice == 2:
        other = rng.choice(file.tensors)
        tensor.name, other.name = other.name, tensor.name
    elif choice == 3:
        rng.shuffle(file.tensors)
    elif choice == 4:
        tensor.name = rng.choice([b"", tensor.name[:-1], tensor.name + b"x" * 60, tensor.name + b"\0x", b"blk.99.x",
                                  tensor.name.replace(b"blk.0", b"blk.%d" % rng.randrange(-1, 600))])  # fmt: skip
    else:
        tensor.offset = rng.choice([0, 1, 31, 32, 64, 1 << 20, 1 << 40, (1 << 64) - 32, (1 << 64) - 1])


def add_tensor(file: GgufBytes, rng: random.Random) -> None:
    block = f"blk.{rng.randrange(2)}."
    name = rng.choice(["rope_freqs.weight", "output.bias", "output.scale", "output.input_scale", "token_embd.scale",
                       "cls.weight", "cls.output.weight", "output_norm.bias", "rope_factors_long.weight",
                       block + "attn_q.scale", block + "ffn_down.input_scale", block + "attn_qkv.weight",
                       block + "attn_q_norm.weight", block + "ffn_gate_shexp.weight", block + "attn_k.bias",
                       block + "ffn_gate.0.weight", block + "ffn_gate_exps.weight"])  # fmt: skip
    n = rng.choice([1, 2, 4, 8, 16, 32, 64])
    file.tensors.append(Tensor(name.encode(), [n], 0, _content(rng, 0, 4 * n)))


def change_frame(file: GgufBytes, rng: random.Random) -> None:
    choice = rng.randrange(4)
    if choice == 0:
        file.set("general.alignment", UINT32, rng.choice([0, 1, 2, 4, 8, 16, 32, 64, 4096, 1 << 20, 3, 48]))
        file.alignment = max(1, file.key("general.alignment").value)
    elif choice == 1:
        file.n_keys = rng.choice([*NUMBERS, len(file.keys) + 1, max(0, len(file.keys) - 1)]) & ((1 << 64) - 1)
    elif choice == 2:
        file.n_tensors = rng.choice([*NUMBERS, len(file.tensors) + 1, max(0, len(file.tensors) - 1)]) & ((1 << 64) - 1)
    else:
        file.version = rng.choice([0, 1, 2, 3, 4, 0x03000000, (1 << 32) - 1])


def change_architecture(file: GgufBytes, rng: random.Random) -> None:
    """Call the model another architecture, its keys with it."""
    name = rng.choice(ARCHITECTURES)
    for key in file.keys:
        key.name = key.name.replace(b"llama.", name + b".", 1) if key.name.startswith(b"llama.") else key.name
    file.keys = [key for key in file.keys if key.name != b"general.architecture"]
    file.keys.insert(0, Key(b"general.architecture", STRING, name))


MUTATIONS: list[Callable[[GgufBytes, random.Random], None]] = [
    change_value, change_value, change_value, change_type, change_type, add_key, add_key, add_key, drop_key, rename_key,
    change_array, change_array, change_array, change_vocabulary, change_shape, change_tensor_type, change_tensor_type,
    change_table, add_tensor, change_frame,
]  # fmt: skip


def damage(file: GgufBytes, rng: random.Random, n: int | None = None) -> None:
    """Do one to three (or `n`) random mutations to `file`."""
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3]) if n is None else n):
        if file.keys and file.tensors:
            rng.choice(MUTATIONS)(file, rng)


def damaged_bytes(seed: int, *, other_architectures: bool = False) -> bytes:
    """Return mutated file number `seed`: nine in ten by structure, one in ten by flipped, lost or added bytes."""
    rng = random.Random(seed)
    file = variant(rng)
    if seed % 50 == 0:
        return file.dump()  # as it should be: must load and run
    if other_architectures:
        change_architecture(file, rng)
    if rng.random() < 0.9:
        damage(file, rng)
        return file.dump()
    raw = bytearray(file.dump())
    n_header = len(file.header())
    for _ in range(rng.choice([1, 1, 2, 8])):
        where = rng.randrange(n_header)
        choice = rng.randrange(4)
        if choice < 2:
            raw[where] ^= 1 << rng.randrange(8)
        elif choice == 2:
            raw[where : where + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
        else:
            raw[where] = rng.choice([0, 1, 127, 128, 255])
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.05 else raw)


def tiny() -> GgufBytes:
    """Return the smallest model that passes the check, less than 3 KB: what coverage-guided fuzzing starts from."""
    file = GgufBytes()
    file.set("general.architecture", STRING, b"llama")
    for key, value in [("context_length", 8), ("embedding_length", 2), ("block_count", 1), ("feed_forward_length", 2),
                       ("attention.head_count", 1), ("attention.head_count_kv", 1)]:  # fmt: skip
        file.set(f"llama.{key}", UINT32, value)
    file.set("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5)
    file.set("tokenizer.ggml.model", STRING, b"gpt2")
    file.set("tokenizer.ggml.tokens", ARRAY, Array(STRING, [b"a", b"b", b"ab"]))
    file.set("tokenizer.ggml.token_type", ARRAY, Array(INT32, [1, 1, 1]))
    file.set("tokenizer.ggml.merges", ARRAY, Array(STRING, [b"a b"]))
    file.set("tokenizer.ggml.bos_token_id", UINT32, 0)
    shapes = {"token_embd": [2, 3], "output_norm": [2], "blk.0.attn_norm": [2], "blk.0.ffn_norm": [2]}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{part}": [2, 2] for part in parts}
    for name, shape in shapes.items():
        file.tensors.append(Tensor(f"{name}.weight".encode(), shape, 0, bytes(4 * math.prod(shape))))
    return file
