"""One generation as its caller and the engine see it: `GenerationRequest`, and `Stream`, an iterator over its pieces.

    request = GenerationRequest(prompt_ids, answer, deliver=print)
    engine.submit(request)                   # pieces are delivered in the model's decode thread
    request.cancel()                         # from any thread

A request's `tokens` are its prompt and its answer so far. Those that its sequence does not hold are still to be
decoded: one token while the answer is written, many before that or after the request had to give its cells away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Sequence
from typing import Protocol, TypeVar

from llamalite.generation.completion import Answer, FinishReason, Piece, Totals
from llamalite.generation.sequence_cache import CachedSequence
from llamalite.native.decode_thread import stop_at_exit
from llamalite.sampling import SamplingParams

Deliver = Callable[[Piece | BaseException], None]
T = TypeVar("T")


class SupportsDraft(Protocol):
    """What the engine needs of a `llamalite.generation.speculation.Speculator`."""

    def draft(self, answer_tokens: Sequence[int], room: int) -> Sequence[int]: ...


class GenerationRequest:
    """A generation that an `Engine` runs: what it has, where it is, and how long each part of it took.

    `deliver` is called with each piece, the last one having a finish reason, or with an exception instead of it. It is
    called in the decode thread and must return at once. `adapters` are the LoRA scales to decode with.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        answer: Answer,
        deliver: Deliver,
        *,
        speculator: SupportsDraft | None = None,
        adapters: Hashable = None,
    ) -> None:
        self.tokens, self.n_prompt = list(prompt), len(prompt)
        self.answer, self.deliver, self.speculator, self.adapters = answer, deliver, speculator, adapters
        self.sequence: CachedSequence | None = None  # while it runs
        self.number = 0  # by arrival
        self.is_cancelled = self.has_paused = False
        self.wake: Callable[[GenerationRequest], None] | None = None  # set by `Engine.submit`
        self.check: Callable[[], None] = lambda: None  # raises if no piece can come any more; set by `Engine.submit`
        self.n_cached = self.n_drafted = self.n_accepted = 0
        self.submitted_s = self.queued_s = self.prompt_s = self.generation_s = self.ttft_s = 0.0
        self.since_s = 0.0  # the moment since when it waits or runs
        self.first_s = 0.0  # the moment when its prompt was read, later by the time that it had to wait since then

    @property
    def params(self) -> SamplingParams:
        return self.answer.params

    @property
    def order(self) -> tuple[int, int]:
        """What the waiting are sorted by: a higher priority first, then who came first."""
        return -self.answer.params.priority, self.number

    def __lt__(self, other: GenerationRequest) -> bool:
        return self.order < other.order

    @property
    def n_unread(self) -> int:
        """How many tokens are to be decoded before the next one can be chosen."""
        return len(self.tokens) - (len(self.sequence.tokens) if self.sequence is not None else 0)

    @property
    def n_expected(self) -> int:
        """How many cells to keep free for the tokens to come; a long answer may have to wait for the rest of them."""
        left = 256 if self.params.max_tokens is None else self.params.max_tokens - len(self.answer.tokens)
        return self.n_unread + min(max(left, 0), 256)

    def cancel(self) -> None:
        """End the generation with the reason "cancelled"; return at once."""
        self.is_cancelled = True
        if self.wake is not None:
            self.wake(self)

    def count_token(self) -> None:
        """Update the times after a token was chosen."""
        now = time.perf_counter()
        self.generation_s = now - self.first_s
        self.ttft_s = self.ttft_s or now - self.submitted_s

    def last_piece(self, reason: FinishReason) -> Piece:
        totals = Totals(
            self.n_prompt, self.n_cached, len(self.answer.tokens), self.prompt_s, self.generation_s, self.ttft_s,
            self.answer.sampler.seed, self.n_drafted, self.n_accepted, self.queued_s,
        )  # fmt: skip
        return Piece(self.answer.rest(), finish_reason=reason, totals=totals, stopped_by=self.answer.stopped_by)


def next_item(items: queue.SimpleQueue[T], check: Callable[[], None]) -> T:
    """Wait for the next of `items`; raise what `check` raises if none can come any more."""
    while True:
        with contextlib.suppress(queue.Empty):
            return items.get(timeout=0.1)  # with a timeout: on Windows a signal does not wake a waiting thread
        stop_at_exit()
        check()


class Stream(Iterator[Piece]):
    """An iterator over the pieces of one generation, which goes on while the caller does something else.

    To end it early, close it, leave its ``with`` block, or drop it; the context keeps what was read. `cancel` may be
    called from any thread: the last piece then comes at once, with the finish reason "cancelled".
    """

    def __init__(
        self, submit: Callable[[GenerationRequest], None], make_request: Callable[[Deliver], GenerationRequest]
    ) -> None:
        self._items: queue.SimpleQueue[Piece | BaseException] = queue.SimpleQueue()
        self._request = make_request(self._items.put)
        self._submit: Callable[[GenerationRequest], None] | None = submit  # None once it was
        self._is_read = self._has_ended = False
        self._last: Piece | None = None  # once it is cancelled
        self._n_tokens = 0  # yielded so far

    def __next__(self) -> Piece:
        if self._has_ended:
            raise StopIteration
        self._is_read = True
        try:
            submit, self._submit = self._submit, None
            if submit is not None and not self._request.is_cancelled:
                submit(self._request)
            item = self._wait()
            if isinstance(item, BaseException):
                raise item
        except BaseException:
            self._end()
            raise
        finally:
            self._is_read = False
        self._n_tokens += item.token is not None
        if item.totals is None:
            return item
        self._has_ended = True
        if item.finish_reason == "cancelled":  # more may have been computed than were yielded
            return dataclasses.replace(item, totals=dataclasses.replace(item.totals, n_generated=self._n_tokens))
        return item

    def _wait(self) -> Piece | BaseException:
        if self._last is None:
            item = next_item(self._items, self._request.check)
            return self._last or item  # cancelled while it waited
        return self._last

    @property
    def cancelled(self) -> bool:
        return self._request.is_cancelled

    def cancel(self) -> None:
        """End this generation, even while it waits or reads its prompt; return at once."""
        if not self._has_ended and self._last is None:
            # What was computed ahead and not yielded is not part of the answer, nor is the text held back after that.
            self._last = dataclasses.replace(self._request.last_piece("cancelled"), text="")
            self._request.cancel()
            self._items.put(self._last)  # wakes the thread that waits

    def close(self) -> None:
        """End this generation; while another thread iterates it, this is the same as `cancel`."""
        if self._is_read:
            self.cancel()
        else:
            self._end()

    def _end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._request.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # `__init__` raised
            self._end()


async def pieces(
    submit: Callable[[GenerationRequest], None], make_request: Callable[[Deliver], GenerationRequest]
) -> AsyncGenerator[Piece, None]:
    """Yield the pieces of one generation in an event loop, which is never blocked; closing the generator cancels it."""
    import asyncio  # here, because it takes as long to import as all of this package

    loop, items = asyncio.get_running_loop(), asyncio.Queue[Piece | BaseException]()

    def deliver(item: Piece | BaseException) -> None:
        try:
            loop.call_soon_threadsafe(items.put_nowait, item)
        except RuntimeError:  # the event loop is closed
            request.cancel()

    request = await asyncio.to_thread(make_request, deliver)
    submit(request)
    try:
        is_last = False
        while not is_last:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            is_last = item.finish_reason is not None
            yield item
    finally:
        request.cancel()
