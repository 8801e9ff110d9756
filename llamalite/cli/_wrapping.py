"""Text that comes in pieces, broken between words where a terminal's line ends.

    >>> wrapping = Wrapping(columns=lambda: 16)
    >>> print("".join(wrapping.add(piece) for piece in ("Once up", "on a time there ", "was")) + wrapping.end())
    Once upon a
    time there was

A word is held until it is complete, as nobody knows before whether it fits. Code between fences (```) and indented
lines keep their form: there a break would say something. No cursor is moved and nothing written is taken back: where
a terminal changes its size in the middle of a line, that one line is broken elsewhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from llamalite.cli import _text

_FENCES = ("```", "~~~")


class Wrapping:
    """What is to be written of a text, piece by piece; `columns` returns how many the terminal has now."""

    def __init__(self, columns: Callable[[], int] = _text.width) -> None:
        self._columns = columns
        self._column = 0  # how many of the line are written
        self._gap, self._word = "", ""  # spaces, and what stands behind them, not yet written
        self._begins = True  # no word of this line is written yet
        self._may_indent = False  # the very first line goes on from a prompt: its spaces are no indent
        self._in_fence = self._keeps_form = False
        self._is_rest = False  # the beginning of this word is written: it is longer than a line

    def add(self, piece: str) -> str:
        """Return what is to be written now that `piece` has come."""
        shown = []
        for one in piece:
            if one in " \t\n":
                shown.append(self._placed())
                self._gap += one
                self._is_rest = False
                if one == "\n":
                    shown.append("\n")
                    self._column, self._gap = 0, ""
                    self._begins = self._may_indent = True
            elif _text.columns(one) == 2:  # before and after a wide character a line may end
                shown.append(self._placed())
                self._word = one
                shown.append(self._placed())
            elif one != "\r":
                # Words of a model are a stranger's: what would steer the terminal is shown, not sent.
                self._word += _text.clean(one) if unicodedata.category(one) == "Cc" else one
                if len(self._word) > self._room():
                    shown.append(self._placed())
                    self._is_rest = True
        return "".join(shown)

    def end(self) -> str:
        """Return what is still to be written when no more comes."""
        return self._placed()

    def _room(self) -> int:
        return max(8, self._columns() - 1)  # some terminals go to the next line when the last column is written

    def _placed(self) -> str:
        """Return the word that is held, behind its spaces or on a new line; nothing where none is held."""
        if not self._word:
            return ""
        if self._begins:
            if self._word.startswith(_FENCES):
                self._in_fence = not self._in_fence
            self._keeps_form = self._in_fence or (self._may_indent and self._gap != "")
        before, room = self._gap, self._room()
        width = _text.columns(before + self._word)
        if self._column + width > room and self._column and not (self._keeps_form or self._is_rest):
            before, width, self._column = "\n", _text.columns(self._word), 0
        self._column += width
        if self._column > room:  # the terminal has broken the line
            self._column %= room + 1
        shown = before + self._word
        self._gap, self._word, self._begins = "", "", False
        return shown
