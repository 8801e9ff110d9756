"""llama.cpp's name for the pre-tokenizer of a tokenizer.json.

    >>> pre_tokenizer_name({
    ...     "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    ...         {"type": "Digits", "individual_digits": True},
    ...         {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    ...     ]},
    ...     "model": {"type": "BPE"},
    ... })
    'smollm'

Before BPE merges anything, a text is cut into words, which no merge crosses. tokenizer.json spells the cuts out as a
list of steps; GGUF has only a name, ``tokenizer.ggml.pre``, for which llama.cpp has its own list of regular expressions
(llm_tokenizer_bpe, llama-vocab.cpp). llama.cpp's converter finds the name by a hash of one sample text's ids, which it
knows for published vocabularies only; here the steps themselves are compared, in one canonical spelling. Names for the
same cuts are one entry: Falcon 3 gets "llama-bpe", not "falcon3".

Whether llama.cpp's list really cuts like the original is not known here: `probe` tests that with the finished file.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from llamalite.converters.vocabulary.files import entries
from llamalite.errors import VocabularyError

# Different spellings of the same expression → the canonical one: English contractions in any case, possessive
# quantifiers that make no difference, and line ends written literally.
_RESPELLED = (
    ("'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("?+", "?"),
    ("++", "+"),
    (r"\p{N}{1}|", r"\p{N}|"),
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BYTES = "every byte becomes a character"  # the last step of byte-level BPE, as shown in messages
_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_QWEN35 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SEED_CODER = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_BAILING = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_MINICPM5 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}" + _O200K_TAIL
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENGLISH}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENGLISH}?"
    r"|\p{N}{1,3}" + _O200K_TAIL
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Letters of the scripts that have case, which the tokenizer of DeepSeek LLM lists one by one.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-"
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-"
    "\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-"
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-"
    "\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-"
    "\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-"
    "\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_DEEPSEEK_V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Names(NamedTuple):
    """llama.cpp's names for one list of cuts.

    With `with_merges` tokens are made by merges only; with `ignoring_merges` a word that is a token is taken as it is
    (``ignore_merges``). If llama.cpp has only one of the two, the other is ``None`` and the existing one is used. That
    is right unless the vocabulary has words that no merge makes, which the probe would find.
    """

    with_merges: str | None
    ignoring_merges: str | None


_KNOWN: dict[tuple[str, ...], _Names] = {
    (_LLAMA3,): _Names("smaug-bpe", "llama-bpe"),
    (_GPT2,): _Names("gpt-2", None),
    (r"\p{N}", _GPT2): _Names("smollm", None),
    (_QWEN2,): _Names("qwen2", None),
    (_QWEN35,): _Names("qwen35", None),
    # Under this name llama.cpp always takes whole words; with Mistral's vocabulary that makes no difference.
    (_TEKKEN,): _Names("tekken", "tekken"),
    (_GPT4O,): _Names("gpt-4o", None),
    (_SEED_CODER,): _Names("seed-coder", None),
    (_BAILING,): _Names("bailingmoe", None),
    (r"\p{N}{1,3}", _MINICPM5): _Names(None, "minicpm5"),
    (
        r"[\r\n]",
        rf"\s?[{_DEEPSEEK_LETTERS}]+",
        rf"\s?[{_DEEPSEEK_PUNCTUATION}]+",
        r"\s+$",
        _CJK,
        r"\p{N}",
    ): _Names("deepseek-llm", None),
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"): _Names("deepseek-coder", None),
    (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK_V3): _Names("deepseek-v3", None),
}

# Names under which llama.cpp puts BOS before a text unless the file says no (llama_vocab::impl::load).
ADDS_BOS = frozenset({"llama-bpe", "tekken"})
# The same cuts, but with "starcoder" llama.cpp removes spaces before punctuation from decoded text.
_CLEANING_UP = {"smollm": "starcoder"}


def pre_tokenizer_name(tokenizer: dict[str, Any], *, cleans_up_spaces: bool = False) -> str:
    """Return the name for ``tokenizer.ggml.pre``; `VocabularyError` shows the steps if llama.cpp has no name for them.

    `tokenizer` is a parsed tokenizer.json. `cleans_up_spaces` is its ``clean_up_tokenization_spaces``.
    """
    steps = _steps(tokenizer.get("pre_tokenizer"))
    names = _KNOWN.get(tuple(steps[:-1])) if steps[-1:] == [_BYTES] else None
    name = None
    if names is not None:
        ignores_merges = bool(tokenizer["model"].get("ignore_merges"))
        name = (
            (names.ignoring_merges if ignores_merges else names.with_merges)
            or names.with_merges
            or names.ignoring_merges
        )
    if name is None:
        shown = " then ".join(repr(step) for step in steps) or "no step"
        raise VocabularyError(
            f"tokenizer.json cuts texts by {shown}, which llama.cpp has no name for: this vocabulary cannot be "
            f"put into a GGUF file (known: {', '.join(sorted({n for known in _KNOWN.values() for n in known if n}))})"
        )
    return _CLEANING_UP.get(name, name) if cleans_up_spaces else name


def _steps(node: Any) -> list[str]:
    """Return the steps of a pre-tokenizer: regular expressions whose matches are cut out in turn, then `_BYTES`."""
    if node is None:
        return []
    kind = node.get("type") if isinstance(node, dict) else None
    if kind == "Sequence":
        return [step for part in entries(node, "pretokenizers") for step in _steps(part)]
    if kind == "ByteLevel":
        return [_GPT2, _BYTES] if node.get("use_regex", True) else [_BYTES]
    if kind == "Digits":
        return [r"\p{N}" if node.get("individual_digits") else r"\p{N}+"]
    if kind == "Split":
        return [_split(node)]
    return [repr(node)]


def _split(node: dict[str, Any]) -> str:
    pattern = node.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
        regex = re.escape(pattern["String"])
    if not isinstance(regex, str):
        return repr(node)
    for spelling, canonical in _RESPELLED:
        regex = regex.replace(spelling, canonical)
    behavior, invert = node.get("behavior"), bool(node.get("invert"))
    # If an expression matches every character, isolating its matches and removing everything else are the same.
    if (behavior == "Isolated" and not invert) or (behavior == "Removed" and invert and regex.endswith(r"|\s+")):
        return regex
    return f"{regex} ({behavior}{', inverted' if invert else ''})"
