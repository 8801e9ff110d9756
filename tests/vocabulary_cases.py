"""Toy checkpoints with every kind of vocabulary, and what llama.cpp's own converter makes of each.

``data/vocabulary_keys.json`` holds the ``tokenizer.*`` keys, in order, that convert_hf_to_gguf.py wrote for `CASES`
(short values as they are, long ones as a SHA-256 of their GGUF bytes). It was made, with transformers installed, by

    PYTHONPATH=LLAMA_CPP/gguf-py:LLAMA_CPP python tests/vocabulary_cases.py

where LLAMA_CPP is the folder ``vendor/llama.cpp`` in the source of llama-cpp-python 0.3.36. One thing is changed in the
converter: the name of the pre-tokenizer is given (``PRE``), since it does not know the hashes of toys.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizer_toys import (
    LLAMA3,
    SMOLLM,
    added,
    byte_fallback_json,
    byte_level_json,
    sentencepiece_pieces,
    write_byte_level,
    write_json,
    write_sentencepiece,
    write_tokenizer,
)

KEYS = Path(__file__).parent / "data" / "vocabulary_keys.json"
PRE = {"llama3": "llama-bpe", "deepseek": "smaug-bpe", "smollm": "smollm", "templates": "smollm", "nemo": "smaug-bpe"}


def llama2(folder: Path) -> dict[str, Any]:
    """tokenizer.model with tokenizer_config.json, and an embedding with more rows than pieces."""
    n = len(sentencepiece_pieces())
    config = write_sentencepiece(folder, vocab_size=n + 5, config={"pad_token_id": n})
    decoder = {str(i): added(i, text) for i, text in enumerate(("<unk>", "<s>", "</s>"))}
    decoder |= {str(n): added(n, "<pad>", special=False), str(n + 1): added(n + 1, "▁my token", special=False)}
    decoder |= {str(n + 2): added(n + 2, "<|im_end|>", special=False)}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
        "eos_token": {"content": "</s>"}, "unk_token": "<unk>", "chat_template": "{{ messages }}",
        "add_prefix_space": True, "added_tokens_decoder": decoder,
    })  # fmt: skip
    return config


def llama1(folder: Path) -> dict[str, Any]:
    """tokenizer.model with added_tokens.json, as older versions of transformers wrote them."""
    n = len(sentencepiece_pieces())
    write_json(folder / "added_tokens.json", {"[PAD]": n, "<extra>": n + 1, "<beyond>": n + 2})
    return write_sentencepiece(folder, vocab_size=n + 2)


def codellama(folder: Path) -> dict[str, Any]:
    """A vocabulary of 32,016 tokens, which llama.cpp takes for CodeLlama's."""
    return write_sentencepiece(folder, vocab_size=32016)


def both(folder: Path) -> dict[str, Any]:
    """tokenizer.model beside tokenizer.json, as Meta's and most fine-tunes' repositories have."""
    tokenizer = byte_fallback_json()
    write_tokenizer(folder, tokenizer)
    config = write_sentencepiece(folder)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>",
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "legacy": False})  # fmt: skip
    return config


def fast_only(folder: Path) -> dict[str, Any]:
    """Llama 2's tokenizer.json without tokenizer.model."""
    n = len(sentencepiece_pieces())
    more = [added(n, "<|im_start|>"), added(n + 1, "<tool>", special=False)]
    config = write_tokenizer(folder, byte_fallback_json(added_tokens=more))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<|im_start|>"})  # fmt: skip
    return config


def llama3(folder: Path) -> dict[str, Any]:
    """Byte-level BPE with ignore_merges, a template post-processor and end tokens listed in config.json."""
    config = write_byte_level(folder, LLAMA3, ignore_merges=True)
    n = config["vocab_size"]
    config |= {"bos_token_id": n - 3, "eos_token_id": [n - 2, n - 1]}
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "clean_up_tokenization_spaces": True, "model_max_length": 131072,
    })  # fmt: skip
    return config


