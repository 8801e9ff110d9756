"""Small tokenizers of every kind in LLaMA checkpoints, written by the tests, the same on every machine.

    write_sentencepiece(folder)                     # tokenizer.model: 3 specials, 256 bytes, pieces with scores
    write_byte_fallback(folder)                     # the same vocabulary as Llama 2's fast tokenizer.json
    write_byte_level(folder, LLAMA3, ignore_merges=True)

Merges are learned here, by the plain algorithm, from a text in many scripts, so that they do not depend on the
version of a trainer.
"""

from __future__ import annotations

import functools
import itertools
import json
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

CORPUS = (
    "Once upon a time, there was a little girl named Lily. She'd loved the stories; they're what we've told, I'll say! "
    "He can't stop: it's 3 or 33 or 333 or 3333333 apples, 12,345.67 in 1999 and 2024. THE END isn't NEAR. "
    "def add(a, b):\n    return a + b  # sum\n\nfor i in range(10):\n\tprint(f'{i:>3}')\n\n\n"
    'if (x != null && y >= 0) { return arr[i++]; } // done\r\n<div class="a">https://example.org/path?q=1</div>\n'
    "   three spaces,    four,     five      six\t\ttabs\n \n  \n   \n"
    "Größe straße façade naïve élève Ångström Đorđe ČESKÝ język İstanbul ısı "
    "Привет мир, как дела? Съешь ещё этих мягких французских булок. НЕЩО НА БЪЛГАРСКИ "
    "Καλημέρα κόσμε, ΑΒΓΔ αβγδ ώρα. 你好,世界。我想在2024年工作14天。今天天气很好,我们去公园。"
    "日本語のテキスト、ひらがなとカタカナ。 안녕하세요 세계 오늘은 날씨가 좋네요. "
    "مرحبا بالعالم كيف حالك اليوم שלום עולם नमस्ते दुनिया आप कैसे हैं สวัสดีชาวโลก កាន់តែពិសេស "
    "🚀 😶‍🌫️ 🦙🦙 ✅ ½ ² ① Ⅷ € £ ≤ ≠ → ∑ “quotes” ‘single’ – — … "
) * 2

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = {**GPT2, "use_regex": False}
_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3_REGEX = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_REGEX = LLAMA3_REGEX.replace("{1,3}", "")


def split(regex: str, behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    """Return tokenizer.json's step that cuts by `regex`."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    """Return tokenizer.json's pre-tokenizer of several steps."""
    return {"type": "Sequence", "pretokenizers": list(steps)}


LLAMA3 = sequence(split(LLAMA3_REGEX), BYTES)
SMOLLM = sequence({"type": "Digits", "individual_digits": True}, GPT2)


def learn_merges(words: Iterable[Sequence[str]], n_merges: int) -> list[tuple[str, str]]:
    """Return up to `n_merges` merges by byte-pair encoding: the most frequent pair first, ties in text order."""
    counts = Counter(tuple(word) for word in words)
    merges: list[tuple[str, str]] = []
    while len(merges) < n_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in counts.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        counts = Counter({_merged(word, best): n for word, n in counts.items()})
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def _pieces(n_merges: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (merges, single characters) of the corpus as SentencePiece sees it: ``▁`` for a space."""
    lines = [f"▁{line}".replace(" ", "▁") for line in CORPUS.split("\n") if line]
    words = [f"▁{word}" for line in lines for word in line.split("▁")[1:]]
    merges = learn_merges(words + ["▁" * n for n in (2, 3, 4, 5, 6)] * 3, n_merges)
    counts = Counter("".join(lines))
    return merges, sorted(counts, key=lambda c: (-counts[c], c))[:150]


@functools.cache
def _pieces_with_scores(n_merges: int) -> tuple[list[tuple[str, float]], list[tuple[str, str]]]:
    """Return the normal pieces: merged ones first, the k-th with score -k, then single characters further down."""
    merges, single = _pieces(n_merges)
    single += [c for c in dict.fromkeys("".join(a + b for a, b in merges)) if c not in single]
    made = list(dict.fromkeys(left + right for left, right in merges))
    texts = made + single
    return [(text, -float(k)) for k, text in enumerate(texts)], merges


def _field(number: int, wire: int, payload: bytes) -> bytes:
    head = _varint(number << 3 | wire)
    return head + (_varint(len(payload)) if wire == 2 else b"") + payload


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def sentencepiece_model(
    pieces: Sequence[tuple[str, float, int]], *, add_dummy_prefix: bool = True, byte_fallback: bool = True
) -> bytes:
    """Return a ``ModelProto`` (sentencepiece_model.proto): BPE, identity normalizer.

    A piece is (text, score, type): 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    """
    out = b"".join(
        _field(1, 2, _field(1, 2, text.encode()) + _field(2, 5, struct.pack("<f", score)) + _field(3, 0, _varint(kind)))
        for text, score, kind in pieces
    )
    out += _field(
        2, 2, _field(3, 0, _varint(2)) + _field(35, 0, _varint(int(byte_fallback)))
    )  # model_type: BPE, byte_fallback
    flags = ((3, add_dummy_prefix), (4, False), (5, True))  # remove_extra_whitespaces, escape_whitespaces
    normalizer = _field(1, 2, b"identity") + b"".join(_field(n, 0, _varint(int(value))) for n, value in flags)
    return out + _field(3, 2, normalizer)


def sentencepiece_pieces(n_merges: int = 300) -> list[tuple[str, float, int]]:
    """Return LLaMA's layout: <unk>, <s>, </s>, the 256 bytes, then pieces with falling scores."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    return pieces + [(text, score, 1) for text, score in _pieces_with_scores(n_merges)[0]]


def write_config(folder: Path, vocab_size: int, **more: Any) -> dict[str, Any]:
    """Write a config.json of a LLaMA with `vocab_size` tokens and return it parsed."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "torch_dtype": "float32", "tie_word_embeddings": True,
        "vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, **more,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    return config


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_sentencepiece(
    folder: Path,
    *,
    vocab_size: int | None = None,
    add_dummy_prefix: bool = True,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``tokenizer.model`` and config.json; return the config."""
    pieces = sentencepiece_pieces()
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(pieces, add_dummy_prefix=add_dummy_prefix)
    (folder / "tokenizer.model").write_bytes(model)
    return write_config(folder, **{"vocab_size": vocab_size or len(pieces), **(config or {})})


def added(token_id: int, content: str, *, special: bool = True, **flags: bool) -> dict[str, Any]:
    """Return an entry of ``added_tokens``."""
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, **flags}
    return {"id": token_id, "content": content, **entry, "special": special}


def template(*, bos: str | None = None, eos: str | None = None, pair: bool = True) -> dict[str, Any]:
    """Return the post-processor that puts `bos` before and `eos` after a text."""

    def around(*sequences: str) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for type_id, name in enumerate(sequences):
            out += [{"SpecialToken": {"id": bos, "type_id": type_id}}] if bos else []
            out += [{"Sequence": {"id": name, "type_id": type_id}}]
            out += [{"SpecialToken": {"id": eos, "type_id": type_id}}] if eos else []
        return out

    tokens = [text for text in (bos, eos) if text]
    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": around("A", "B") if pair else [],
        "special_tokens": {text: {"id": text, "ids": [0], "tokens": [text]} for text in tokens},
    }


