"""A question to a model → the parts of its answer as they come: text, thoughts, and calls of tools.

    question = AnswerRequest(prompt_ids, params, calls=Calls(form, tools, is_required=False, parallel=True))
    async for part in answer(model, question):
        part.text, part.reasoning, part.calls, part.finish_reason

A call is written under a grammar from where it begins. If one must be made, that is the beginning of the answer.
Otherwise the model writes freely until it begins one (`CallFinder`); that generation is ended, and another goes on from
there under the grammar, which costs little, as the context holds the tokens so far.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from llamalite.errors import GenerationCancelled
from llamalite.generation.completion import Piece, Totals
from llamalite.model import Model
from llamalite.sampling import SamplingParams
from llamalite.tool_calls import CallDelta, CallFinder, CallFormat, CallParser, Thinking, ThinkingSplitter, Tool
from llamalite.tool_calls.grammar import grammar_of_calls

FinishedBy = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Calls:
    """Which tools may be called, or must be, and how this model writes calls."""

    form: CallFormat
    tools: Sequence[Tool]
    is_required: bool = False
    parallel: bool = True


@dataclass(frozen=True)
class AnswerRequest:
    """A prompt and how to answer it; `has_open_thinking` says that the prompt ends with the thinking's marker."""

    prompt: list[int]
    params: SamplingParams
    calls: Calls | None = None
    thinking: Thinking | None = None
    has_open_thinking: bool = False


@dataclass(frozen=True)
class AnswerPart:
    """What one step adds to an answer; the last part has the `finish_reason` and the `totals`.

    `piece` is the token, for those who want its log-probability.
    """

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    piece: Piece | None = None
    finish_reason: FinishedBy | None = None
    totals: Totals | None = None


def reason_of(piece: Piece) -> FinishedBy:
    """Return why an answer ended, in OpenAI's words; a full context counts as a length."""
    if piece.finish_reason == "cancelled":
        raise GenerationCancelled("the answer was ended: the server is stopping")
    return "stop" if piece.finish_reason == "stop" else "length"


async def answer(model: Model, question: AnswerRequest) -> AsyncGenerator[AnswerPart, None]:
    """Yield the parts of the answer; closing this generator ends the generation."""
    if question.calls is not None and question.calls.is_required:
        ids = list(question.prompt)
        if question.thinking is not None and question.has_open_thinking:
            ids += _spelled(model, question.thinking.closing)
        parts = _calls(model, question, question.calls, ids, 0)
    else:
        parts = _free(model, question)
    async with contextlib.aclosing(parts):
        async for part in parts:
            yield part


async def _free(model: Model, question: AnswerRequest) -> AsyncGenerator[AnswerPart, None]:
    reader = _Reader(model, question)
    async with _stream(model, question.prompt, question.params) as pieces:
        async for piece in pieces:
            text, reasoning = reader.push(piece)
            if piece.finish_reason is not None:
                deltas = reader.raw_calls()
                if not deltas:
                    text += reader.flush()
                reason = "tool_calls" if deltas else reason_of(piece)
                yield AnswerPart(text, reasoning, tuple(deltas), piece, reason, piece.totals)
                return
            if reader.begins_call:
                break
            yield AnswerPart(text, reasoning, piece=piece)
    if text or reasoning:
        yield AnswerPart(text, reasoning)
    assert question.calls is not None
    kept, rest = reader.up_to_call()
    async with contextlib.aclosing(
        _calls(model, question, question.calls, question.prompt + kept + rest, len(kept))
    ) as parts:
        async for part in parts:
            yield part


