"""Decides which requests run, which wait, and what the next step decodes.

    schedule = Schedule(cache, n_parallel=8, step_tokens=512)
    schedule.add(request)
    schedule.admit()                         # start those that wait, as long as there is room
    parts = schedule.parts()                 # a token of every answer, and no more of prompts than keeps the step short

Requests start in the order of their arrival, those of a higher priority first. One starts when the cache has room for
what it and the others are expected to need. If the cache fills up nevertheless, the newest request gives its cells
away: it waits again, and reads its tokens again when there is room, unless its cells were not needed meanwhile.

All of this happens in the decode thread; only `cancel`, `n_running` and `n_waiting` are for others.
"""

from __future__ import annotations

import collections
import heapq
import time
from collections.abc import Hashable
from dataclasses import dataclass

from llamalite.generation.costs import PromptBudget
from llamalite.generation.request import GenerationRequest
from llamalite.generation.sequence_cache import CachedSequence, SequenceCache, common_prefix

_WORTH_WAITING = 16  # tokens in common with a prompt that is being read


@dataclass
class Part:
    """What a step decodes for one request: `tokens`, of which the last `n_drafted` are guesses."""

    request: GenerationRequest
    sequence: CachedSequence
    tokens: list[int]
    n_drafted: int = 0

    @property
    def n_rows(self) -> int:
        """How many of its last tokens need logits: none while the prompt goes on."""
        return 1 + self.n_drafted if len(self.tokens) - self.n_drafted == self.request.n_unread else 0

    @property
    def is_answer(self) -> bool:
        """Whether this is the next token of an answer, with or without guesses."""
        return len(self.tokens) == 1 + self.n_drafted == self.n_rows


