"""What happens to generations at the worst moment: while they start, wait, draft, or when the engine is closed."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from test_engine import Served


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


@pytest.mark.parametrize("n_ctx", range(330, 334))
def test_one_that_is_left_when_another_waits_for_cells_is_not_cut_short(n_ctx: int) -> None:
    served = Served(n_parallel=2, n_ctx=n_ctx)
    requests = [served.request([10 + i], max_tokens=280) for i in range(2)]
    requests[1].adapters = (0.5,)  # so that a step has only one of them
    assert [completion.finish_reason for completion in served.run(*requests)] == ["length", "length"]
