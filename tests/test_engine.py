"""Many generations over a fake decoder: who runs, who waits, what a step decodes, what is shared, who ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import fake
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalite.errors import LlamaliteError, QueueFullError
from llamalite.generation.batch import Job, run_batch
from llamalite.generation.completion import Completion, Piece
from llamalite.generation.costs import PromptBudget
from llamalite.generation.engine import Engine, Limits
from llamalite.generation.request import GenerationRequest
from llamalite.sampling import SamplingParams


class Served:
    """An engine over a fake context, whose first step begins when all requests are there."""

    def __init__(self, *, n_parallel: int = 3, n_ctx: int = 400, n_batch: int = 16, **options: object) -> None:
        limits = Limits(n_parallel=n_parallel, max_queue=options.pop("max_queue", None))  # type: ignore[arg-type]
        context_options = {name: options.pop(name) for name in ("ends", "can_forget") if name in options}
        self.context = fake.FakeContext(n_ctx, n_batch, n_seq_max=2 * n_parallel, **context_options)  # type: ignore[arg-type]
        self.engine = Engine(
            self.context, fake.FakeVocabulary(), fake.FakeSampler, limits=limits, **options  # type: ignore[arg-type]
        )  # fmt: skip
        self.answers: dict[int, list[Piece | BaseException]] = {}
        self.ended: list[int] = []
        self._all_ended = threading.Condition()

    def request(self, prompt: Sequence[int], **params: object) -> GenerationRequest:
        number = len(self.answers)
        self.answers[number] = []

        def deliver(item: Piece | BaseException) -> None:
            self.answers[number].append(item)
            if isinstance(item, BaseException) or item.finish_reason is not None:
                with self._all_ended:
                    self.ended.append(number)
                    self._all_ended.notify()

        asked = SamplingParams(**{"max_tokens": 4, **params})  # type: ignore[arg-type]
        return self.engine.request(list(prompt), asked, deliver)

    def submit(self, *requests: GenerationRequest) -> None:
        """Submit all requests between two steps."""

        def submit_all() -> None:
            for request in requests:
                self.engine.submit(request)

        self.engine.call(submit_all)

    def run(self, *requests: GenerationRequest) -> list[Completion]:
        """Submit all requests at once, wait for their ends, and return their completions."""
        self.submit(*requests)
        with self._all_ended:
            assert self._all_ended.wait_for(lambda: len(self.ended) == len(self.answers), 30)
        for answer in self.answers.values():
            if isinstance(answer[-1], BaseException):
                raise answer[-1]
        completions = [Completion.of(iter(answer)) for answer in self.answers.values()]  # type: ignore[arg-type]
        for request, completion in zip(requests, completions[-len(requests) :], strict=True):
            if completion.finish_reason != "cancelled":
                assert list(completion.tokens) == fake.story(request.tokens[: request.n_prompt], len(completion.tokens))
        return completions

    def at_call(self, n: int, action: Callable[[], object]) -> None:
        """Do `action` when the context is about to compute its `n`-th decode (from 0)."""

        def on_decode() -> None:
            if len(self.context.calls) == n:
                self.context.on_decode = lambda: None
                action()

        self.context.on_decode = on_decode

    @property
    def together(self) -> list[int]:
        """How many sequences each decode had."""
        return [len({seq_id for seq_id, _ in call}) for call in self.context.calls]


def test_every_prompt_gets_its_own_story() -> None:
    served = Served()
    completions = served.run(*(served.request([10 + i], max_tokens=n) for i, n in enumerate((5, 2, 7, 1, 4))))
    assert [len(completion.tokens) for completion in completions] == [5, 2, 7, 1, 4]
    assert served.ended == [1, 3, 0, 2, 4]


def test_a_place_that_is_free_is_taken_at_the_next_step() -> None:
    served = Served(n_parallel=2)
    served.run(*(served.request([10 + i], max_tokens=n) for i, n in enumerate((8, 2, 2, 2, 2))))
    assert served.together == [2] * 8


def test_who_came_first_starts_first_within_a_priority() -> None:
    served = Served(n_parallel=1)
    priorities = (0, 0, 5, -1, 5)
    served.run(*(served.request([10 + i], priority=priority) for i, priority in enumerate(priorities)))
    assert served.ended == [2, 4, 0, 1, 3]


def test_a_higher_priority_takes_the_newest_ones_place_which_then_goes_on() -> None:
    served = Served(n_parallel=2)
    urgent = served.request([30], max_tokens=3, priority=1)
    served.at_call(2, lambda: served.engine.submit(urgent))
    completions = served.run(served.request([10], max_tokens=9), served.request([20], max_tokens=9))
    assert served.ended == [0, 1, 2]
    assert list(completions[0].tokens) == fake.story([30], 3)
    assert sum(len(call) for call in served.context.calls) == 3 + 9 + 9  # what it had read was still there


def read_eight(served: Served) -> None:
    """Make each prompt read eight tokens a step, in half of the time that is left."""

    def tokens(_n_rows: int, room_s: float, n_left: int, _position: int) -> tuple[int, float]:
        return min(n_left, 8), room_s / 2

    served.engine.schedule.budget.tokens = tokens  # type: ignore[method-assign,assignment]


def test_a_long_prompt_is_read_beside_answers_in_pieces() -> None:
    served = Served(n_batch=64)
    read_eight(served)
    served.run(served.request([5], max_tokens=12), served.request(range(20, 80), max_tokens=2))
    assert max(len(call) for call in served.context.calls) <= 9
    assert served.together[:8] == [2] * 8  # the answer goes on while the prompt is read


def test_a_short_prompt_overtakes_a_long_one_which_still_goes_on() -> None:
    served = Served(n_batch=64)
    read_eight(served)
    served.run(served.request(range(1, 90), max_tokens=1), *(served.request([100, 100 + i, 3]) for i in range(2)))
    assert served.ended == [1, 2, 0]
    assert [sum(seq_id == 0 for seq_id, _ in call) for call in served.context.calls][:2] == [8, 8]  # half of the time


def test_a_prompt_that_is_read_alone_is_interrupted_when_somebody_comes() -> None:
    served = Served(n_batch=300, n_ctx=2000)
    short = served.request([100], max_tokens=1)
    aborted: list[bool] = []

    def join() -> None:
        served.engine.submit(short)
        aborted.append(served.context.aborted)

    served.at_call(0, join)
    served.run(served.request([1 + i % 90 for i in range(290)], max_tokens=1))
    assert aborted == [True]
    assert served.ended == [0, 1]  # the short one
    assert len(served.context.calls[0]) < 100  # both, in a step that is short


def test_prompts_that_begin_alike_are_read_once_even_if_they_come_together() -> None:
    begin = list(range(20, 60))
    served = Served(n_parallel=4, n_batch=64)
    completions = served.run(*(served.request([*begin, 90 + i]) for i in range(4)))
    prompts = [token for call in served.context.calls for _, token in call if token in begin]
    assert sorted(prompts) == begin
    assert [completion.totals.n_cached for completion in completions] == [0, 40, 40, 40]


def test_a_conversation_goes_on_where_it_was_though_others_ran_between() -> None:
    served = Served(n_parallel=2)
    first = served.run(served.request([5, 6, 7]))[0]
    for i in range(2):
        served.run(served.request([10 + i, 3]))
    n_read = sum(len(call) for call in served.context.calls)
    served.run(served.request([5, 6, 7, *first.tokens, 8], max_tokens=1))
    assert (
        sum(len(call) for call in served.context.calls) == n_read + 2
    )  # the last token of the answer, and the new one


def test_the_least_recently_used_conversation_is_forgotten_first() -> None:
    served = Served(n_parallel=1, n_ctx=24)
    for i in range(2):
        served.run(served.request([10 + i] * 7, max_tokens=1))
    served.run(served.request([10] * 7, max_tokens=1))  # now the second is the oldest
    served.run(served.request([30] * 12, max_tokens=1))
    assert served.engine.cache.longest([10] * 8)[1] == 7
    assert served.engine.cache.longest([11] * 8)[1] == 0


def test_what_does_not_fit_waits() -> None:
    served = Served(n_parallel=4, n_ctx=70)
    served.run(*(served.request([10 + i], max_tokens=30) for i in range(4)))
    assert max(served.together) == 2


def test_when_the_context_fills_up_the_newest_waits_and_nothing_is_lost() -> None:
    served = Served(n_parallel=3, n_ctx=530)  # room for the first 256 tokens of each
    prompts = [[10 + i] for i in range(2)]
    completions = served.run(*(served.request(prompt, max_tokens=280) for prompt in prompts))
    assert [len(completion.tokens) for completion in completions] == [280, 280]
    assert served.together[200] == 2
    assert set(served.together[-10:]) == {1}
    assert completions[1].totals.queued_s > 0
    assert [completion.totals.n_cached for completion in completions] == [0, 0]


def test_an_answer_without_a_limit_ends_with_the_context() -> None:
    served = Served(n_ctx=12)
    completion = served.run(served.request([5, 6], max_tokens=None))[0]
    assert (completion.finish_reason, len(completion.tokens)) == ("context", 11)


def test_reproducible_runs_alone_and_begins_with_an_empty_context() -> None:
    served = Served()
    requests = [served.request([5, 6, 7], reproducible=i == 1, max_tokens=5) for i in range(4)]
    completions = served.run(*requests)
    assert completions[1].totals.n_cached == 0
    assert served.context.cleared == 1
    assert served.ended == [0, 1, 2, 3]
    assert max(served.together) == 2  # the two after it


def test_each_keeps_its_own_parameters_and_seed() -> None:
    served = Served()
    requests = [
        served.request([10], max_tokens=3, seed=1),
        served.request([10], max_tokens=3, seed=2),
        served.request([10], max_tokens=4, stop="abc"),
    ]
    served.submit(*requests)
    while len(served.ended) < 3:
        pass
    completions = [Completion.of(iter(answer)) for answer in served.answers.values()]  # type: ignore[arg-type]
    assert [completion.totals.seed for completion in completions] == [1, 2, 0]
    assert len({completion.tokens for completion in completions}) == 3


def test_different_lora_scales_take_turns_and_share_nothing() -> None:
    used: list[object] = []
    served = Served(use_adapters=used.append)
    requests = [served.request([5, 6, 7]) for _ in range(3)]
    for request, adapters in zip(requests, (None, (0.5,), (0.5,)), strict=True):
        request.adapters = adapters
    completions = served.run(*requests)
    assert [completion.totals.n_cached for completion in completions] == [0, 0, 0]
    assert used == [(0.5,), None] * 4
    assert set(served.together) == {1, 2}


def test_one_that_is_cancelled_leaves_and_the_others_go_on() -> None:
    served = Served()
    requests = [served.request([10 + i], max_tokens=9) for i in range(3)]
    served.at_call(3, requests[1].cancel)
    completions = served.run(*requests)
    assert [completion.finish_reason for completion in completions] == ["length", "cancelled", "length"]
    assert len(completions[1].tokens) == 3  # and not the one of the step in which it was cancelled
    assert served.together == [3] * 4 + [2] * 5


def test_one_that_fails_leaves_and_the_others_go_on() -> None:
    served = Served()
    requests = [served.request([10 + i], max_tokens=5) for i in range(2)]

    def fail(_logits: object) -> int:
        raise LlamaliteError("no token may follow")

    requests[0].answer.sampler.sample = fail  # type: ignore[method-assign,assignment]
    served.submit(*requests)
    while len(served.ended) < 2:
        pass
    assert [str(item) for item in served.answers[0]] == ["no token may follow"]
    assert len(served.answers[1]) == 6


def test_a_decode_that_fails_ends_those_who_were_in_it_and_the_engine_works_on() -> None:
    served = Served()

    def fail() -> None:
        if len(served.context.calls) == 2:
            served.context.on_decode = lambda: None
            raise LlamaliteError("no memory")

    served.context.on_decode = fail
    requests = [served.request([10 + i]) for i in range(2)]
    served.submit(*requests)
    while len(served.ended) < 2:
        pass
    assert [str(answer[-1]) for answer in served.answers.values()] == ["no memory"] * 2
    served.answers.clear()
    served.ended.clear()
    assert served.run(served.request([10]))[0].finish_reason == "length"


def test_a_full_queue_refuses_and_says_how_long_it_is() -> None:
    served = Served(n_parallel=1, max_queue=2)
    refused: list[QueueFullError] = []

    def one_more() -> None:
        with pytest.raises(QueueFullError, match="2 generations wait already, and max_queue is 2") as caught:
            served.engine.submit(served.request([40]))
        refused.append(caught.value)
        served.answers.popitem()

    served.at_call(1, one_more)
    served.run(*(served.request([10 + i]) for i in range(3)))
    assert [error.n_waiting for error in refused] == [2]


def test_a_batch_takes_as_many_places_as_it_may_and_others_come_between() -> None:
    served = Served(n_parallel=4)
    finished: list[int] = []
    jobs = [Job([10 + i], SamplingParams(max_tokens=5)) for i in range(6)]
    between = served.request([50], max_tokens=2)
    served.at_call(1, lambda: served.engine.submit(between))
    completions = run_batch(served.engine, jobs, parallel=2, on_completion=lambda number, _: finished.append(number))
    assert [list(completion.tokens) for completion in completions] == [fake.story(job.prompt, 5) for job in jobs]
    assert max(served.together) == 3
    assert sorted(finished) == list(range(6))


def test_a_batch_whose_callback_raises_is_cancelled() -> None:
    served = Served()

    def fail(number: int, _completion: Completion) -> None:
        raise RuntimeError("the disk is full")

    jobs = [Job([10 + i], SamplingParams(max_tokens=300 if i else 2)) for i in range(3)]
    with pytest.raises(RuntimeError, match="the disk is full"):
        run_batch(served.engine, jobs, parallel=3, on_completion=fail)
    while served.engine.schedule.running:
        pass
    assert not served.engine.schedule.n_waiting


def measured(few: float = 2e-6, token_s: float = 0.001) -> PromptBudget:
    """A budget after steps in which a token took `token_s`, and 2 ms more per 1000 before it."""
    budget = PromptBudget()
    for start in range(0, 4000, 100):
        budget.add(4, 0, 0, 0.02)
        for n, c in ((100, 2e-6), (10, few)):
            positions = n * start + n * n // 2
            budget.add(4, n, positions, 0.02 + n * token_s + positions * c)
    return budget


def test_a_prompts_share_of_a_step_follows_what_was_measured() -> None:
    budget = measured()
    room_s = budget.room_s(4)
    assert room_s == pytest.approx(budget.BOUND_S - 0.02)
    n, took_s = budget.tokens(4, room_s, 5000, 0)
    assert n == pytest.approx(130, rel=0.1)
    assert took_s == pytest.approx(room_s, rel=0.1)
    assert budget.tokens(4, room_s, 5000, 3000)[0] == pytest.approx(room_s / 0.007, rel=0.1)
    assert budget.tokens(4, room_s, 7, 3000)[0] == 7
    assert budget.is_long(150, 500)
    assert not budget.is_long(100, 0)


def test_a_step_is_longer_where_short_ones_would_read_at_a_fraction_of_the_speed() -> None:
    budget = measured(few=2e-5)  # ten times as much for a row alone
    assert budget.tokens(4, 0.13, 5000, 3000)[0] == budget.TILE - 4
    assert budget.tokens(4, 0.13, 20, 3000)[0] == 2  # the end of a prompt: no tile in it


def test_answers_that_take_long_are_at_most_halved_and_measured_again() -> None:
    budget = measured()
    for _ in range(50):
        budget.add(8, 0, 0, 0.4)
    assert budget.room_s(8) == pytest.approx(0.4, rel=0.05)
    for _ in range(40):
        budget.add(8, 10, 0, 0.41)
    assert budget.wants_answers_alone


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_mixture_gives_everyone_its_own_story_and_gives_all_cells_back(data: st.DataObject) -> None:
    n_ctx = data.draw(st.integers(40, 120))
    served = Served(n_parallel=data.draw(st.integers(1, 4)), n_ctx=n_ctx, n_batch=data.draw(st.integers(4, 32)))
    requests = []
    for _ in range(data.draw(st.integers(1, 8))):
        prompt = [1 + token for token in data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=30))]
        n = data.draw(st.integers(0, n_ctx - len(prompt)) | st.none())
        requests.append(
            served.request(prompt, max_tokens=n, priority=data.draw(st.integers(0, 1)),
                           reproducible=data.draw(st.integers(0, 9)) == 0)
        )  # fmt: skip
    late = data.draw(st.integers(0, 20))
    victim = data.draw(st.sampled_from(requests))
    if data.draw(st.booleans()):
        served.at_call(late, victim.cancel)
    served.run(*requests)
    cache = served.engine.cache
    assert cache.n_used == served.context.n_used <= n_ctx
    assert {s.id: s.tokens for s in cache.sequences if s.tokens} == {
        i: held for i, held in served.context.sequences.items() if held
    }
    served.engine.call(cache.clear)
    assert cache.n_used == served.context.n_used == 0
