"""One generation over a fake decoder: what is read, what is shown, when it ends, what is left."""

from __future__ import annotations

import threading

import fake
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalite.errors import ContextOverflowError
from llamalite.generation.batch import Job, run_batch
from llamalite.generation.completion import Completion, HeldText, score
from llamalite.generation.engine import Engine
from llamalite.sampling import SamplingParams

PROMPT = [5, 6, 7, 8]


def make_engine(context: fake.FakeContext | None = None, **options: object) -> Engine:
    return Engine(context or fake.FakeContext(), fake.FakeVocabulary(), fake.FakeSampler, **options)  # type: ignore[arg-type]


def held(engine: Engine) -> list[int]:
    """The tokens of the generation that ended last, as the engine knows them."""
    return engine.cache.most_recent().tokens


def run(engine: Engine, prompt: list[int] = PROMPT, **options: object) -> Completion:
    return Completion.of(engine.stream(prompt, SamplingParams(**{"max_tokens": 6, **options})))  # type: ignore[arg-type]


def test_the_story_is_the_decoders() -> None:
    completion = run(make_engine())
    assert list(completion.tokens) == fake.story(PROMPT, 6)
    assert completion.text == bytes(completion.tokens).decode()
    assert (completion.finish_reason, completion.totals.n_prompt, completion.totals.n_generated) == ("length", 4, 6)


def test_the_end_of_generation_token_ends_it_and_is_not_said() -> None:
    completion = run(make_engine(fake.FakeContext(ends=[6])))
    assert list(completion.tokens) == fake.story(PROMPT, 2)
    assert completion.finish_reason == "stop"


def test_no_tokens_asked_reads_the_prompt_and_says_nothing() -> None:
    engine = make_engine()
    completion = run(engine, max_tokens=0)
    assert (completion.text, completion.finish_reason, held(engine)) == ("", "length", PROMPT)


def test_a_prompt_is_read_in_steps() -> None:
    context = fake.FakeContext(n_batch=3)
    run(make_engine(context), list(range(1, 9)), max_tokens=1)
    assert [len(call) for call in context.calls] == [3, 3, 2]


def test_a_held_prefix_is_not_read_again() -> None:
    context = fake.FakeContext()
    engine = make_engine(context)
    run(engine)
    context.calls.clear()
    completion = run(engine, [5, 6, 7, 9, 9])
    assert completion.totals.n_cached == 3
    assert context.calls[0] == [(0, 9), (0, 9)]
    assert list(completion.tokens) == fake.story([5, 6, 7, 9, 9], 6)


def test_the_last_token_of_a_held_prompt_is_read_for_its_logits() -> None:
    context = fake.FakeContext()
    engine = make_engine(context)
    run(engine, max_tokens=0)
    context.calls.clear()
    assert run(engine).totals.n_cached == 3
    assert context.calls[0] == [(0, 8)]


def test_a_state_that_cannot_rewind_is_rebuilt_unless_the_prompt_continues_it() -> None:
    context = fake.FakeContext(can_forget=False)
    engine = make_engine(context, can_rewind=False)
    said = run(engine, max_tokens=3)
    assert run(engine, [*PROMPT, *said.tokens[:2], 4], max_tokens=1).totals.n_cached == 6
    assert run(engine, [*PROMPT, 99], max_tokens=1).totals.n_cached == 0


def test_reproducible_reads_everything_again() -> None:
    context = fake.FakeContext()
    engine = make_engine(context)
    run(engine)
    assert run(engine, reproducible=True).totals.n_cached == 0
    assert context.cleared == 1


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    text = bytes(fake.story(PROMPT, 8)).decode()
    pieces = list(make_engine().stream(PROMPT, SamplingParams(max_tokens=8, stop=[text[3:6]])))
    assert "".join(piece.text for piece in pieces) == text[:3]
    assert pieces[-1].finish_reason == "stop"
    assert len(pieces) == 6 + 1
    assert all(text[:3].startswith("".join(piece.text for piece in pieces[:n])) for n in range(len(pieces)))


