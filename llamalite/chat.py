"""`ChatSession`: a conversation with a model, whose last turn can be undone or retried, and which can be saved.

    chat = ChatSession(model, system="Answer in one sentence.")
    for piece in chat.stream("Why is the sky blue?"):
        print(piece.text, end="", flush=True)
    chat.ask("And at night?")            # only its own tokens are read: the context holds the conversation so far

A session holds the messages, and the model's context holds their tokens. Several sessions can use one model, also at
the same time: each reads only what is new, as long as the context has room for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llamalite.errors import ContextOverflowError, LlamaliteError, TemplateError
from llamalite.generation.completion import Completion, Piece
from llamalite.generation.request import Stream
from llamalite.model import Model
from llamalite.sampling import SamplingParams

_logger = logging.getLogger("llamalite.chat")


class _Turn:
    """A question and its answer, added to the history when the last piece comes or the stream ends early."""

    def __init__(self, messages: list[dict[str, Any]], question: dict[str, Any]) -> None:
        self._messages, self._question, self._texts = messages, question, list[str]()

    def add(self, piece: Piece) -> None:
        self._texts.append(piece.text)
        if piece.totals is not None:  # now, because a caller may stop iterating at the last piece
            self.finish()

    def finish(self) -> None:
        if self._texts:
            self._messages += [self._question, {"role": "assistant", "content": "".join(self._texts)}]
            self._texts = []


class ChatSession:
    """A conversation; `messages` is its history, dicts with ``role`` and ``content``, the system message first.

    - `system`: the system message.
    - `tools`: descriptions of tools, which a chat template that supports them shows to the model.
    - `overflow`: what happens when the history no longer fits the context. "error" raises `ContextOverflowError`;
      "drop" removes the oldest turns (a question with its answer, never the system message) and counts them in
      `n_dropped`.
    - `params`: for all answers; `options` are fields of `SamplingParams` and replace those of `params`.

    Raises ``TemplateError`` when the model's file has no chat template.
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
            raise TemplateError(f"{model.path.name} has no chat template: it can only continue text, with Model.stream")
        if overflow not in ("error", "drop"):
            raise ValueError(f"overflow must be 'error' or 'drop', found {overflow!r}")
        self.model, self.tools, self.overflow = model, tools, overflow
        self.params = (params or model.defaults).replace(**options)
        self.messages: list[dict[str, Any]] = []
        self.n_dropped = 0
        self.system = system

    @property
    def system(self) -> str | None:
        """The system message, or None; it can be set."""
        return self.messages[0]["content"] if self._first_turn() else None

    @system.setter
    def system(self, text: str | None) -> None:
        del self.messages[: self._first_turn()]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    @property
    def n_tokens(self) -> int:
        """How many tokens the history has."""
        return len(self.model.chat_tokens(self.messages, tools=self.tools, add_generation_prompt=False))

    def _first_turn(self) -> int:
        return 1 if self.messages and self.messages[0]["role"] == "system" else 0

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def stream(self, text: str, **options: Any) -> Iterator[Piece]:
        """Ask `text` and yield the answer's pieces; question and answer become part of the history.

        If an answer is cancelled or closed early, the part so far is kept. If the question is refused (it does not fit,
        or the template raises), the history does not change.
        """
        question = {"role": "user", "content": text}
        stream = self.model.stream(self._prompt([*self.messages, question], **options), self.params, **options)
        return self._recorded(stream, question)

    def _recorded(self, stream: Stream, question: dict[str, Any]) -> Iterator[Piece]:
        turn = _Turn(self.messages, question)
        try:
            for piece in stream:
                turn.add(piece)
                yield piece
        except GeneratorExit:
            stream.close()
            raise
        finally:
            turn.finish()

    def ask(self, text: str, **options: Any) -> Completion:
        """Ask `text` and return the whole answer."""
        return Completion.of(self.stream(text, **options))

    async def astream(self, text: str, **options: Any) -> AsyncIterator[Piece]:
        """`stream` for asyncio."""
        question = {"role": "user", "content": text}
        prompt = self._prompt([*self.messages, question], **options)
        turn = _Turn(self.messages, question)
        try:
            async for piece in self.model.astream(prompt, self.params, **options):
                turn.add(piece)
                yield piece
        finally:
            turn.finish()

    def _prompt(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        """Return the tokens of `messages`, without the oldest turns if they do not fit and `overflow` is "drop"."""
        reserved = self.params.replace(**options).max_tokens
        if reserved is None:
            reserved = max(1, self.model.n_ctx // 4) if self.overflow == "drop" else 1
        prompt = self.model.chat_tokens(messages, tools=self.tools)
        if self.overflow == "error" or len(prompt) + reserved <= self.model.n_ctx:
            return prompt
        first, dropped = self._first_turn(), 0
        kept = list(messages)
        while len(prompt) + reserved > self.model.n_ctx:
            # A turn is a user's message and all that follows, such as tools' replies, up to the next user's message.
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
        """Remove the last question and its answer; return the question, or None if there is none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i]["role"] == "user":
                text = str(self.messages[i]["content"])
                del self.messages[i:]
                return text
        return None

    def retry(self, **options: Any) -> Iterator[Piece]:
        """Remove the last answer and ask its question again; ``ValueError`` when nothing was asked yet."""
        text = self.undo()
        if text is None:
            raise ValueError("there is nothing to retry yet: ask something first")
        return self.stream(text, **options)

    def reset(self) -> None:
        """Start again, with the same system message."""
        del self.messages[self._first_turn() :]
        self.n_dropped = 0

    def save(self, path: str | Path) -> None:
        """Save the conversation and what the context holds, for `load` in another process."""
        prompt: list[int] = []
        if self.messages:  # decode now what the context lacks, so that nothing is left to do after `load`
            prompt = self.model.chat_tokens(self.messages, tools=self.tools, add_generation_prompt=False)
            self.model.generate(prompt, max_tokens=0)
        extra = {"messages": self.messages, "n_dropped": self.n_dropped}
        self.model.save_session(path, tokens=prompt, extra=extra)

    def load(self, path: str | Path) -> None:
        """Continue a conversation that `save` wrote; ``LlamaliteError`` if it is damaged or from another model."""
        extra = self.model.load_session(path)
        messages = extra.get("messages")
        if not isinstance(messages, list):
            raise LlamaliteError(f"{path} holds a context without a conversation: use Model.load_session")
        n_dropped = extra.get("n_dropped", 0)
        # The file may be forged: check what a message needs, a role, and content for the template.
        if not isinstance(n_dropped, int) or not all(
            isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message
            for message in messages
        ):
            raise LlamaliteError(f"{path} does not hold a llamalite conversation: begin a new one")
        self.messages, self.n_dropped = messages, n_dropped