class Schedule:
    """The requests that run, at most `n_parallel`, and those that wait.

    A prompt that is read alone is read in steps of `step_tokens`.
    """

    def __init__(self, cache: SequenceCache, *, n_parallel: int, step_tokens: int) -> None:
        self.running: list[GenerationRequest] = []
        self.budget = PromptBudget()
        self._cache, self._n_parallel, self._step_tokens = cache, n_parallel, step_tokens
        self._arrived: collections.deque[GenerationRequest] = collections.deque()  # other threads append to it
        self._waiting: list[GenerationRequest] = []  # a heap
        self._has_room = True  # whether the first of those who wait may fit
        self._adapters: Hashable = None  # of the last step

    def add(self, request: GenerationRequest) -> None:
        """Let a request wait; from any thread."""
        self._arrived.append(request)

    @property
    def has_arrivals(self) -> bool:
        """Whether a request has come since the last `admit`."""
        return bool(self._arrived)

    @property
    def is_full(self) -> bool:
        """Whether a request had to wait at the last `admit`, so that whoever comes now waits behind it."""
        return bool(self._waiting)

    @property
    def n_waiting(self) -> int:
        return len(self._arrived) + len(self._waiting)

    def admitted(self) -> list[GenerationRequest]:
        """Return the requests that run, and those that wait since an `admit`."""
        return [*self.running, *self._waiting]

    def all(self) -> list[GenerationRequest]:
        """Return the requests that run and those that wait, none twice; from any thread.

        None is missed: one that moves on is added to the next list before it leaves its own.
        """
        return list(dict.fromkeys([*self._arrived, *self._waiting, *self.running]))

    # ── who runs ────────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self) -> list[GenerationRequest]:
        """Start those that wait as long as there is room; return the cancelled requests, which are no longer here."""
        while self._arrived:
            heapq.heappush(self._waiting, self._arrived[0])
            self._arrived.popleft()
            self._has_room = True  # the new one may be the first, and need less
        cancelled = [request for request in self.admitted() if request.is_cancelled]
        for request in cancelled:
            self.remove(request)
        while self._waiting and self._has_room and self._fits(self._waiting[0]):
            self._start(self._waiting[0])
            heapq.heappop(self._waiting)
        return cancelled

    def _fits(self, request: GenerationRequest) -> bool:
        """Tell whether `request` can run beside the others; make those of a lower priority wait for it."""
        while self.running:
            newest = max(self.running)
            if newest.params.reproducible:  # it would read its tokens again in other decodes, and be rounded otherwise
                self._has_room = False
                return False
            is_alone = request.params.reproducible
            if not is_alone and len(self.running) < self._n_parallel and self._has_cells_for(request):
                break
            if newest.params.priority >= request.params.priority:
                self._has_room = False  # until one of them ends
                return False
            self.pause(newest)
        return True

    def _has_cells_for(self, request: GenerationRequest) -> bool:
        source, n_cached = self._cache.longest(request.tokens, request.adapters)
        n_needed = request.n_expected - n_cached + sum(other.n_expected for other in self.running)
        n_kept = self._cache.n_busy() + (n_cached if source is not None and not source.is_busy else 0)
        return n_kept + n_needed <= self._cache.n_ctx

    def _start(self, request: GenerationRequest) -> None:
        if request.params.reproducible:
            self._cache.clear()
        request.sequence = self._cache.claim(request.tokens, request.adapters)
        if not request.has_paused:
            request.n_cached = len(request.sequence.tokens)
        now = time.perf_counter()
        waited_s = now - request.since_s
        request.since_s = now
        request.queued_s += waited_s
        if request.first_s:
            request.first_s += waited_s
        self.running.append(request)

    def pause(self, request: GenerationRequest) -> None:
        """Make a running request wait again; what its sequence holds may be forgotten."""
        request.has_paused = True
        request.since_s = time.perf_counter()
        heapq.heappush(self._waiting, request)
        self.remove(request)

    def remove(self, request: GenerationRequest) -> None:
        """Take out a request, whether it runs or waits; its sequence keeps its tokens until their cells are needed."""
        if request.sequence is not None:
            self.running.remove(request)
            self._cache.release(request.sequence)
            request.sequence, self._has_room = None, True
        elif request in self._waiting:
            self._waiting.remove(request)
            heapq.heapify(self._waiting)

    # ── what a step decodes ─────────────────────────────────────────────────────────────────────────────────────

    def parts(self) -> list[Part]:
        """Return what to decode next; requests that use other LoRA scales have to wait for another step.

        Raises ``ContextOverflowError`` when the only request that runs has filled the context.
        """
        adapters = self._next_adapters()
        group = [request for request in self.running if request.adapters == adapters]
        parts = [_part(request, 1) for request in group if request.n_unread == 1]
        prompts = self._prompts([request for request in group if request.n_unread > 1])
        if not (parts and self.budget.wants_answers_alone):
            parts += self._prompt_parts(prompts, len(parts))
        return self._with_cells(parts)

    def _prompt_parts(self, prompts: list[GenerationRequest], n_answers: int) -> list[Part]:
        """Return as much of `prompts` as the step has room for beside `n_answers`.

        The oldest gets half of the time, so that it goes on. In the other half, which it cannot use up, the shortest
        come first: they soon answer.
        """
        parts = []
        room, room_s = self._step_tokens - n_answers, self.budget.room_s(n_answers)
        oldest = min(prompts, default=None)
        for request in sorted(prompts, key=lambda request: (request is not oldest, request.n_unread)):
            n = min(request.n_unread, room)
            if len(self.running) > 1 and n > 0:
                is_first = request is oldest and len(prompts) > 1
                share_s = room_s / 2 if is_first else room_s
                position = len(request.tokens) - request.n_unread
                n, took_s = self.budget.tokens(self._step_tokens - room, share_s, n, position)
                room_s -= min(took_s, share_s) if is_first else took_s
            if n > 0:
                parts.append(_part(request, n))
                room -= n
            if room_s <= 0:
                break
        return parts

    def _prompts(self, requests: list[GenerationRequest]) -> list[GenerationRequest]:
        """Return those of `requests` that read their prompt now, in order; the others wait for what they share.

        Of prompts that begin alike the oldest is read first, and the others share its cells.
        """
        reading: list[GenerationRequest] = []
        for request in sorted(requests):
            sequence = request.sequence
            assert sequence is not None
            if any(self._will_read(other, request) for other in reading):
                continue
            n_more = self._cache.catch_up(sequence, request.tokens)
            request.n_cached += 0 if request.has_paused else n_more
            reading.append(request)
        return reading

    @staticmethod
    def _will_read(other: GenerationRequest, request: GenerationRequest) -> bool:
        """Tell whether `other` is about to read what `request` lacks, and has not read all of that yet."""
        assert other.sequence is not None
        assert request.sequence is not None
        n = common_prefix(other.tokens, request.tokens, request.n_prompt - 1)
        return n - len(request.sequence.tokens) >= _WORTH_WAITING and len(other.sequence.tokens) < n

    def _next_adapters(self) -> Hashable:
        """Return the LoRA scales of the next step: a decode has the same for all, so that different ones take turns."""
        kinds = list(dict.fromkeys(request.adapters for request in self.running))
        at = kinds.index(self._adapters) + 1 if self._adapters in kinds else 0
        self._adapters = kinds[at % len(kinds)] if kinds else None
        return self._adapters

    def _with_cells(self, parts: list[Part]) -> list[Part]:
        """Return `parts` when there are free cells for them, else those that are left when the newest requests wait."""
        while parts and not self._cache.make_room(sum(len(part.tokens) for part in parts)):
            if (newest := self.make_newest_wait()) is None:
                return []
            parts = [part for part in parts if part.request is not newest]
        return parts

    def make_newest_wait(self) -> GenerationRequest | None:
        """Pause the request that came last and return it; return None when only one runs."""
        if len(self.running) < 2:
            return None
        newest = max(self.running)
        self.pause(newest)
        return newest


def _part(request: GenerationRequest, n: int) -> Part:
    """Return the next `n` tokens of a running request that its sequence does not hold yet."""
    sequence = request.sequence
    assert sequence is not None
    start = len(sequence.tokens)
    return Part(request, sequence, request.tokens[start : start + n])