def byte_fallback_json(n_merges: int = 300, *, added_tokens: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return the tokenizer.json that transformers makes of Llama 2's tokenizer.model: BPE with byte fallback."""
    pieces = sentencepiece_pieces(n_merges)
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    merges = _pieces_with_scores(n_merges)[1]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), *added_tokens],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        "pre_tokenizer": None,
        "post_processor": _with_ids(template(bos="<s>"), {"<s>": 1}),
        "decoder": {"type": "Sequence", "decoders": [*steps, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocabulary, "merges": [f"{a} {b}" for a, b in merges],
        },
    }  # fmt: skip


def _with_ids(post: dict[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    for text, entry in post["special_tokens"].items():
        entry["ids"] = [ids[text]]
    return post


def byte_alphabet() -> list[str]:
    """Return the 256 characters of byte-level BPE, in the order of their bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_level_json(
    pre_tokenizer: Mapping[str, Any],
    *,
    n_merges: int = 400,
    ignore_merges: bool = False,
    merges_as_pairs: bool = False,
    specials: Sequence[str] = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    bos: str | None = "<|begin_of_text|>",
    eos: str | None = None,
) -> dict[str, Any]:
    """Return a byte-level tokenizer.json whose merges respect `pre_tokenizer`; `specials` follow the vocabulary.

    `bos` and `eos` name the special tokens that the post-processor puts around a text.
    """
    merges = _byte_merges(json.dumps(pre_tokenizer), n_merges)
    alphabet = byte_alphabet()
    texts = sorted(alphabet, key=lambda c: (alphabet.index(c) not in range(33, 127), c))
    texts += list(dict.fromkeys(left + right for left, right in merges))
    vocabulary = {text: i for i, text in enumerate(texts)}
    ids = {text: len(texts) + i for i, text in enumerate(specials)}
    steps = [dict(GPT2)]
    if bos or eos:
        steps.append(_with_ids(template(bos=bos, eos=eos), ids))
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(token_id, text) for text, token_id in ids.items()],
        "normalizer": None,
        "pre_tokenizer": dict(pre_tokenizer),
        "post_processor": {"type": "Sequence", "processors": steps},
        "decoder": dict(GPT2),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
            "vocab": vocabulary, "merges": [list(pair) if merges_as_pairs else " ".join(pair) for pair in merges],
        },
    }  # fmt: skip


@functools.cache
def _byte_merges(pre_tokenizer: str, n_merges: int) -> list[tuple[str, str]]:
    return learn_merges(cutter(json.loads(pre_tokenizer))(CORPUS), n_merges)


def cutter(pre_tokenizer: Mapping[str, Any]) -> Callable[[str], list[str]]:
    """Return a function that gives the words of a text, in the byte alphabet, as the library `tokenizers` cuts them."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    bare = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "normalizer": None,
        "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": None, "model": empty}))  # fmt: skip
    return lambda text: [word for word, _ in bare.pre_tokenizer.pre_tokenize_str(text)]


def write_byte_level(
    folder: Path, pre_tokenizer: Mapping[str, Any], *, config: Mapping[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Write tokenizer.json, tokenizer_config.json and config.json of a byte-level BPE; return the config."""
    tokenizer = byte_level_json(pre_tokenizer, **options)
    return write_tokenizer(folder, tokenizer, config=config)


def write_tokenizer(
    folder: Path, tokenizer: dict[str, Any], *, config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `tokenizer` and a config with a row for each of its tokens; return the config."""
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    ids = [*tokenizer["model"]["vocab"].values(), *(entry["id"] for entry in tokenizer["added_tokens"])]
    return write_config(folder, **{"vocab_size": max(ids) + 1, **(config or {})})
