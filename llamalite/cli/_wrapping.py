"""Text broken between words where a terminal's line ends: whole texts, and text that a model streams.

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
_MIN_ROOM = 30  # columns of text beside a label, even on a narrower terminal


def wrapped(text: str, columns: int, *, first_indent: str = "", indent: str = "") -> list[str]:
    """Return `text` in lines of at most `columns`; a longer word is not broken."""
    return textwrap.wrap(
        text,
        columns,
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def print_wrapped(text: str, *, label: str = "", room: int = 0, in_pipes: bool = False, err: bool = False) -> None:
    """Print `text` behind `label`, which takes `room` columns, in lines that keep to the terminal's width.

    In a pipe it is one line, unless `in_pipes`.
    """
    text = _text.clean(text)
    stream = sys.stderr if err else sys.stdout
    lines = [text]
    if in_pipes or stream.isatty():
        columns = min(_text.width() - 1, _text.MAX_COLUMNS)
        lines = wrapped(text, max(_MIN_ROOM, columns - room)) or [""]
    click.echo(label + ("\n" + " " * room).join(lines), err=err)


def print_labelled(label: str, text: str, room: int) -> None:
    """Print `text` behind `label`, which is padded to `room` columns and indented by two."""
    print_wrapped(text, label=f"  {label:{room}}", room=room + 2, in_pipes=True)


class StreamWrapper:
    """Breaks a text that comes in pieces. `columns` returns the width of the terminal, which may change meanwhile.

    A word is held back until it is complete: only then is it known whether it fits. Code between fences (```) and
    indented lines keep their form, unless `joins_lines`: then every run of white space becomes one space. Nothing
    written is taken back, so that a line during which the terminal's width changes may end too late.
    """

    def __init__(
        self, columns: Callable[[], int] = _text.width, *, indent: str = "", joins_lines: bool = False
    ) -> None:
        self._columns = columns
        self._indent = indent
        self._joins_lines = joins_lines
        self._column = 0  # columns of the line that are written
        self._gap, self._word = "", ""  # white space and the word after it, not yet written
        self._begins = True  # no word of this line is written yet
        self._may_indent = False  # white space at the very beginning follows a prompt: it is no indentation
        self._in_fence = self._keeps_form = False
        self._continues_word = False  # the word is longer than a line, and its beginning is written

    def add(self, piece: str) -> str:
        """Return what to write after the next `piece` of the text."""
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
            elif _text.columns(character) == 2:  # a line may end before and after a wide character
                output.append(self._place_word())
                self._word = character
                output.append(self._place_word())
            elif character != "\r":
                # A model may repeat a stranger's text: control characters are shown, not sent to the terminal.
                self._word += _text.clean(character) if unicodedata.category(character) == "Cc" else character
                if len(self._word) > self._room():
                    output.append(self._place_word())
                    self._continues_word = True
        return "".join(output)

    def end(self) -> str:
        """Return what is left to write at the text's end."""
        return self._place_word()

    def _room(self) -> int:
        return max(8, self._columns() - 1)  # some terminals begin a new line once the last column is written

    def _place_word(self) -> str:
        """Return the held word after its white space, or on a new line; nothing if no word is held."""
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