def deepseek(folder: Path) -> dict[str, Any]:
    """Added tokens inside the base vocabulary and beyond it, special or not, spelled in bytes, and holes at the end."""
    tokenizer = byte_level_json(LLAMA3, specials=(), bos=None)
    tokenizer["post_processor"] = None
    n = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] |= {"<inside>": n, "<outside>": n + 1}
    tokenizer["added_tokens"] = [
        added(n, "<inside>"),
        added(n + 2, "<｜begin▁of▁sentence｜>"),
        added(n + 3, "<｜end▁of▁sentence｜>"),
        added(n + 4, "<｜User｜>", special=False),
        added(n + 5, "ĠĠwide", special=False, normalized=False),
        added(n + 6, "ĠĠkept", special=False, normalized=True),
    ]
    config = write_tokenizer(folder, tokenizer, config={"vocab_size": n + 12})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<｜begin▁of▁sentence｜>"},
        "eos_token": {"__type": "AddedToken", "content": "<｜end▁of▁sentence｜>"},
        "pad_token": "<｜end▁of▁sentence｜>", "unk_token": None,
    })  # fmt: skip
    return config


def smollm(folder: Path) -> dict[str, Any]:
    """A vocabulary of 49,152 tokens whose texts get no BOS."""
    tokenizer = byte_level_json(SMOLLM, specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), bos=None)
    tokenizer["post_processor"] = None
    config = write_tokenizer(folder, tokenizer, config={"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>",
        "chat_template": "{{ messages }}",
    })  # fmt: skip
    return config


def templates(folder: Path) -> dict[str, Any]:
    """A template that ends texts with another token than eos_token; named templates; merges given as pairs."""
    specials = ("<s>", "</s>", "<|end|>")
    tokenizer = byte_level_json(SMOLLM, specials=specials, bos="<s>", eos="<|end|>", merges_as_pairs=True)
    config = write_tokenizer(folder, tokenizer)
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False,
        "chat_template": [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool-use", "template": "{{ 2 }}"}],
    })  # fmt: skip
    return config


def nemo(folder: Path) -> dict[str, Any]:
    """The template in chat_template.jinja, no names in tokenizer_config.json, ids only in config.json."""
    config = write_byte_level(folder, LLAMA3, bos="<|begin_of_text|>", merges_as_pairs=True)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}\n{{ messages }}\n", encoding="utf-8")
    return config


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    case.__name__: case
    for case in (llama2, llama1, codellama, both, fast_only, llama3, deepseek, smollm, templates, nemo)
}


def keys_of(path: Path, prefix: str = "tokenizer.") -> list[list[Any]]:
    """Return [key, type, value] of each key of the GGUF file at `path` with this `prefix`, in the order of the file."""
    raw = path.read_bytes()
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    spelled = {4: "<I", 5: "<i", 6: "<f", 7: "<?"}
    place = 24
    keys: list[list[Any]] = []

    def number(n_bytes: int) -> int:
        nonlocal place
        place += n_bytes
        return int.from_bytes(raw[place - n_bytes : place], "little")

    def skip(kind: int) -> bytes:
        nonlocal place
        start = place
        if kind == 8:
            n = number(8)
            place += n
        elif kind == 9:
            inner, n = number(4), number(8)
            for _ in range(n):
                skip(inner)
        else:
            place += sizes[kind]
        return raw[start:place]

    for _ in range(int.from_bytes(raw[16:24], "little")):
        key = skip(8)[8:].decode()
        kind = number(4)
        value = skip(kind)
        if not key.startswith(prefix):
            continue
        shown: Any = "sha256:" + hashlib.sha256(value).hexdigest()
        if kind in spelled:
            shown = struct.unpack(spelled[kind], value)[0]
        elif kind == 8 and len(value) < 200:
            shown = value[8:].decode()
        keys.append([key, kind, shown])
    return keys


def _record() -> None:
    import conversion.base  # type: ignore[import-not-found]
    import convert_hf_to_gguf  # type: ignore[import-not-found]

    recorded = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder, out = Path(temporary) / "checkpoint", Path(temporary) / "out.gguf"
            case(folder)
            conversion.base.TextModel.get_vocab_base_pre = lambda *_, name=name: PRE[name]
            sys.argv = ["convert_hf_to_gguf.py", str(folder), "--vocab-only", "--outfile", str(out)]
            convert_hf_to_gguf.main()
            recorded[name] = keys_of(out)
    lines = (f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(k, ensure_ascii=False) for k in keys) + "\n]"
             for name, keys in recorded.items())  # fmt: skip
    KEYS.parent.mkdir(exist_ok=True)
    KEYS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    _record()
