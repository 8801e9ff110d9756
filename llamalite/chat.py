"""`ChatSession`: the turns of one conversation with a model, and what may be done with them.

    chat = ChatSession(model, system="Answer in one sentence.")
    for piece in chat.stream("Why is the sky blue?"):
        print(piece.text, end="", flush=True)
    chat.ask("And at night?")            # costs its own tokens: what was said is held in the context

A session holds messages; the model's context holds what was read of them. Several sessions on one model work, and read
anew what another one has displaced.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llamalite.errors import ContextOverflowError, LlamaliteError, TemplateError
from llamalite.generation.completion import Completion, Piece
from llamalite.model import Model
from llamalite.sampling import SamplingParams

_logger = logging.getLogger("llamalite.chat")


class _Turn:
    """A question and its answer on their way into the history: there once the last piece comes, or the stream ends."""

    def __init__(self, messages: list[dict[str, Any]], asked: dict[str, Any]) -> None:
        self._messages, self._asked, self._texts = messages, asked, list[str]()

    def add(self, piece: Piece) -> None:
        self._texts.append(piece.text)
        if piece.totals is not None:  # who reads this one may never ask for what comes after it
            self.keep()

    def keep(self) -> None:
        if self._texts:
            self._messages += [self._asked, {"role": "assistant", "content": "".join(self._texts)}]
            self._texts = []


class ChatSession:
    """A conversation: `messages` is its whole history, dicts with ``role`` and ``content``, the system message first.

    `overflow` says what happens when the history no longer fits the context: "error" raises `ContextOverflowError`;
    "drop" leaves out the oldest turns (a question and its answer at a time, never the system message), and counts them
    in `n_dropped`. `tools` are described to the model by templates that can. `options` are of `SamplingParams`.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        overflow: Literal["error", "drop"] = "error",
        params: SamplingParams | None = None,
        **options: Any,
    ) -> None:
        if not model.has_chat_template:
            raise TemplateError(f"{model.path.name} has no chat template: it continues text, use Model.stream")
        if overflow not in ("error", "drop"):
            raise ValueError(f"overflow must be 'error' or 'drop', found {overflow!r}")
        self.model, self.tools, self.overflow = model, tools, overflow
        self.params = (params or model.defaults).replace(**options)
        self.messages: list[dict[str, Any]] = []
        self.n_dropped = 0
        self.system = system

    @property
    def system(self) -> str | None:
        """The system message; setting it changes the conversation from its beginning on."""
        return self.messages[0]["content"] if self._first_turn() else None

    @system.setter
    def system(self, text: str | None) -> None:
        del self.messages[: self._first_turn()]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def _first_turn(self) -> int:
        return 1 if self.messages and self.messages[0]["role"] == "system" else 0

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def stream(self, text: str, **options: Any) -> Iterator[Piece]:
        """Say `text` and yield the answer's pieces; both become part of the history.

        An answer that is cancelled or closed midway stays as far as it came; when the model refuses the question
        (it does not fit, the template raises), the history is as it was before.
        """
        asked = {"role": "user", "content": text}
        stream = self.model.stream(self._prompt([*self.messages, asked], **options), self.params, **options)
        return self._answered(stream, asked)

    def _answered(self, stream: Iterator[Piece], asked: dict[str, Any]) -> Iterator[Piece]:
        turn = _Turn(self.messages, asked)
        try:
            for piece in stream:
                turn.add(piece)
                yield piece
        except GeneratorExit:
            stream.close()  # type: ignore[attr-defined] # what `Model.stream` gave
            raise
        finally:
            turn.keep()

    def ask(self, text: str, **options: Any) -> Completion:
        """Say `text` and return the whole answer."""
        return Completion.of(self.stream(text, **options))

    async def astream(self, text: str, **options: Any) -> AsyncIterator[Piece]:
        """`stream` for asyncio."""
        asked = {"role": "user", "content": text}
        prompt = self._prompt([*self.messages, asked], **options)
        turn = _Turn(self.messages, asked)
        try:
            async for piece in self.model.astream(prompt, self.params, **options):
                turn.add(piece)
                yield piece
        finally:
            turn.keep()

    def _prompt(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        """Return the tokens of `messages`, without the oldest turns where they do not fit and `overflow` allows it."""
        wanted = self.params.replace(**options).max_tokens
        reserved = wanted if wanted is not None else max(1, self.model.n_ctx // 4) if self.overflow == "drop" else 1
        prompt = self.model.chat_tokens(messages, tools=self.tools)
        if self.overflow == "error" or len(prompt) + reserved <= self.model.n_ctx:
            return prompt
        first, dropped = self._first_turn(), 0
        kept = list(messages)
        while len(prompt) + reserved > self.model.n_ctx:
            # A turn begins with a user's message and goes up to the next one, tools' replies included.
            next_turn = next((i for i in range(first + 1, len(kept)) if kept[i]["role"] == "user"), None)
            if next_turn is None:
                raise ContextOverflowError(
                    f"the last message alone has {len(prompt)} tokens with its template, {reserved} are for the "
                    f"answer, and the context holds {self.model.n_ctx}: shorten it, or load the model with a larger "
                    "n_ctx"
                )
            del kept[first:next_turn]
            dropped += 1
            prompt = self.model.chat_tokens(kept, tools=self.tools)
        self.n_dropped += dropped
        self.messages = kept[:-1]
        _logger.warning("the context is full: the oldest %d turns of the chat were dropped", dropped)
        return prompt

    # ── history ─────────────────────────────────────────────────────────────────────────────────────────────────

    def undo(self) -> str | None:
        """Take the last question and its answer back; return the question, None when there was none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i]["role"] == "user":
                text = str(self.messages[i]["content"])
                del self.messages[i:]
                return text
        return None

    def retry(self, **options: Any) -> Iterator[Piece]:
        """Take the last answer back and ask again; ``ValueError`` when nothing was asked yet."""
        text = self.undo()
        if text is None:
            raise ValueError("there is nothing to retry yet: ask something first")
        return self.stream(text, **options)

    def reset(self) -> None:
        """Begin anew, with the same system message."""
        del self.messages[self._first_turn() :]
        self.n_dropped = 0

    def save(self, path: str | Path) -> None:
        """Write the conversation and what the context holds of it, for `load` in another process."""
        if self.messages:  # read now what is still to be read, so that nothing is left when it is taken up again
            prompt = self.model.chat_tokens(self.messages, tools=self.tools, add_generation_prompt=False)
            self.model.generate(prompt, max_tokens=0)
        self.model.save_session(path, extra={"messages": self.messages, "n_dropped": self.n_dropped})

    def load(self, path: str | Path) -> None:
        """Take up the conversation of a file that `save` wrote; ``LlamaliteError`` when it is not for this model."""
        extra = self.model.load_session(path)
        messages = extra.get("messages")
        if not isinstance(messages, list):
            raise LlamaliteError(f"{path} holds a context without a conversation: use Model.load_session")
        n_dropped = extra.get("n_dropped", 0)
        # Checked as a stranger may have written it: a message has a role, and content that the template looks at.
        if not isinstance(n_dropped, int) or not all(
            isinstance(one, dict) and isinstance(one.get("role"), str) and "content" in one for one in messages
        ):
            raise LlamaliteError(f"{path} holds no conversation of llamalite: begin a new one")
        self.messages, self.n_dropped = messages, n_dropped
