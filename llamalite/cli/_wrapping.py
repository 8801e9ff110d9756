"""Wraps text between words to a terminal's width: whole texts, and text that a model streams.

>>> wrapper = StreamWrapper(columns=lambda: 16)
>>> print("".join(wrapper.add(piece) for piece in ("Once up", "on a time there ", "was")) + wrapper.end())
Once upon a
time there was
"""

from __future__ import annotations

import sys
import textwrap
import unicodedata
from collections.abc import Callable

import click

from llamalite.cli import _text

_FENCES = ("```", "~~~")
_MIN_COLUMNS = 30  # of text beside a label, even on a narrower terminal


def wrapped(text: str, columns: int, *, first_indent: str = "", indent: str = "") -> list[str]:
    """Return `text` in lines of at most `columns`; longer words are not broken."""
    return textwrap.wrap(
        text,
        columns,
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def print_wrapped(
    text: str, *, label: str = "", label_width: int = 0, in_pipes: bool = False, err: bool = False
) -> None:
    """Print `text` after `label`, which takes `label_width` columns, wrapped to the terminal's width.

    In a pipe it is one line, unless `in_pipes` is set.
    """
    text = _text.clean(text)
    stream = sys.stderr if err else sys.stdout
    lines = [text]
    if in_pipes or stream.isatty():
        columns = min(_text.width() - 1, _text.MAX_COLUMNS)
        lines = wrapped(text, max(_MIN_COLUMNS, columns - label_width)) or [""]
    click.echo(label + ("\n" + " " * label_width).join(lines), err=err)


def print_labelled(label: str, text: str, width: int) -> None:
    """Print wrapped `text` after `label`, which is padded to `width` columns and indented by two."""
    print_wrapped(text, label=f"  {label:{width}}", label_width=width + 2, in_pipes=True)


class StreamWrapper:
    """Wraps a text that comes in pieces. `columns` returns the terminal's current width.

    A word is held back until it is complete: only then is it known whether it fits. Code between fences (```) and
    indented lines are not wrapped, unless `joins_lines` is set: then any white space becomes one space. Written text
    stays as it is, so the current line may be too long if the width changes.
    """

    def __init__(
        self, columns: Callable[[], int] = _text.width, *, indent: str = "", joins_lines: bool = False
    ) -> None:
        self._columns = columns
        self._indent = indent
        self._joins_lines = joins_lines
        self._column = 0  # columns written of the current line
        self._gap, self._word = "", ""  # white space and the word after it, held back
        self._begins = True  # no word of this line has been written
        self._may_indent = False  # at the very beginning, white space follows a prompt and is not indentation
        self._in_fence = self._keeps_form = False
        self._continues_word = False  # the beginning of a word longer than a line has been written

    def add(self, piece: str) -> str:
        """Return what to write now that `piece` has been added to the text."""
        output = []
        for character in piece:
            if character in " \t\n":
                output.append(self._place_word())
                self._continues_word = False
                if self._joins_lines:
                    self._gap = "" if self._begins else " "
                elif character == "\n":
                    output.append("\n")
                    self._column, self._gap = 0, ""
                    self._begins = self._may_indent = True
                else:
                    self._gap += character
            elif _text.columns(character) == 2:  # a line may be broken before and after a wide character
                output.append(self._place_word())
                self._word = character
                output.append(self._place_word())
            elif character != "\r":
                # A model may repeat untrusted text: its control characters are escaped.
                self._word += _text.clean(character) if unicodedata.category(character) == "Cc" else character
                if len(self._word) > self._room():
                    output.append(self._place_word())
                    self._continues_word = True
        return "".join(output)

    def end(self) -> str:
        """Return what is still to write at the end of the text."""
        return self._place_word()

    def _room(self) -> int:
        return max(8, self._columns() - 1)  # some terminals begin a new line after the last column

    def _place_word(self) -> str:
        """Return the held word after its white space or on a new line; nothing if there is none."""
        if not self._word:
            return ""
        if self._begins and not self._joins_lines:
            if self._word.startswith(_FENCES):
                self._in_fence = not self._in_fence
            self._keeps_form = self._in_fence or (self._may_indent and self._gap != "")
        before = (self._indent if self._begins else "") + self._gap
        room = self._room()
        width = _text.columns(before + self._word)
        if self._column + width > room and self._column and not (self._keeps_form or self._continues_word):
            before, self._column = "\n" + self._indent, 0
            width = _text.columns(self._indent + self._word)
        self._column += width
        if self._column > room:  # the terminal has broken the line
            self._column %= room + 1
        output = before + self._word
        self._gap, self._word, self._begins = "", "", False
        return output
