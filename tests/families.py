"""A toy of each model family that llamalite converts, in its publisher's format, and the file llama.cpp makes of it.

``data/families.json`` holds what convert_hf_to_gguf.py of llama-cpp-python 0.3.36 wrote for each of `FAMILIES`: every
key in order (short values as they are, long ones as a SHA-256 of their GGUF bytes), and a SHA-256 of all tensors. It
was made, with transformers and torch installed, by

    PYTHONPATH=LLAMA_CPP/gguf-py:LLAMA_CPP python tests/families.py

where LLAMA_CPP is the folder ``vendor/llama.cpp`` in the source of llama-cpp-python 0.3.36. config.json and the
tokenizer's files are like the families' own; widths, layers and vocabularies are small, except for the two sizes of
vocabulary that have a meaning for llama.cpp. The name of the pre-tokenizer is given (``pre``), since llama.cpp's
converter does not know the hashes of toys.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizer_toys as toys
import toy_checkpoint
from checkpoint_files import Weights, load_safetensors, save_safetensors
from vocabulary_cases import keys_of

from llamalite import gguf_check
from llamalite.converters.vocabulary import pretokenizer

DATA = Path(__file__).parent / "data" / "families.json"
Json = dict[str, Any]

DIGITS = {"type": "Digits", "individual_digits": True}
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_LLM = toys.sequence(
    toys.split("[\r\n]"),
    toys.split(rf"\s?[{pretokenizer._DEEPSEEK_LETTERS}]+"),
    toys.split("\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"),
    toys.split(r"\s+$"),
    toys.split(_CJK),
    DIGITS,
    toys.BYTES,
)
DEEPSEEK_CODER = toys.sequence(
    toys.split("[\r\n]"), toys.split(r"\s?\p{L}+"), toys.split(r"\s?\p{P}+"), toys.split(_CJK), DIGITS, toys.BYTES
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN_REGEX = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = toys.sequence(toys.split(TEKKEN_REGEX), toys.BYTES)
_TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
_SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.45.0"}


@dataclass(frozen=True)
class Family:
    """`write` puts the tokenizer's files into a folder and returns its number of rows; the rest is config.json's."""

    write: Callable[[Path], int]
    config: Mapping[str, Any]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    pre: str = ""
    generation: Mapping[str, Any] | None = None
    differs: frozenset[str] = frozenset()
    """Keys that differ on purpose: docs/converter.md says why."""


def _token(text: str) -> Json:
    return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False,
            "single_word": False}  # fmt: skip


def _sentencepiece(
    *, rows: int | None = None, prefix: bool = True, with_json: bool = False, **settings: Any
) -> Callable[[Path], int]:
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

    def write(folder: Path) -> int:
        n: int = toys.write_sentencepiece(folder, vocab_size=rows, add_dummy_prefix=prefix)["vocab_size"]
        if with_json:
            toys.write_json(folder / "tokenizer.json", toys.byte_fallback_json())
        toys.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", **named, **settings})
        return n

    return write


def _byte_level(
    steps: Mapping[str, Any], specials: tuple[str, ...], *, bos: str | None = None, rows: int | None = None,
    first: bool = False, whole: bool = False, **settings: Any,
) -> Callable[[Path], int]:  # fmt: skip
    def write(folder: Path) -> int:
        tokenizer = toys.byte_level_json(steps, specials=specials, bos=bos, ignore_merges=whole)
        if bos is None:
            tokenizer["post_processor"] = None
        if first:  # the special tokens come before the others
            _put_first(tokenizer)
        toys.write_json(folder / "tokenizer.json", tokenizer)
        toys.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
        return rows or len(tokenizer["model"]["vocab"]) + len(specials)

    return write


def _put_first(tokenizer: Json) -> None:
    n = len(tokenizer["added_tokens"])
    vocabulary = {text: i + n for text, i in tokenizer["model"]["vocab"].items()}
    for i, token in enumerate(tokenizer["added_tokens"]):
        token["id"] = i
        vocabulary[token["content"]] = i
        for step in (tokenizer["post_processor"] or {}).get("processors", []):
            for entry in step.get("special_tokens", {}).values():
                if entry["id"] == token["content"]:
                    entry["ids"] = [i]
    tokenizer["model"]["vocab"] = vocabulary


_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>",
           "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>")  # fmt: skip
_N3 = 656  # rows before the special tokens in these toys
_llama3 = _byte_level(
    toys.LLAMA3, _LLAMA3, bos="<|begin_of_text|>", whole=True, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
    chat_template=_TEMPLATE, clean_up_tokenization_spaces=True, model_max_length=131072,
    model_input_names=["input_ids", "attention_mask"],
)  # fmt: skip
_SCALED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
           "rope_type": "llama3"}  # fmt: skip
_ENDS = {"bos_token_id": _N3, "eos_token_id": [_N3 + 1, _N3 + 5, _N3 + 6]}
_llama2 = _sentencepiece(with_json=True, add_bos_token=True, add_eos_token=False, legacy=False, pad_token=None)
_SMOL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>")
_DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
_CODER = ("<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>")
_deepseek_names: Json = {"bos_token": _token(_DEEPSEEK[0]), "eos_token": _token(_DEEPSEEK[1]),
                   "pad_token": _token(_DEEPSEEK[1]), "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True,
                   "add_eos_token": False,
                   "unk_token": None, "legacy": True}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama-7b": Family(
        _sentencepiece(add_bos_token=True, add_eos_token=False, pad_token=None, sp_model_kwargs={}),
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "pad_token_id": 0, "max_sequence_length": 2048},
        {"dtype": "F16"}, generation={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "Llama-2-7b-chat-hf": Family(
        _llama2, {"max_position_embeddings": 4096, "pretraining_tp": 1, "rope_scaling": None}, {"dtype": "F16"},
        generation=_SAMPLING | {"max_length": 4096, "pad_token_id": 0},
    ),
    "Meta-Llama-3-8B-Instruct": Family(
        _llama3, {"rope_theta": 500000.0, "max_position_embeddings": 8192, "bos_token_id": _N3,
                  "eos_token_id": _N3 + 6},
        pre="llama-bpe", generation=_SAMPLING | {"eos_token_id": [_N3 + 1, _N3 + 6]},
    ),
    "Llama-3.1-8B-Instruct": Family(
        _llama3, {"rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": _SCALED, "mlp_bias": False,
                  "attention_bias": False, **_ENDS},
        pre="llama-bpe", generation=_SAMPLING | {"eos_token_id": _ENDS["eos_token_id"]},
    ),
    "Llama-3.2-1B-Instruct": Family(
        _llama3, {"rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": _SCALED | {"factor": 32.0},
                  **_ENDS},
        {"tied": True, "head_dim": 8}, pre="llama-bpe", generation=_SAMPLING,
    ),
    "Llama-3.3-70B-Instruct": Family(
        _llama3, {"rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": _SCALED, **_ENDS},
        {"n_head": 8, "n_head_kv": 1, "head_dim": 4}, pre="llama-bpe", generation=_SAMPLING,
    ),
    "TinyLlama-1.1B-Chat-v1.0": Family(
        _sentencepiece(with_json=True, chat_template=_TEMPLATE, pad_token="</s>", padding_side="right"),
        {"max_position_embeddings": 2048, "attention_bias": False, "pretraining_tp": 1},
        generation={"max_length": 2048, "pad_token_id": 0},
    ),
    "CodeLlama-7b-hf": Family(
        _sentencepiece(rows=32016, tokenizer_class="CodeLlamaTokenizer", prefix_token="▁<PRE>", middle_token="▁<MID>",
                       suffix_token="▁<SUF>", eot_token="▁<EOT>", fill_token="<FILL_ME>", suffix_first=False),
        {"rope_theta": 1000000, "max_position_embeddings": 16384}, {"dtype": "F16", "n_head_kv": 4, "n_layer": 1},
    ),
    "vicuna-7b-v1.5": Family(
        _sentencepiece(add_bos_token=True, add_eos_token=False, clean_up_tokenization_spaces=False,
                       padding_side="right"),
        {"max_position_embeddings": 4096, "pad_token_id": 0, "_name_or_path": "vicuna-7b-v1.5"}, {"dtype": "F16"},
        generation={"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0, "temperature": 0.9,
                    "top_p": 0.6},
    ),
    "SmolLM-135M": Family(
        _byte_level(toys.SMOLLM, _SMOL, first=True, rows=49152, tokenizer_class="GPT2Tokenizer", add_prefix_space=False,
                    bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
                    clean_up_tokenization_spaces=False, vocab_size=49152),
        {"max_position_embeddings": 2048, "rope_scaling": None, "bos_token_id": 0, "eos_token_id": 0},
        {"tied": True, "n_embd": 36, "n_head": 9, "n_head_kv": 3, "n_layer": 1}, pre="smollm",
    ),
    "SmolLM2-135M-Instruct": Family(
        _byte_level(toys.SMOLLM, _SMOL, first=True, rows=49152, tokenizer_class="GPT2Tokenizer", add_prefix_space=False,
                    bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>", pad_token="<|im_end|>",
                    clean_up_tokenization_spaces=False, chat_template=_TEMPLATE),
        {"max_position_embeddings": 8192, "rope_theta": 100000, "rope_interleaved": False, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 2},
        {"tied": True, "n_embd": 36, "n_head": 9, "n_head_kv": 3, "n_layer": 1}, pre="smollm",
    ),
    "Yi-6B-Chat": Family(
        _sentencepiece(prefix=False, add_bos_token=False, add_eos_token=False, legacy=True, chat_template=_TEMPLATE,
                       pad_token="<unk>"),
        {"rope_theta": 5000000.0, "max_position_embeddings": 4096, "pad_token_id": 0},
        differs=frozenset({"tokenizer.ggml.add_space_prefix"}),
    ),
    "deepseek-llm-7b-chat": Family(
        _byte_level(DEEPSEEK_LLM, _DEEPSEEK, chat_template=_TEMPLATE, **_deepseek_names),
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "bos_token_id": 656, "eos_token_id": 657},
        pre="deepseek-llm", generation=_SAMPLING,
    ),
    "deepseek-coder-6.7b-instruct": Family(
        _byte_level(DEEPSEEK_CODER, (*_DEEPSEEK, *_CODER), chat_template=_TEMPLATE, **_deepseek_names),
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 16384, "rope_theta": 100000, "bos_token_id": 656,
         "eos_token_id": 657, "rope_scaling": {"factor": 4.0, "type": "linear"}},
        pre="deepseek-coder",
    ),
    "Mistral-7B-v0.1": Family(
        _llama2, {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "max_position_embeddings": 32768,
                  "sliding_window": 4096},
    ),
    "Mistral-7B-Instruct-v0.3": Family(
        _sentencepiece(with_json=True, add_bos_token=True, add_eos_token=False, legacy=False, chat_template=_TEMPLATE),
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "max_position_embeddings": 32768,
         "rope_theta": 1000000.0, "sliding_window": None},
    ),
    "Mistral-Nemo-Instruct-2407": Family(
        _byte_level(TEKKEN, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), first=True, bos="<s>", bos_token="<s>",
                    eos_token="</s>", unk_token="<unk>", add_bos_token=True, add_eos_token=False,
                    add_prefix_space=False, chat_template=_TEMPLATE, tokenizer_class="PreTrainedTokenizerFast"),
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "max_position_embeddings": 1024000,
         "rope_theta": 1000000.0, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2},
        {"head_dim": 16}, pre="tekken",
    ),
}  # fmt: skip


def write(folder: Path, name: str) -> Path:
    """Write the toy of the family `name` into `folder` / `name`, and return that."""
    family = FAMILIES[name]
    sizes = {"n_embd": 32, "n_ff": 64, "n_layer": 2, "n_head": 4, "n_head_kv": 2} | dict(family.sizes)
    made = toy_checkpoint.write_checkpoint(folder / name, **sizes)
    config = json.loads((made / "config.json").read_text())
    for path in made.glob("tokenizer*"):
        path.unlink()
    n_rows = family.write(made)
    tensors = load_safetensors(made / "model.safetensors")
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & set(tensors):
        tensors[name] = Weights(tensors[name].dtype, np.resize(tensors[name].array, (n_rows, config["hidden_size"])))
    save_safetensors(made / "model.safetensors", tensors)
    toys.write_json(made / "config.json", config | {"vocab_size": n_rows} | dict(family.config))
    if family.generation is not None:
        toys.write_json(made / "generation_config.json", dict(family.generation))
    return made


def described(path: Path) -> Json:
    """Return what `data/families.json` says of the GGUF file at `path`."""
    header = gguf_check.read_header(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for tensor in sorted(header.tensors, key=lambda tensor: tensor.name):  # llama-quantize sorts them by layer
            digest.update(f"{tensor.name} {tensor.type.name} {tensor.shape}\n".encode())
            file.seek(tensor.offset)
            digest.update(file.read(tensor.nbytes))
    return {"keys": keys_of(path, prefix=""), "tensors": digest.hexdigest()}


def _record() -> None:
    import conversion.base  # type: ignore[import-not-found]
    import convert_hf_to_gguf  # type: ignore[import-not-found]

    recorded = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, family in FAMILIES.items():
            out = Path(scratch) / "out.gguf"
            conversion.base.TextModel.get_vocab_base_pre = lambda *_, pre=family.pre: pre
            stored = {"F16": "f16"}.get(family.sizes.get("dtype", ""), "bf16")
            sys.argv = [
                "convert_hf_to_gguf.py",
                str(write(Path(scratch), name)),
                "--outtype",
                stored,
                "--outfile",
                str(out),
            ]
            convert_hf_to_gguf.main()
            recorded[name] = described(out)
    DATA.write_text(json.dumps(recorded, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _record()