async def _calls(
    model: Model, question: AnswerRequest, calls: Calls, prompt: list[int], n_before: int
) -> AsyncGenerator[AnswerPart, None]:
    """Yield calls, which follow `prompt`; the answer has `n_before` tokens already."""
    ids = prompt + _spelled(model, calls.form.opening)
    parser = CallParser(calls.form, calls.tools)
    most = question.params.max_tokens
    left = model.n_ctx - len(ids) if most is None else min(most - n_before, model.n_ctx - len(ids))
    grammar = grammar_of_calls(calls.form, calls.tools, parallel=calls.parallel)
    params = question.params.replace(
        grammar=grammar, json_schema=None, stop=(), logprobs=None, max_tokens=None if most is None else max(0, left)
    )
    async with _stream(model, ids, params) as pieces:
        async for piece in pieces:
            deltas = tuple(parser.push(piece.text))
            if piece.finish_reason is None:
                yield AnswerPart(calls=deltas)
                continue
            reason = reason_of(piece)
            if reason == "stop" and parser.n_calls:
                reason = "tool_calls"
            assert piece.totals is not None
            n_prompt = len(question.prompt)
            n_cached = min(piece.totals.n_cached, n_prompt)
            totals = dataclasses.replace(
                piece.totals, n_prompt=n_prompt, n_cached=n_cached, n_generated=n_before + piece.totals.n_generated
            )
            yield AnswerPart(calls=deltas, finish_reason=reason, totals=totals)


@contextlib.asynccontextmanager
async def _stream(model: Model, prompt: list[int], params: SamplingParams) -> AsyncIterator[AsyncIterator[Piece]]:
    pieces = cast("AsyncGenerator[Piece, None]", model.astream(prompt, params))
    async with contextlib.aclosing(pieces):
        yield pieces


def _spelled(model: Model, text: str) -> list[int]:
    """Return the tokens of a marker, which may be a control token."""
    return model.tokenize(text, add_special=False, parse_special=True) if text else []


class _Reader:
    """Reads pieces as text and thoughts, and finds where a call begins."""

    def __init__(self, model: Model, question: AnswerRequest) -> None:
        calls, thinking = question.calls, question.thinking
        self._model, self._calls = model, calls
        wanted = set(calls.form.markers if calls else ())
        if thinking is not None:
            wanted |= {thinking.opening, thinking.closing}
        # The text of an answer has no control tokens; these mean something here.
        control: dict[str, int] = model.native.control_tokens() if wanted else {}
        self._markers = {token: text for text, token in control.items() if text in wanted}
        self._splitter = ThinkingSplitter(thinking, is_open=question.has_open_thinking) if thinking else None
        self._finder = CallFinder(calls.form, calls.tools) if calls else None
        self._tokens: list[int] = []
        self._raw = ""

    @property
    def begins_call(self) -> bool:
        """Whether a call has begun that is to be written under a grammar."""
        return self._finder is not None and self._finder.begins_at is not None and not self._finder.is_raw

    def push(self, piece: Piece) -> tuple[str, str]:
        """Take a piece; return the text and the thoughts that are now certain."""
        text = piece.text
        if piece.token is not None:
            self._tokens.append(piece.token)
            text += self._markers.get(piece.token, "")
        self._raw += text
        parts = self._splitter.push(text) if self._splitter else [("text", text)]
        return self._sorted(parts)

    def flush(self) -> str:
        """Return the text that was held back, at the end."""
        text = self._sorted(self._splitter.flush())[0] if self._splitter else ""
        return text + (self._finder.flush() if self._finder else "")

    def _sorted(self, parts: Sequence[tuple[Any, str]]) -> tuple[str, str]:
        texts = {"text": "", "reasoning": ""}
        for kind, text in parts:
            texts[kind] += self._finder.push(text) if kind == "text" and self._finder else text
        return texts["text"], texts["reasoning"]

    def raw_calls(self) -> list[CallDelta]:
        """Return the calls of an answer that has ended, in the form that is not JSON; none if it has none."""
        if self._finder is None or not self._finder.is_raw or self._calls is None:
            return []
        parser = CallParser(self._calls.form, self._calls.tools)
        return parser.raw(self._finder.text[self._finder.begins_at :], self._calls.tools)

    def up_to_call(self) -> tuple[list[int], list[int]]:
        """Return the tokens before the call, and those of what one more token has of the text before it."""
        assert self._finder is not None
        assert self._finder.begins_at is not None
        end = len(self._raw) - (len(self._finder.text) - self._finder.begins_at)
        before, n_kept, kept = self._raw[:end], 0, b""
        native = self._model.native
        for n, token in enumerate(self._tokens, 1):
            more = kept + native.token_to_piece(token, special=token in self._markers)
            if len(more.decode("utf-8", "ignore")) > end:
                break
            n_kept, kept = n, more
        rest = before[len(kept.decode("utf-8", "ignore")) :]
        return self._tokens[:n_kept], self._model.tokenize(rest, add_special=False) if rest else []
