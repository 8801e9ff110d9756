"""Small LLaMA models in GGUF form with seeded random weights, written by the tests themselves.

    path = write_toy(tmp_path / "toy.gguf")          # 2 layers, 64 wide, GQA 4/2, 330 SentencePiece tokens, F32

The vocabulary has byte fallback (any text can be tokenized), a few words, and ChatML's two control tokens. The model
generates noise, the same on every machine for the same seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

BOS, EOS = 1, 2
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # enum llama_token_type (llama.h)
WORDS = ["once", "upon", "time", "the", "and", "there", "was", "story", "tell", "me", "yes", "no"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def vocabulary() -> list[tuple[str, float, int]]:
    """Return (piece, score, type) of every token, in the order of their ids."""
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    single = [*"▁abcdefghijklmnopqrstuvwxyz", *"ABCDEFGH", *"0123456789", *".,!?'\"{}[]:-"]
    pieces += [(piece, -10.0 - 0.01 * i, NORMAL) for i, piece in enumerate(single)]
    stems: dict[str, None] = {}
    for word in WORDS:  # SentencePiece merges pairs: a word is found only when its beginnings are pieces too
        stems.update(dict.fromkeys("▁" + word[:n] for n in range(1, len(word) + 1)))
    pieces += [(piece, -float(len(piece)) / 10, NORMAL) for piece in stems]
    pieces += [("<|im_start|>", 0.0, CONTROL), ("<|im_end|>", 0.0, CONTROL)]
    return pieces


def write_toy(
    path: Path,
    *,
    seed: int = 0,
    n_layer: int = 2,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 96,
    n_ctx_train: int = 1024,
    chat_template: str | None = None,
    add_bos: bool = True,
    tokenizer: str = "llama",
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write the model to `path` and return it.

    `metadata` adds float, int, bool or str keys; `tokenizer` "none" leaves the vocabulary out.
    """
    rng = np.random.default_rng(seed)
    pieces = vocabulary()
    names = [piece for piece, _, _ in pieces]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("toy")
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_vocab_size(len(pieces))
    writer.add_file_type(0)
    if tokenizer == "none":
        writer.add_tokenizer_model("no_vocab")
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(names)
        writer.add_token_scores([score for _, score, _ in pieces])
        writer.add_token_types([kind for _, _, kind in pieces])
        writer.add_bos_token_id(BOS)
        writer.add_eos_token_id(EOS)
        writer.add_eot_token_id(names.index("<|im_end|>"))
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(add_bos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for key, value in (metadata or {}).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_int32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)

    def matrix(rows: int, columns: int, scale: float) -> npt.NDArray[np.float32]:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        values *= np.float32(scale / columns**0.5)
        return values

    n_kv = n_embd // n_head * n_head_kv
    ones = np.ones(n_embd, np.float32)
    writer.add_tensor("token_embd.weight", matrix(len(pieces), n_embd, n_embd**0.5))
    for i in range(n_layer):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{i}.attn_q.weight", matrix(n_embd, n_embd, 2.0))
        writer.add_tensor(f"blk.{i}.attn_k.weight", matrix(n_kv, n_embd, 2.0))
        writer.add_tensor(f"blk.{i}.attn_v.weight", matrix(n_kv, n_embd, 1.0))
        writer.add_tensor(f"blk.{i}.attn_output.weight", matrix(n_embd, n_embd, 1.0))
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
        writer.add_tensor(f"blk.{i}.ffn_gate.weight", matrix(n_ff, n_embd, 1.0))
        writer.add_tensor(f"blk.{i}.ffn_up.weight", matrix(n_ff, n_embd, 1.0))
        writer.add_tensor(f"blk.{i}.ffn_down.weight", matrix(n_embd, n_ff, 1.0))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", matrix(len(pieces), n_embd, 3.0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
