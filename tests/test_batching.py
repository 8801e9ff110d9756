"""Many generations over a fake decoder: slots, order, parameters, seeds, the common prefix, cancellation."""

from __future__ import annotations

import fake
import pytest

from llamalite.errors import ContextOverflowError
from llamalite.generation.batch import Batch, Job, cells_needed
from llamalite.generation.completion import Completion
from llamalite.generation.engine import Engine
from llamalite.sampling import SamplingParams


def run(
    jobs: list[Job], *, n_slots: int = 3, n_ctx: int = 200, n_batch: int = 16, **options: object
) -> tuple[list[Completion], fake.FakeContext, list[int]]:
    engine = Engine(fake.FakeContext(), fake.FakeVocabulary(), fake.FakeSampler)
    context = fake.FakeContext(n_ctx=n_ctx, n_batch=n_batch, **options)  # type: ignore[arg-type]
    finished: list[int] = []
    batch = Batch(engine, context, n_slots=n_slots)
    return batch.run(jobs, lambda number, _: finished.append(number)), context, finished


def jobs(*sizes: int, begin: tuple[int, ...] = (), **options: object) -> list[Job]:
    """Jobs whose prompts are `begin` and one token of their own, that ask for `sizes` tokens."""
    made = [SamplingParams(max_tokens=size, **options) for size in sizes]  # type: ignore[arg-type]
    return [Job(i, [*begin, 10 + i], params) for i, params in enumerate(made)]


def test_every_prompt_gets_its_own_story_in_order() -> None:
    batch_jobs = jobs(5, 2, 7, 1, 4)
    completions, _, finished = run(batch_jobs)
    assert [list(completion.tokens) for completion in completions] == [
        fake.story(job.prompt, job.params.max_tokens or 0) for job in batch_jobs
    ]
    assert finished == [1, 3, 0, 2, 4]
    assert [completion.finish_reason for completion in completions] == ["length"] * 5


def test_a_slot_is_refilled_as_soon_as_its_answer_ends() -> None:
    _, context, _ = run(jobs(8, 2, 2, 2, 2), n_slots=2)
    together = [len({seq_id for seq_id, _ in call}) for call in context.calls]
    assert together[:8] == [2] * 8  # never a slot that idles while prompts wait


def test_a_common_prefix_is_read_once() -> None:
    begin = tuple(range(20, 30))
    batch_jobs = jobs(3, 3, 3, 3, begin=begin)
    completions, context, _ = run(batch_jobs)
    assert context.calls[0] == [(0, token) for token in begin]
    assert sum(token in begin for call in context.calls for _, token in call) == len(begin)
    assert [list(completion.tokens) for completion in completions] == [fake.story(job.prompt, 3) for job in batch_jobs]
    assert [completion.totals.n_cached for completion in completions] == [10] * 4


def test_equal_prompts_share_all_but_their_last_token() -> None:
    batch_jobs = [Job(i, [5, 6, 7], SamplingParams(max_tokens=2)) for i in range(3)]
    completions, context, _ = run(batch_jobs)
    assert context.calls[0] == [(0, 5), (0, 6)]
    assert [list(completion.tokens) for completion in completions] == [fake.story([5, 6, 7], 2)] * 3


def test_each_keeps_its_own_parameters_and_seed() -> None:
    batch_jobs = [
        Job(0, [10], SamplingParams(max_tokens=3, seed=1)),
        Job(1, [10], SamplingParams(max_tokens=3, seed=2)),
        Job(2, [10], SamplingParams(max_tokens=4, stop="abc")),
    ]
    completions, _, _ = run(batch_jobs)
    assert [completion.totals.seed for completion in completions] == [1, 2, 0]
    assert len({completion.tokens for completion in completions}) == 3
    assert len(completions[2].tokens) == 4


def test_the_end_of_a_generation_frees_its_cells() -> None:
    completions, context, _ = run(jobs(10, 10, 10), n_slots=1, n_ctx=12, ends=[4])
    assert [completion.finish_reason for completion in completions] == ["stop"] * 3
    assert not context.sequences


def test_answers_in_progress_never_need_more_cells_than_there_are() -> None:
    batch_jobs = jobs(30, 30, 30, 30)
    completions, context, _ = run(batch_jobs, n_slots=4, n_ctx=70)
    assert [len(completion.tokens) for completion in completions] == [30] * 4
    assert max(len(call) for call in context.calls) == 2  # two at a time fit


def test_long_prompts_are_read_beside_the_answers_being_written() -> None:
    batch_jobs = [
        Job(0, [5], SamplingParams(max_tokens=12)),
        Job(1, list(range(20, 60)), SamplingParams(max_tokens=2)),
    ]
    completions, context, _ = run(batch_jobs, n_batch=8)
    assert list(completions[1].tokens) == fake.story(batch_jobs[1].prompt, 2)
    assert all(len(call) <= 8 for call in context.calls)
    assert {seq_id for seq_id, _ in context.calls[2]} == {1, 2}  # the answer goes on while the prompt is read


def test_an_answer_without_a_limit_ends_with_the_context() -> None:
    completions, _, _ = run([Job(0, [5, 6], SamplingParams())], n_ctx=12)
    assert (completions[0].finish_reason, len(completions[0].tokens)) == ("context", 11)


def test_a_prompt_that_can_never_fit_is_refused_by_number() -> None:
    with pytest.raises(ContextOverflowError, match="prompt 1 has 1 tokens and asks for 300 more"):
        run(jobs(3, 300), n_ctx=100)


def test_cancelling_gives_back_what_was_written() -> None:
    batch_jobs = jobs(5, 9, 9, 9)
    completions = _cancelled_after(batch_jobs, 7)
    assert [completion.finish_reason for completion in completions] == ["length", "cancelled", "cancelled", "cancelled"]
    assert list(completions[1].tokens) == fake.story(batch_jobs[1].prompt, len(completions[1].tokens))
    assert completions[3].text == ""


def _cancelled_after(batch_jobs: list[Job], decodes: int) -> list[Completion]:
    engine = Engine(fake.FakeContext(), fake.FakeVocabulary(), fake.FakeSampler)
    context = fake.FakeContext(n_ctx=200)
    context.abort_after = decodes
    return Batch(engine, context, n_slots=2).run(batch_jobs)


def test_the_engine_takes_turns_with_a_batch() -> None:
    engine = Engine(fake.FakeContext(), fake.FakeVocabulary(), fake.FakeSampler)
    Batch(engine, fake.FakeContext(n_ctx=99), n_slots=2).run(jobs(2, 2))
    assert list(Completion.of(engine.stream([5], SamplingParams(max_tokens=2))).tokens) == fake.story([5], 2)


def test_the_cells_needed_are_those_of_the_largest_slots() -> None:
    assert cells_needed(jobs(5, 9, 2), 2, 100) == (1 + 9) + (1 + 5)
    assert cells_needed([Job(0, [1], SamplingParams())], 4, 100) == 100
