"""What happens to generations at the worst moment: while they start, wait, draft, or when the engine is closed."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import fake
import pytest
from test_engine import Served, read_eight

from llamalite.errors import GenerationCancelled, LlamaliteError
from llamalite.generation.batch import Job, run_batch
from llamalite.generation.completion import Completion, Sampler
from llamalite.generation.request import GenerationRequest
from llamalite.sampling import SamplingParams


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_cancel_reaches_one_that_is_just_starting() -> None:
    served = Served()
    served.run(served.request([5, 6, 7, 8]))
    share = served.context.seq_cp

    def cancel_and_share(source: int, target: int, start: int = 0, stop: int = -1) -> None:
        served.engine.cancel()  # as from another thread
        share(source, target, start, stop)

    served.context.seq_cp = cancel_and_share  # type: ignore[method-assign]
    assert served.run(served.request([5, 6, 7, 9], max_tokens=300))[1].finish_reason == "cancelled"


def test_one_that_cannot_be_started_is_told_why() -> None:
    served = Served()
    served.run(served.request([5, 6, 7, 8]))

    def fail(source: int, target: int, start: int = 0, stop: int = -1) -> None:
        raise ValueError("this context is closed")

    served.context.seq_cp = fail  # type: ignore[method-assign]
    served.engine.submit(served.request([5, 6, 7, 9]))
    wait_for(lambda: len(served.ended) == 2)
    assert [str(item) for item in served.answers[1]] == ["this context is closed"]


@pytest.mark.parametrize("n_ctx", [600, 601])
def test_one_that_is_left_when_another_waits_for_cells_is_not_cut_short(n_ctx: int) -> None:
    served = Served(n_parallel=2, n_ctx=n_ctx)
    requests = [served.request([10 + i], max_tokens=400) for i in range(2)]
    requests[1].adapters = (0.5,)  # so that a step has only one of them
    assert [completion.finish_reason for completion in served.run(*requests)] == ["length", "length"]


def test_a_short_prompt_waits_for_a_long_one_only_until_it_has_read_what_they_share() -> None:
    served = Served(n_batch=64)
    read_eight(served)
    begin = list(range(20, 60))
    served.run(served.request([*begin, *(1 + i % 9 for i in range(200))], max_tokens=1), served.request([*begin, 3, 4]))
    assert served.ended == [1, 0]
    assert sum(token in begin for call in served.context.calls for _, token in call) == len(begin)


class DraftThatIsAborted:
    """Drafts nothing, as long as the flag that it shares with the context is not set."""

    def __init__(self, served: Served, while_drafting: Callable[[], None]) -> None:
        self.served, self.while_drafting = served, while_drafting

    def draft(self, answer_tokens: Sequence[int], room: int) -> Sequence[int]:
        self.while_drafting()
        if self.served.context.aborted:
            raise GenerationCancelled("aborted")
        return []


def test_one_that_drafts_goes_on_when_another_is_cancelled_or_comes() -> None:
    served = Served()
    ended, late = served.request([50], max_tokens=1), [served.request([60], max_tokens=1)]

    def while_drafting() -> None:
        ended.cancel()  # as a consumer does when it has the last piece
        if late:
            served.engine.submit(late.pop())

    request = served.request([10], max_tokens=8)
    request.speculator = DraftThatIsAborted(served, while_drafting)
    served.submit(request, ended)
    wait_for(lambda: len(served.ended) == 3)
    assert [getattr(answer[-1], "finish_reason", answer[-1]) for answer in served.answers.values()] == ["length"] * 3


def test_one_that_drafts_can_be_cancelled_meanwhile() -> None:
    served = Served()
    request = served.request([10], max_tokens=8)
    request.speculator = DraftThatIsAborted(served, request.cancel)
    assert served.run(request)[0].finish_reason == "cancelled"


@pytest.mark.parametrize("options", [{"n_parallel": 1}, {"can_rewind": False}])
def test_a_prompt_that_nobody_can_join_is_not_interrupted_again_and_again(options: dict[str, Any]) -> None:
    served = Served(n_batch=300, n_ctx=2000, **options)
    late = [served.request([100], max_tokens=1) for _ in range(5)]
    aborted: list[bool] = []

    def somebody_comes() -> None:
        if late:
            served.engine.submit(late.pop())
            aborted.append(served.context.aborted)

    served.context.on_decode = somebody_comes
    served.run(served.request([1 + i % 90 for i in range(290)], max_tokens=1))
    assert sum(aborted) <= 1


def test_a_higher_priority_waits_for_a_reproducible_one() -> None:
    served = Served()
    urgent = served.request([30], priority=1)
    served.at_call(2, lambda: served.engine.submit(urgent))
    served.run(served.request([10], max_tokens=9, reproducible=True))
    assert served.ended == [1, 0]


def test_an_engine_cannot_be_closed_in_its_own_thread() -> None:
    served = Served()
    raised: list[str] = []

    def close() -> None:
        with pytest.raises(LlamaliteError) as caught:
            served.engine.close()
        raised.append(str(caught.value))

    served.at_call(2, close)
    served.run(served.request([10]))
    assert raised == ["a model cannot be closed in the thread in which it computes: close it in another"]
    served.engine.close()


def test_a_request_that_its_receiver_refers_to_is_freed_at_its_end() -> None:
    served = Served()
    request = served.request([10])
    deliver = request.deliver
    request.deliver = lambda item, _request=request: deliver(item)  # type: ignore[misc]
    gone = weakref.ref(request)
    served.run(request)
    del request
    wait_for(lambda: gone() is None)


def test_a_short_prompt_is_read_though_a_long_one_takes_more_than_its_time() -> None:
    served = Served(n_batch=64)

    def tokens(_n_rows: int, _room_s: float, n_left: int, _position: int) -> tuple[int, float]:
        return min(n_left, 8), 10.0

    served.engine.schedule.budget.tokens = tokens  # type: ignore[method-assign,assignment]
    served.run(served.request(range(1, 90), max_tokens=1), served.request([100, 101, 3], max_tokens=1))
    assert served.ended == [1, 0]
    assert served.together[0] == 2


def test_a_batch_that_failed_prepares_no_more_jobs() -> None:
    served = Served()
    prepared: list[list[int]] = []
    prepare = served.engine.make_sampler

    def noting(params: SamplingParams, ids: Sequence[int]) -> Sampler:
        prepared.append(list(ids))
        return prepare(params, ids)

    served.engine.make_sampler = noting

    def fail(_number: int, _completion: Completion) -> None:
        raise RuntimeError("the disk is full")

    jobs = [Job([1 + i % 90], SamplingParams(max_tokens=2 if i == 0 else 300)) for i in range(200)]
    with pytest.raises(RuntimeError, match="the disk is full"):
        run_batch(served.engine, jobs, parallel=2, on_completion=fail)
    wait_for(lambda: not served.engine.schedule.all())
    assert len(prepared) < 100  # a few: as many as had ended before the callback ran


def test_what_lies_before_a_sliding_window_is_not_shared() -> None:
    served = Served(window=10)
    served.run(served.request([5, 6, 7, 8, 9, 10, 11, 12], max_tokens=5))  # the context holds 12 of them
    part = served.run(served.request([5, 6, 7, 8, 9, 10, 1]))[1]
    again = served.run(served.request([5, 6, 7, 8, 9, 10, 2], max_tokens=1))[2]  # the second one's 10 are in the window
    whole = served.run(served.request([5, 6, 7, 8, 9, 10, 11, 12, *fake.story([5, 6, 7, 8, 9, 10, 11, 12], 4), 3]))[3]
    assert [completion.totals.n_cached for completion in (part, again, whole)] == [0, 6, 12]


def test_one_that_comes_while_the_engine_is_closed_is_refused_and_nothing_runs_on() -> None:
    served = Served()
    served.run(served.request([10]))
    n_calls = len(served.context.calls)
    add, freed = served.engine.schedule.add, list[int]()

    def close_and_add(request: GenerationRequest) -> None:
        served.engine.close(lambda: freed.append(len(served.context.calls)))  # as another thread does
        add(request)

    served.engine.schedule.add = close_and_add  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="this model is closed"):
        served.engine.submit(served.request([20]))
    assert freed == [n_calls] == [len(served.context.calls)]
