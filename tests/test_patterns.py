"""Patterns for tensor names: what std::regex finds is found, nothing else, and no pattern takes long."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalite.converters.patterns import Pattern

NAMES = [
    "token_embd.weight", "output.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.7.attn_k.weight",
    "blk.10.attn_v.weight", "blk.12.attn_output.weight", "blk.79.ffn_down.weight", "blk.3.ffn_gate.bias", "",
]  # fmt: skip
# Spelled alike in ECMAScript and in Python, whose engine says what they match.
PATTERNS = [
    "attn_v", "^output", "^output\\.weight$", r"blk\.\d\.", r"blk\.(0|1|2)\.ffn", r"blk\.[0-9]{2}\.",
    "ffn_(up|down|gate)",
    r"blk\.(?!0\.)\d+\.attn", r"\.(?=weight$)", "[^a-z]", r"[\w.]+bias", r"\bq\b", r"attn_[^qk.]", "(a|b|)*c", "x*", "",
    r"(\d+)\.(.*)\.weight", "t{2}", "t{1,}", r"(?:blk\.){0,2}7", "e.?n", "e.*?n", r"\x62lk", r"\u0062lk", r"[\-a]t",
    r"\Bt", "o|$", "}", "n]", "(){3}", "(a*)*$", r"(^|\.)attn", r"[a\d]9", "[.]", r"\.", r"\/",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_finds_what_pythons_engine_finds(pattern: str) -> None:
    found = Pattern(pattern)
    assert [found.search(name) for name in NAMES] == [bool(re.search(pattern, name)) for name in NAMES]


_ATOMS = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", "^", "$", r"\b", r"\w", "a{2}", "b{0,2}", "(?=a)", "(?!b)", ""]
)


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{1,2}", "{2}", "*?"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
    )


@settings(max_examples=400, deadline=None)
@given(st.recursive(_ATOMS, _grown, max_leaves=6), st.text("ab.", max_size=6))
def test_any_pattern_finds_what_pythons_engine_finds(pattern: str, name: str) -> None:
    assert Pattern(pattern).search(name) is bool(re.search(pattern, name))


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*b", "(a|aa)+c", "(.*)*x", "((a{0,50}){0,50}){0,50}b", "(" * 40 + "a" + ")+" * 40 + "b",
     "a{999999}", "(a*){999999}b", "(?:a?){900}a{900}"],
)  # fmt: skip
def test_no_pattern_takes_long(pattern: str) -> None:
    started = time.perf_counter()
    assert not Pattern(pattern).search("a" * 63 + "!")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"a missing '\)' at character 2 of"),
        (")", r"'\)' without '\(' at character 1"),
        ("a**", "a repetition of a repetition at character 3"),
        ("+a", "with nothing to repeat at character 1"),
        ("[z-a]", "a range that does not rise, ending at character 5"),
        ("[a", "an unexpected end at character 3"),
        ("\\", "an unexpected end"),
        (r"(a)\1", "a back reference, which is not supported, at character 5"),
        ("(?P<x>a)", r"'\(\?' followed by none of ':', '=' and '!'"),
        ("(?<=a)b", r"'\(\?' followed by none of"),
        ("a{2,1}", r"no '\{n\}', '\{n,\}' or '\{n,m\}'"),
        ("a{x}", "no number of repetitions"),
        ("a{1234567}", "no number of repetitions"),
        (r"\xg0", "no hexadecimal number"),
        (r"\q", "which means nothing"),
        ("[[:nope:]]", "an unknown"),
        ("(" * 60, "more than 50 parentheses in one another"),
        ("a" * 1001, "has 1,001 characters, expected at most 1,000"),
    ],
)
def test_what_is_no_pattern_is_told_with_its_place(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pattern(pattern)


def test_named_classes_are_those_of_posix() -> None:
    assert Pattern("^blk[[:punct:]][[:digit:]]+$").search("blk.12")
    assert not Pattern("[[:upper:]]").search("blk.12")
