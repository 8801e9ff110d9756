"""Wrapping: streamed text is broken between words, however it is cut into pieces, and code keeps its form."""

from __future__ import annotations

import itertools
import random

import pytest

from llamalite.cli import _text
from llamalite.cli._wrapping import StreamWrapper

CODE = "    for line in lines_of_code_that_is_longer_than_a_terminal: print(line)"


def shown(text: str, columns: int, cut: int = 0) -> str:
    """Return what is written of `text`, cut into pieces of random lengths by the seed `cut`."""
    wrapper, dice, written = StreamWrapper(lambda: columns), random.Random(cut), ""
    while text:
        n = dice.randint(1, 7) if cut else len(text)
        written, text = written + wrapper.add(text[:n]), text[n:]
    return written + wrapper.end()


@pytest.mark.parametrize("columns", [20, 33, 80])
def test_lines_end_between_words_and_every_word_stays(columns: int) -> None:
    dice = random.Random(columns)
    words = ["a" * dice.randint(1, 14) + dice.choice([" ", " ", "  ", "\n", "\n\n"]) for _ in range(400)]
    text = "".join(words)
    whole = shown(text, columns)
    assert whole.split() == text.split()
    lines = whole.split("\n")
    assert max(map(len, lines)) < columns
    for line, after in itertools.pairwise(lines):  # what was broken did not fit
        if line and after and f"{line}\n{after}" not in text:
            assert len(line) + 2 + len(after.split()[0]) >= columns
    assert [shown(text, columns, cut) for cut in range(1, 6)] == [whole] * 5


def test_code_and_indented_lines_keep_their_form() -> None:
    fenced = f"```python\n{CODE.strip()}\n{CODE}\n```"
    listed = f"- an item\n{CODE}\n\tand a tab before words that go on and on and on beyond the end of the line"
    for kept in (fenced, listed, f"text\n\n{fenced}\ntext"):
        assert shown(kept, 30) == kept
        assert shown(kept, 30, cut=1) == kept
    after = shown(f"{fenced}\nbut what comes after the fence is broken again", 30)
    assert after.endswith("```\nbut what comes after the\nfence is broken again")


def test_the_space_before_the_first_word_is_no_indent() -> None:
    assert shown(" upon a time there was", 12) == " upon a\ntime there\nwas"


def test_a_word_longer_than_a_line_is_left_to_the_terminal() -> None:
    word = "https://example.org/" + "x" * 100
    for cut in range(3):
        assert shown(f"see {word} for more", 30, cut) == f"see\n{word} for more"


def test_wide_characters_count_two_and_are_broken_anywhere() -> None:
    text = "羊驼是一种生活在南美洲的动物" * 3
    lines = shown(text, 20).split("\n")
    assert "".join(lines) == text
    assert {_text.columns(line) for line in lines[:-1]} == {18}
    assert _text.columns("e\u0301o\u0308") == 2


def test_a_terminal_that_becomes_narrower_breaks_later_lines_there() -> None:
    columns = 60
    wrapper = StreamWrapper(lambda: columns)
    first = wrapper.add("word " * 20)
    columns = 24
    rest = wrapper.add("word " * 40) + wrapper.end()
    assert (first + rest).split() == ["word"] * 60
    assert max(map(len, rest.split("\n")[1:])) < 24


def test_what_would_steer_the_terminal_is_shown() -> None:
    assert shown("a\x1b[2J\x07b\r\nc\x9bd", 40) == "a\\x1b[2J\\x07b\nc\\x9bd"
    assert shown("👩\u200d💻", 40) == "👩\u200d💻"
