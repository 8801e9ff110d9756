"""Tells what a model thinks from what it answers, by the markers of its chat template.

splitter = ThinkingSplitter(thinking_of(template), is_open=False)
splitter.push("<think>so")      [("reasoning", "so")]
splitter.push("</think>42")     [("text", "42")]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "reasoning"]


@dataclass(frozen=True)
class Thinking:
    """The markers around what a model thinks."""

    opening: str
    closing: str


_MARKERS = (Thinking("<think>", "</think>"), Thinking("[THINK]", "[/THINK]"))


def thinking_of(template: str | None) -> Thinking | None:
    """Return the markers that a chat template uses, None if its model does not think aloud."""
    return next((one for one in _MARKERS if one.closing in (template or "")), None)


class ThinkingSplitter:
    """Splits an answer as it grows; with `is_open`, the prompt has opened the thinking already."""

    def __init__(self, thinking: Thinking, *, is_open: bool) -> None:
        self._thinking, self._is_open = thinking, is_open
        self._is_done = self._has_begun = False
        self._held = ""
        self._skips_blanks = is_open

    def push(self, text: str) -> list[tuple[Kind, str]]:
        """Take the next text; return its parts, without the markers."""
        self._held += text
        parts: list[tuple[Kind, str]] = []
        while self._held:
            if self._is_done:
                self._take(parts, "text", len(self._held))
            elif self._is_open:
                if not self._until(parts, "reasoning", self._thinking.closing):
                    break
                self._is_open, self._is_done, self._skips_blanks = False, True, True
            else:  # thinking can only begin an answer
                start = self._held.lstrip()
                if start.startswith(self._thinking.opening):
                    self._held = start[len(self._thinking.opening) :]
                    self._is_open = self._skips_blanks = True
                elif self._thinking.opening.startswith(start):
                    break
                else:
                    self._is_done = True
        return parts

    def flush(self) -> list[tuple[Kind, str]]:
        """Return what was held back, when the answer has ended."""
        kind: Kind = "reasoning" if self._is_open else "text"
        held, self._held = self._held, ""
        return [(kind, held)] if held else []

    def _until(self, parts: list[tuple[Kind, str]], kind: Kind, marker: str) -> bool:
        at = self._held.find(marker)
        if at >= 0:
            self._take(parts, kind, at)
            self._held = self._held[len(marker) :]
            return True
        longest = min(len(marker) - 1, len(self._held))
        keep = next((n for n in range(longest, 0, -1) if marker.startswith(self._held[-n:])), 0)
        self._take(parts, kind, len(self._held) - keep)
        return False

    def _take(self, parts: list[tuple[Kind, str]], kind: Kind, end: int) -> None:
        taken, self._held = self._held[:end], self._held[end:]
        if self._skips_blanks:
            taken = taken.lstrip()
        if taken:
            self._skips_blanks = False
            parts.append((kind, taken))