def test_text_held_for_a_stop_string_that_never_comes_is_shown_at_the_end() -> None:
    text = bytes(fake.story(PROMPT, 6)).decode()
    pieces = list(make_engine().stream(PROMPT, SamplingParams(max_tokens=6, stop=[text[5] + "?"])))
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[-1].text == text[5]


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_held_text_is_the_text_up_to_the_first_stop_however_it_is_cut(text: str, stops: list[str], step: int) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    whole = raw.decode("utf-8", "replace")
    held, shown = HeldText(stops), ""
    for start in range(0, len(raw), step):
        shown += held.push(raw[start : start + step])
        if held.stopped_by is not None:
            break
    else:
        shown += held.flush()
    ends = [whole.find(stop) for stop in stops if stop in whole]
    if held.stopped_by is not None:
        assert shown in [whole[:end] for end in {whole.find(stop) for stop in stops}]
    else:
        assert not ends
        assert shown == whole


@given(st.lists(st.tuples(st.text("ab<>", max_size=4), st.booleans()), max_size=8), st.text("ab<>", min_size=1))
def test_hidden_text_is_searched_for_stops_and_never_shown(parts: list[tuple[str, bool]], stop: str) -> None:
    held, shown, whole = HeldText([stop]), "", "".join(text for text, _ in parts)
    for text, hidden in parts:
        shown += held.push_hidden(text) if hidden else held.push(text.encode())
        if held.stopped_by is not None:
            break
    shown += held.flush()
    end = whole.find(stop) if stop in whole else len(whole)
    seen = "".join(text if not hidden else "\0" * len(text) for text, hidden in parts)[:end].replace("\0", "")
    assert (shown, held.stopped_by) == (seen, stop if stop in whole else None)


class ControlVocabulary(fake.FakeVocabulary):
    """The third token of the story is a control token; the end of a generation is spelled too."""

    control = fake.story(PROMPT, 3)[2]

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        spelling = {self.control: b"<|turn|>", fake.EOG: b"<|end|>"}.get(token)
        return super().token_to_piece(token) if spelling is None else spelling if special else b""


def with_control(context: fake.FakeContext | None = None) -> Engine:
    return Engine(context or fake.FakeContext(), ControlVocabulary(), fake.FakeSampler)


@pytest.mark.parametrize("stop", ["<|turn|>", "<|turn|", "{}<|turn|>"])
def test_a_stop_string_matches_a_control_token(stop: str) -> None:
    before = bytes(fake.story(PROMPT, 2)).decode()
    stop = stop.format(before[1])
    completion = run(with_control(), stop=[stop])
    assert (completion.finish_reason, completion.stopped_by) == ("stop", stop)
    assert completion.text == (before[:1] if stop.startswith(before[1]) else before)


def test_a_control_token_that_is_no_stop_is_not_shown() -> None:
    tokens = [token for token in fake.story(PROMPT, 6) if token != ControlVocabulary.control]
    for stop in ([], ["<|end|>"]):
        completion = run(with_control(), stop=stop)
        assert (completion.text, completion.stopped_by) == (bytes(tokens).decode(), None)


def test_a_token_id_stops_and_is_not_said() -> None:
    tokens = fake.story(PROMPT, 4)
    completion = run(make_engine(), stop=[tokens[3], "never"])
    assert (completion.finish_reason, completion.stopped_by) == ("stop", tokens[3])
    assert (list(completion.tokens), completion.text) == (tokens[:3], bytes(tokens[:3]).decode())


def test_the_stop_that_came_is_named_though_the_model_ended_there_too() -> None:
    assert run(with_control(fake.FakeContext(ends=[6])), stop=["x", "<|end|>"]).stopped_by == "<|end|>"
    assert run(with_control(fake.FakeContext(ends=[6])), stop=[fake.EOG]).stopped_by == fake.EOG
    ended = run(with_control(fake.FakeContext(ends=[6])), stop=[bytes(fake.story(PROMPT, 2)).decode()[-1] + "?"])
    assert (ended.text, ended.stopped_by) == (bytes(fake.story(PROMPT, 2)).decode(), None)


def test_a_batch_says_which_stop_ended_each_answer() -> None:
    stop = fake.story(PROMPT, 4)[3]
    params = SamplingParams(max_tokens=6, stop=[stop])
    engine = make_engine(fake.FakeContext(n_ctx=64, n_batch=16))
    completions = run_batch(engine, [Job(PROMPT, params)] * 2, parallel=2)
    assert [completion.stopped_by for completion in completions] == [stop, stop]


