"""Checks the tokenizer's keys: arrays of equal length, no token twice, ids in range, a token for every byte.

llama.cpp aborts the process on a vocabulary that has a token twice, and on a text with a byte that a SentencePiece
vocabulary has no token for (llama-vocab.cpp, ``llama_vocab::impl::load``, ``llama_vocab::byte_to_token``).
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from llamalite.errors import GGUFError
from llamalite.gguf_check.header import DAMAGED, Header
from llamalite.gguf_check.strings import Spans

TOKENS = "tokenizer.ggml.tokens"
MAX_TOKENS = 1 << 20
_NO_VOCABULARY = {"no_vocab", "none"}
_HEX = b"0123456789ABCDEFabcdef"
_BYTE = 6  # enum llama_token_type (llama.h): 0 undefined ... 6 byte
_SPECIAL_IDS = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle",
)  # fmt: skip  # "seperator" is how llama.cpp spells it (llama-arch.cpp)
_FLAGS = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces")


def check_vocabulary(header: Header, models: tuple[str, ...] | None) -> int:
    """Return the number of tokens; ``GGUFError`` for a vocabulary that llama.cpp would abort on or misread.

    `models` are the values of ``tokenizer.ggml.model`` that the architecture allows; None allows all.
    """
    metadata = header.metadata
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str):
        actual = metadata.type_of("tokenizer.ggml.model") or "nothing"
        _fail(header, f"key tokenizer.ggml.model should be a string, found {actual}")
    if model in _NO_VOCABULARY:
        return header.n_vocab
    if models is not None and model not in models:
        _fail(header, f"key tokenizer.ggml.model is {model[:80]!r}, expected one of {', '.join(models)}")
    if metadata.type_of("tokenizer.ggml.pre") not in ("", "string"):
        _fail(header, f"key tokenizer.ggml.pre should be a string, found {metadata.type_of('tokenizer.ggml.pre')}")
    n_tokens = _array(header, TOKENS, ("string",), None)
    if not 0 < n_tokens <= MAX_TOKENS:
        _fail(header, f"key {TOKENS} has {n_tokens} tokens, expected 1 to {MAX_TOKENS}")
    if "tokenizer.ggml.scores" in metadata:
        _array(header, "tokenizer.ggml.scores", ("float32", "int32"), n_tokens)
        if np.isnan(metadata["tokenizer.ggml.scores"]).any():
            _fail(header, "key tokenizer.ggml.scores holds NaN, so tokens cannot be ordered")
    if "tokenizer.ggml.token_type" in metadata:
        _array(header, "tokenizer.ggml.token_type", ("int32",), n_tokens)
        kinds = metadata["tokenizer.ggml.token_type"]
        if int(kinds.min()) < 0 or int(kinds.max()) > _BYTE:
            extremes = f"{int(kinds.min())} to {int(kinds.max())}"
            _fail(header, f"key tokenizer.ggml.token_type holds {extremes}, expected 0 to {_BYTE}")
    if model == "gpt2":
        _array(header, "tokenizer.ggml.merges", ("string",), None)
    _check_ids(header, n_tokens)
    _check_texts(header, model)
    return n_tokens


def _fail(header: Header, text: str) -> NoReturn:
    raise GGUFError(f"{header.path}: {text}; {DAMAGED}")


def _array(header: Header, key: str, types: tuple[str, ...], length: int | None) -> int:
    actual = header.metadata.type_of(key)
    wanted = [f"array[{kind}]" for kind in types]
    if actual not in wanted:
        _fail(header, f"key {key} should be {' or '.join(wanted)}, found {actual or 'nothing'}")
    n = header.metadata.length_of(key)
    if length is not None and n != length:
        _fail(header, f"key {key} has {n} elements, and {TOKENS} has {length}: expected the same number")
    return n


def _check_ids(header: Header, n_tokens: int) -> None:
    metadata = header.metadata
    for name in _SPECIAL_IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in metadata:
            continue
        if metadata.type_of(key) != "uint32":
            _fail(header, f"key {key} should be a uint32, found {metadata.type_of(key)}")
        if metadata[key] >= n_tokens:
            _fail(header, f"key {key} is {metadata[key]}, and the vocabulary has {n_tokens} tokens")
    for flag in _FLAGS:
        key = f"tokenizer.ggml.{flag}"
        if metadata.type_of(key) not in ("", "bool"):
            _fail(header, f"key {key} should be a bool, found {metadata.type_of(key)}")


def _check_texts(header: Header, model: str) -> None:
    buffer, spans = header.metadata.strings(TOKENS)

    def text(i: int) -> bytes:
        return buffer[int(spans[i, 0]) : int(spans[i, 1])]

    duplicate = first_duplicate(buffer, spans)
    if duplicate is not None:
        _fail(
            header,
            f"tokens {duplicate[0]} and {duplicate[1]} are both {text(duplicate[0])[:80]!r}, expected no token twice",
        )
    with_nul = _first_with_nul(buffer, spans)
    if with_nul is not None:
        _fail(header, f"token {with_nul} holds a NUL byte, where llama.cpp would cut it: {text(with_nul)[:80]!r}")
    # llama.cpp renames an empty token to "[EMPTY_7]", which must not be another token's text.
    empty = np.flatnonzero(spans[:, 0] == spans[:, 1])
    all_tokens: set[bytes] = set()
    if len(empty) or model == "llama":
        starts, ends = spans[:, 0].tolist(), spans[:, 1].tolist()
        all_tokens = {buffer[start:end] for start, end in zip(starts, ends, strict=True)}
    for i in empty.tolist():
        if b"[EMPTY_%d]" % i in all_tokens:
            _fail(header, f"token {i} is empty, and the name that llama.cpp gives it, [EMPTY_{i}], is a token too")
    if "tokenizer.ggml.token_type" in header.metadata:
        for i in np.flatnonzero(header.metadata["tokenizer.ggml.token_type"] == _BYTE).tolist():
            if not _is_byte(text(i)):
                _fail(header, f"token {i} is of type byte, but {text(i)[:80]!r} is not one such as '<0x0A>'")
    if model == "llama":
        for byte in range(256):
            if b"<0x%02X>" % byte not in all_tokens and bytes([byte]) not in all_tokens:
                _fail(header, f"the vocabulary has no token <0x{byte:02X}>: llama.cpp could not spell every text")


def _is_byte(text: bytes) -> bool:
    return len(text) == 6 and text[:3] == b"<0x" and text[5:] == b">" and all(c in _HEX for c in text[3:5])


def _first_with_nul(buffer: bytes, spans: Spans) -> int | None:
    """Return the first string that holds a zero byte; zeros are counted first, since there are nearly always none."""
    start, end = int(spans[0, 0]) - 8, int(spans[-1, 1])
    lengths = np.ascontiguousarray(spans[:, 1] - spans[:, 0])
    n_in_lengths = 8 * len(lengths) - int(np.count_nonzero(lengths.view(np.uint8)))
    if end - start - int(np.count_nonzero(np.frombuffer(buffer, np.uint8, end - start, start))) == n_in_lengths:
        return None
    pairs = zip(spans[:, 0].tolist(), spans[:, 1].tolist(), strict=True)
    return next(i for i, (first, last) in enumerate(pairs) if b"\0" in buffer[first:last])


def first_duplicate(buffer: bytes, spans: Spans) -> tuple[int, int] | None:
    """Return the first pair of equal strings (the pair whose second string comes first); empty strings are ignored.

    Strings are hashed by their length and their first and last eight bytes; only those with equal hashes are compared
    in full.
    """
    start, end = spans[:, 0], spans[:, 1]
    length = end - start
    # A string follows the eight bytes of its length, so that there are always eight bytes before its end.
    words = np.ndarray((len(buffer) - 7,), np.dtype("<u8"), buffer, 0, (1,))
    last = words[end - 8]
    short = np.clip(8 - length, 0, 7).astype(np.uint64)
    last = last >> (short * np.uint64(8))  # drop the bytes of the length
    first = words[np.where(length > 8, start, end - 8)]
    first[length <= 8] = 0
    hashes = first * np.uint64(0x9E3779B97F4A7C15) + last
    hashes ^= hashes >> np.uint64(32)
    hashes = hashes * np.uint64(0xD6E8FEB86659FD93) + length.astype(np.uint64) * np.uint64(0xFF51AFD7ED558CCD)
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return None
    suspicious = np.zeros(1 << 16, np.bool_)  # by the lowest 16 bits: quicker than searching for whole hashes
    suspicious[repeated & np.uint64(0xFFFF)] = True
    seen: dict[bytes, int] = {}
    for i in np.flatnonzero(suspicious[hashes & np.uint64(0xFFFF)] & (length > 0)).tolist():
        text = buffer[int(start[i]) : int(end[i])]
        if text in seen:
            return seen[text], i
        seen[text] = i
    return None
