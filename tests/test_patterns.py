"""Patterns for tensor names match as in std::regex, and an invalid one is reported in one line."""

from __future__ import annotations

import pytest

from llamalite.converters.mix import name_pattern

NAMES = [
    "token_embd.weight", "output.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.7.attn_k.weight",
    "blk.10.attn_v.weight", "blk.12.attn_output.weight", "blk.79.ffn_down.weight", "blk.3.ffn_gate.bias",
]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("attn_v", ["blk.10.attn_v.weight"]),
        ("^output", ["output.weight", "output_norm.weight"]),
        (r"^output\.weight$", ["output.weight"]),
        (r"blk\.(0|1|2)\.", ["blk.0.attn_q.weight"]),
        (r"blk\.[0-9]{2}\.ffn_(up|down)", ["blk.79.ffn_down.weight"]),
        (r"blk\.(?!7)\d+\.ffn", ["blk.3.ffn_gate.bias"]),
        (r"attn_[^qkv.]+\.(?=weight$)", ["blk.12.attn_output.weight"]),
        (r"\bq\b", []),  # the underscore is of a word
        (r"(?:blk\.){0,2}7\b", ["blk.7.attn_k.weight"]),
        (r"(.)\1n_g", ["blk.3.ffn_gate.bias"]),
        ("norm.*?w", ["output_norm.weight"]),
        ("", NAMES),
    ],
)
def test_a_pattern_is_searched_anywhere_in_the_name(pattern: str, found: list[str]) -> None:
    assert [name for name in NAMES if name_pattern(pattern).search(name)] == found


def test_a_digit_is_one_of_ten() -> None:
    assert not name_pattern(r"\d|\w").search("\u0663")  # Arabic three, of which std::regex knows nothing


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "unterminated subpattern at position 0"),
        (")", "unbalanced parenthesis at position 0"),
        ("a**", "multiple repeat at position 2"),
        ("+a", "nothing to repeat at position 0"),
        ("[z-a]", "bad character range z-a at position 1"),
        (r"\q", "bad escape"),
        ("a{99999999999}", "too large"),
        ("[[:digit:]]", r"named classes are not supported: write \[0-9\]"),
        ("(" * 500 + ")" * 500, "too many nested parentheses"),
        ("a" * 1001, "has 1,001 characters, expected at most 1,000"),
    ],
)
def test_an_invalid_pattern_is_reported(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        name_pattern(pattern)