def test_an_incomplete_character_is_not_shown() -> None:
    held = HeldText()
    assert held.push("a字".encode()[:3]) == "a"
    assert held.flush() == ""


def test_scores_are_log_probabilities() -> None:
    import numpy as np

    logits = np.array([1.0, 3.0, 2.0], np.float32)
    logprob, top = score(logits, 2, 2)
    expected = logits - np.log(np.exp(logits.astype(float)).sum())
    assert logprob == pytest.approx(expected[2])
    assert [token for token, _ in top] == [1, 2]
    assert score(logits, 0, 0)[1] == ()


def test_a_full_context_ends_the_answer_with_that_reason() -> None:
    completion = run(make_engine(fake.FakeContext(n_ctx=8)), max_tokens=None)
    assert (completion.finish_reason, completion.totals.n_generated) == ("context", 5)


def test_a_prompt_that_is_too_long_is_reported_with_numbers_before_anything_is_read() -> None:
    context = fake.FakeContext(n_ctx=8)
    with pytest.raises(ContextOverflowError, match="4 tokens and max_tokens asks for 6 more, .* holds 8: 2 too many"):
        run(make_engine(context))
    assert not context.calls


def test_an_abort_in_a_prompt_keeps_what_was_read() -> None:
    context = fake.FakeContext(n_batch=4)
    engine = make_engine(context)
    stream = engine.stream(list(range(1, 15)), SamplingParams(max_tokens=3))
    context.on_decode = lambda: stream.cancel() if len(context.calls) == 2 else None
    assert [piece.finish_reason for piece in stream] == ["cancelled"]
    assert run(engine, list(range(1, 15)), max_tokens=3).totals.n_cached == 8


def test_cancelling_ends_with_that_reason_and_the_next_run_is_complete() -> None:
    engine = make_engine()
    stream = engine.stream(PROMPT, SamplingParams(max_tokens=20))
    next(stream)
    stream.cancel()
    assert [piece.finish_reason for piece in stream] == ["cancelled"]
    assert list(run(engine).tokens) == fake.story(PROMPT, 6)


def test_cancelling_before_the_first_piece_computes_nothing() -> None:
    context = fake.FakeContext()
    stream = make_engine(context).stream(PROMPT, SamplingParams())
    stream.cancel()
    assert [piece.finish_reason for piece in stream] == ["cancelled"]
    assert not context.calls


def test_a_cancel_after_the_end_does_not_touch_the_next_one() -> None:
    engine = make_engine()
    first = engine.stream(PROMPT, SamplingParams(max_tokens=2))
    list(first)
    second = engine.stream(PROMPT, SamplingParams(max_tokens=3))
    next(second)
    first.cancel()
    assert list(second)[-1].finish_reason == "length"


def test_closing_gives_the_sequence_and_the_sampler_back() -> None:
    engine = make_engine()
    stream = engine.stream(PROMPT, SamplingParams(max_tokens=20))
    next(stream)
    stream.close()
    assert run(engine).finish_reason == "length"
    assert list(stream) == []
    assert not engine.schedule.running


def test_a_waiting_stream_can_be_cancelled() -> None:
    context = fake.FakeContext(n_ctx=400)
    engine = make_engine(context)
    release = threading.Event()

    def wait() -> None:
        assert release.wait(5)

    context.on_decode = wait
    first, second = (engine.stream(PROMPT, SamplingParams(max_tokens=20)) for _ in range(2))
    reasons: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: [piece for piece in first]),  # noqa: C416
        threading.Thread(target=lambda: reasons.extend(piece.finish_reason for piece in second)),
    ]
    for thread in threads:
        thread.start()
    while len(engine.schedule.running) + engine.schedule.n_waiting < 2:
        pass
    second.cancel()
    threads[1].join(5)
    assert reasons == ["cancelled"]
    release.set()
    threads[0].join(5)


def test_ctrl_c_ends_the_stream_and_keeps_the_engine_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(fake.FakeContext(n_ctx=10_000))
    stream = engine.stream(PROMPT, SamplingParams(max_tokens=9000))
    next(stream)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert list(stream) == []
    assert list(run(engine).tokens) == fake.story(PROMPT, 6)
