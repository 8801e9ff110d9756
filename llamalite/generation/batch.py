"""Answers many prompts through an engine, a number of them at a time, and returns their completions in order.

    completions = run_batch(engine, [Job(ids, params), ...], parallel=16)

As soon as one is answered, the next one is queued: behind whatever other callers have queued meanwhile.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llamalite.generation.completion import Completion, Piece, Totals
from llamalite.generation.engine import Engine
from llamalite.generation.request import GenerationRequest, next_item
from llamalite.sampling import SamplingParams

OnCompletion = Callable[[int, Completion], None]


@dataclass(frozen=True)
class Job:
    """One prompt of a batch with its parameters."""

    prompt: list[int]
    params: SamplingParams
    adapters: Any = None


class _Batch:
    """The jobs of one call: which are queued, and what they have given so far."""

    def __init__(self, engine: Engine, jobs: Sequence[Job]) -> None:
        self._engine, self._jobs = engine, jobs
        self._left: Iterator[tuple[int, Job]] = iter(enumerate(jobs))
        self._requests: dict[int, GenerationRequest] = {}
        self._pieces: dict[int, list[Piece]] = {}
        self._ended: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        self._is_cancelled = False

    def submit(self, n: int) -> None:
        """Queue the next `n` jobs."""
        for _ in range(n):
            self.submit_next()

    def submit_next(self) -> None:
        """Queue the next job, if there is one: in the decode thread, as soon as another has ended."""
        try:
            for number, job in self._left:
                if not self._is_cancelled:
                    request = self._engine.request(job.prompt, job.params, partial(self._take, number), job.adapters)
                    self._requests[number], self._pieces[number] = request, []
                    self._engine.submit(request, may_refuse=len(self._requests) == 1)
                    return
                totals = Totals(len(job.prompt), 0, 0, 0.0, 0.0, 0.0, job.params.seed or 0)
                self._pieces[number] = [Piece("", finish_reason="cancelled", totals=totals)]
                self._ended.put(number)
        except BaseException as error:  # noqa: BLE001 - raised again by `completions`
            self._ended.put(error)

    def _take(self, number: int, item: Piece | BaseException) -> None:
        if isinstance(item, BaseException):
            self._ended.put(item)
            return
        self._pieces[number].append(item)
        if item.finish_reason is not None:
            self._is_cancelled = self._is_cancelled or item.finish_reason == "cancelled"
            self._ended.put(number)
            self.submit_next()

    def completions(self) -> Iterator[tuple[int, Completion]]:
        """Yield (number, completion) as the jobs end; raise what one of them raised."""
        for _ in self._jobs:
            ended = next_item(self._ended, self._engine.check_process)
            if isinstance(ended, BaseException):
                raise ended
            self._requests.pop(ended, None)
            yield ended, Completion.of(iter(self._pieces.pop(ended)))

    def cancel(self) -> None:
        self._is_cancelled, self._left = True, iter(())  # nobody waits for those that are left
        for request in list(self._requests.values()):
            request.cancel()


def run_batch(
    engine: Engine, jobs: Sequence[Job], *, parallel: int, on_completion: OnCompletion | None = None
) -> list[Completion]:
    """Run `jobs`, up to `parallel` at once, and return their completions in order; once one is cancelled, all are.

    `on_completion` is called with the number of each job and its completion as it ends. If it raises, or a job does,
    the others are cancelled and the exception is raised here.
    """
    batch, completions = _Batch(engine, jobs), dict[int, Completion]()
    try:
        engine.call(lambda: batch.submit(parallel))  # all before the next step
        for number, completion in batch.completions():
            completions[number] = completion
            if on_completion is not None:
                on_completion(number, completion)
    except BaseException:
        batch.cancel()
        raise
    return [completions[number] for number in range(len(jobs))]
