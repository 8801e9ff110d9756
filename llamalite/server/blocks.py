"""An answer as a row of blocks, as Anthropic's Messages and OpenAI's Responses have it: thoughts, text, calls.

blocks = Blocks()
for event, block, text in blocks.push(part):        # ("open", block, ""), ("delta", block, "Hel"), ("close", block, "")
    ...
blocks.close()                                      # the last block's end
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llamalite.server.answering import AnswerPart

BlockKind = Literal["reasoning", "text", "call"]
BlockEvent = tuple[Literal["open", "delta", "close"], "Block", str]


@dataclass
class Block:
    """A part of an answer; of a call, `text` is its arguments, and `id` and `name` are the call's."""

    kind: BlockKind
    index: int
    id: str = ""
    name: str = ""
    text: str = ""


class Blocks:
    """Turns parts into blocks; `all` are those so far."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    def push(self, part: AnswerPart) -> Iterator[BlockEvent]:
        """Add a part; yield what that changes."""
        if part.reasoning:
            yield from self._add("reasoning", part.reasoning)
        if part.text:
            yield from self._add("text", part.text)
        for call in part.calls:
            if call.name:
                yield from self.close()
                yield from self._begin(Block("call", len(self.all), call.id, call.name))
            if call.arguments:
                yield from self._add("call", call.arguments)

    def close(self) -> Iterator[BlockEvent]:
        """End the last block; yield that."""
        if self._open is not None:
            block, self._open = self._open, None
            yield "close", block, ""

    def _add(self, kind: BlockKind, text: str) -> Iterator[BlockEvent]:
        if self._open is None or self._open.kind != kind:
            yield from self.close()
            yield from self._begin(Block(kind, len(self.all)))
        assert self._open is not None
        self._open.text += text
        yield "delta", self._open, text

    def _begin(self, block: Block) -> Iterator[BlockEvent]:
        self._open = block
        self.all.append(block)
        yield "open", block, ""
