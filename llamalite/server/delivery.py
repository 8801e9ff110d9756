"""Answers on their way to the client: many at once, whole or as a stream of events, for as long as it listens.

A client that goes away ends its answers within moments, also while they wait or read their prompt. What goes wrong
before the first event has a status of its own; after it, an event says it, and the stream ends as any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from llamalite.errors import GenerationCancelled
from llamalite.model import Model
from llamalite.server.access_log import CLIENT_GONE, notes
from llamalite.server.answering import AnswerPart, AnswerRequest, answer
from llamalite.server.errors import as_http, error_body
from llamalite.server.metrics import Metrics
from llamalite.server.models import ModelPool, ServedModel
from llamalite.server.settings import ServerSettings

T = TypeVar("T")
DONE = "[DONE]"
_FIRST_EVENT_S = 5.0  # after that a stream begins without one, so that pings keep the connection alive
_SEND_TIMEOUT_S = 60.0  # for a client that does not read


class Serving:
    """What endpoints need: the models, the settings and the figures."""

    def __init__(self, pool: ModelPool, settings: ServerSettings) -> None:
        self.pool, self.settings = pool, settings
        self.metrics = Metrics(settings.n_parallel)
        self._answering: set[asyncio.Task[None]] = set()
        self._is_ending = False

    def end_answers(self) -> None:
        """End what runs and what waits: each request is told that the server stops."""
        self._is_ending = True
        for task in self._answering:
            task.cancel()

    @contextlib.asynccontextmanager
    async def use(self, request: Request, name: str | None) -> AsyncIterator[ServedModel]:
        """Hold a model for the ``async with`` block, and note its name."""
        async with self.pool.use(name) as served:
            notes(request.scope)["model"] = served.name
            yield served

    async def answers(
        self, request: Request, model: Model, questions: Sequence[AnswerRequest]
    ) -> AsyncGenerator[tuple[int, AnswerPart], None]:
        """Yield the parts of the answers to `questions`, which the model answers at once, each with its index."""
        parts: asyncio.Queue[tuple[int, AnswerPart | None] | BaseException] = asyncio.Queue(maxsize=64)
        turn = asyncio.Semaphore(self.settings.n_parallel)  # one request never fills the queue alone

        async def work(index: int, question: AnswerRequest) -> None:
            try:
                async with turn:
                    await self._answer(request, model, index, question, parts)
            except asyncio.CancelledError:
                if not self._is_ending:
                    raise
                await parts.put(GenerationCancelled("the server is stopping"))

        tasks = [asyncio.create_task(work(index, question)) for index, question in enumerate(questions)]
        self._answering.update(tasks)
        n_running = len(tasks)
        try:
            while n_running:
                item = await parts.get()
                if isinstance(item, BaseException):
                    raise item
                index, part = item
                if part is None:
                    n_running -= 1
                else:
                    yield index, part
        finally:
            self._answering.difference_update(tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(
        self,
        request: Request,
        model: Model,
        index: int,
        question: AnswerRequest,
        parts: asyncio.Queue[tuple[int, AnswerPart | None] | BaseException],
    ) -> None:
        self.metrics.begun()
        has_begun = False
        try:
            async with contextlib.aclosing(answer(model, question)) as own:
                async for part in own:
                    if not has_begun:
                        has_begun = True
                        self.metrics.first_token()
                    if part.totals is not None:
                        self.metrics.answered(part.totals)
                        noted = notes(request.scope)
                        noted["n_prompt"] = part.totals.n_prompt
                        noted["n_generated"] = noted.get("n_generated", 0) + part.totals.n_generated
                    await parts.put((index, part))
            await parts.put((index, None))
        except Exception as error:  # noqa: BLE001 - raised again in `answers`
            await parts.put(error)
        finally:
            if not has_begun:
                self.metrics.first_token()
            self.metrics.ended()


def serving_of(request: Request) -> Serving:
    """Return what the app of this request serves."""
    serving: Serving = request.app.state.serving
    return serving


async def while_listening(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; ``ClientDisconnect``, and the work cancelled, when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def stream_events(
    request: Request, events: AsyncGenerator[dict[str, Any], None], *, anthropic: bool = False, named: bool = False
) -> Response:
    """Return a stream of `events`, each one JSON object; `named` ones carry their `type` as the event's name.

    What `events` raises before its first event is raised here.
    """
    first = asyncio.ensure_future(anext(events))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({first, gone}, timeout=_FIRST_EVENT_S, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise ClientDisconnect
        if first.done() and (error := first.exception()) is not None:
            raise error
    except BaseException:
        await _ended(first, events)
        raise
    finally:
        gone.cancel()
    content = _encoded(request, first, events, anthropic=anthropic, named=named)
    return EventSourceResponse(content, ping=15, sep="\n", send_timeout=_SEND_TIMEOUT_S)


async def _encoded(
    request: Request,
    first: asyncio.Future[dict[str, Any]],
    events: AsyncGenerator[dict[str, Any], None],
    *,
    anthropic: bool,
    named: bool,
) -> AsyncGenerator[ServerSentEvent, None]:
    has_ended = False
    try:
        try:
            yield _event(await first, named)
            async for event in events:
                yield _event(event, named)
        except StopAsyncIteration:
            pass
        except Exception as error:  # noqa: BLE001 - becomes an event
            body = error_body(as_http(error), anthropic=anthropic)
            notes(request.scope)["status"] = as_http(error).status_code
            yield ServerSentEvent(json.dumps(body), event="error" if named else None, sep="\n")
        if not named:
            yield ServerSentEvent(DONE, sep="\n")
        has_ended = True
    finally:
        if not has_ended:
            notes(request.scope).setdefault("status", CLIENT_GONE)
        await _ended(first, events)


async def _ended(first: asyncio.Future[dict[str, Any]], events: AsyncGenerator[dict[str, Any], None]) -> None:
    """End the work behind a stream, wherever it is."""
    if not first.done():
        first.cancel()
        await asyncio.wait({first})
    await events.aclose()


def _event(event: dict[str, Any], named: bool) -> ServerSentEvent:
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return ServerSentEvent(text, event=event["type"] if named else None, sep="\n")


def json_body(body: Any) -> Response:
    """Return a response of JSON."""
    return JSONResponse(body)
