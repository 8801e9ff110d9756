"""Drafted tokens: answers, counts, cache and ends are those of one token per decode; only the speed differs."""

from __future__ import annotations

import collections
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import fake
import numpy as np
import numpy.typing as npt
import pytest
import toy
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st

from llamalite.errors import LlamaliteError, VocabularyError
from llamalite.generation.completion import Completion
from llamalite.generation.costs import Costs
from llamalite.generation.engine import Engine
from llamalite.generation.speculation import DraftModel, DraftReader, Lookup, Speculator
from llamalite.model import Model
from llamalite.sampling import SamplingParams

PROMPT = [5, 6, 7, 8]
ENDS = {i: -math.inf for i, (piece, _, _) in enumerate(toy.vocabulary()) if piece in ("</s>", "<|im_end|>")}


class Scripted:
    """Drafts the fake's own story, with every `wrong`-th token spoiled, `n` tokens at a time."""

    def __init__(self, prompt: Sequence[int], n: int = 3, wrong: int = 0) -> None:
        self.prompt, self.n, self.wrong = list(prompt), n, wrong
        self.rooms: list[int] = []

    def draft(self, answer_tokens: Sequence[int], room: int) -> list[int]:
        self.rooms.append(room)
        story = fake.story([*self.prompt, *answer_tokens], min(self.n, room))
        return [
            1 if self.wrong and (len(answer_tokens) + i) % self.wrong == 0 else token for i, token in enumerate(story)
        ]


def make_engine(context: fake.FakeContext, n: int = 3, wrong: int = 0, **options: object) -> Engine:
    def make(_params: SamplingParams, prompt: Sequence[int], _costs: Costs) -> Scripted:
        return Scripted(prompt, n, wrong)

    return Engine(context, fake.FakeVocabulary(), fake.FakeSampler, make_speculator=make, **options)  # type: ignore[arg-type]


def run(engine: Engine, **options: object) -> Completion:
    return Completion.of(engine.stream(PROMPT, SamplingParams(**{"max_tokens": 9, **options})))  # type: ignore[arg-type]


# ── the loop, over a decoder that can be read ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wrong", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_the_answer_does_not_depend_on_the_drafts(n: int, wrong: int) -> None:
    context = fake.FakeContext()
    engine = make_engine(context, n, wrong)
    completion = run(engine)
    assert list(completion.tokens) == fake.story(PROMPT, 9)
    assert context.sequences[0] == engine.cache.most_recent().tokens == [*PROMPT, *completion.tokens[:-1]]


def test_right_drafts_save_decodes_and_are_counted() -> None:
    context = fake.FakeContext()
    completion = run(make_engine(context), max_tokens=9)
    assert [len(call) for call in context.calls] == [4, 4, 4]  # the prompt, then a token and three drafted, twice
    assert (completion.totals.n_drafted, completion.totals.n_accepted) == (6, 6)
    completion = run(make_engine(fake.FakeContext(), wrong=1))
    assert completion.totals.n_drafted > 0
    assert completion.totals.n_accepted == 0


def test_the_samplers_see_each_token_once_and_in_order() -> None:
    rows: list[int] = []

    class Watching(fake.FakeSampler):
        def sample(self, logits: npt.NDArray[np.float32]) -> int:
            rows.append(super().sample(logits))
            return rows[-1]

    def make(_params: SamplingParams, prompt: Sequence[int], _costs: Costs) -> Scripted:
        return Scripted(prompt, 4, 3)

    engine = Engine(fake.FakeContext(), fake.FakeVocabulary(), Watching, make_speculator=make)
    completion = run(engine)
    assert rows == list(completion.tokens)


def test_no_more_is_drafted_than_there_is_room_for() -> None:
    context = fake.FakeContext(n_ctx=12, n_batch=5)
    completion = run(make_engine(context, 20), max_tokens=None)
    assert (completion.finish_reason, completion.totals.n_generated) == ("context", 9)
    assert max(len(call) for call in context.calls) <= 5
    assert run(make_engine(fake.FakeContext(), 20), max_tokens=2).totals.n_drafted == 0


def test_the_end_of_the_answer_inside_an_accepted_run_ends_it() -> None:
    context = fake.FakeContext(ends=[7])
    engine = make_engine(context, 6)
    completion = run(engine)
    assert (list(completion.tokens), completion.finish_reason) == (fake.story(PROMPT, 3), "stop")
    assert context.sequences[0] == engine.cache.most_recent().tokens == [*PROMPT, *completion.tokens]


def test_a_stop_string_inside_an_accepted_run_ends_it_and_is_not_shown() -> None:
    text = bytes(fake.story(PROMPT, 8)).decode()
    context = fake.FakeContext()
    engine = make_engine(context, 7)
    completion = run(engine, stop=[text[3:5]])
    assert (completion.text, completion.finish_reason, len(completion.tokens)) == (text[:3], "stop", 5)
    assert context.sequences[0] == engine.cache.most_recent().tokens == [*PROMPT, *completion.tokens[:-1]]


def test_max_tokens_inside_an_accepted_run_is_exact() -> None:
    for n in range(1, 9):
        assert list(run(make_engine(fake.FakeContext(), 5), max_tokens=n).tokens) == fake.story(PROMPT, n)


def test_cancelling_and_closing_inside_an_accepted_run_forget_what_was_not_said() -> None:
    for end in ("cancel", "close"):
        context = fake.FakeContext()
        engine = make_engine(context, 7)
        stream = engine.stream(PROMPT, SamplingParams(max_tokens=20))
        answer_tokens = [next(stream).token for _ in range(4)]
        getattr(stream, end)()
        assert [piece.finish_reason for piece in stream] == (["cancelled"] if end == "cancel" else [])
        assert answer_tokens == fake.story(PROMPT, 4)
        assert list(run(engine).tokens) == fake.story(PROMPT, 9)  # after the step that was running
        kept = context.sequences[0]
        assert kept == engine.cache.most_recent().tokens == [*PROMPT, *fake.story(PROMPT, len(kept) - len(PROMPT))]


def test_a_sampler_that_raises_inside_an_accepted_run_leaves_what_was_said() -> None:
    class Failing(fake.FakeSampler):
        n = 0

        def sample(self, logits: npt.NDArray[np.float32]) -> int:
            self.n += 1
            if self.n == 4:
                raise LlamaliteError("no token may follow")
            return super().sample(logits)

    def make(_params: SamplingParams, prompt: Sequence[int], _costs: Costs) -> Scripted:
        return Scripted(prompt, 7)

    context = fake.FakeContext()
    engine = Engine(context, fake.FakeVocabulary(), Failing, make_speculator=make)
    with pytest.raises(LlamaliteError, match="no token may follow"):
        run(engine)
    assert context.sequences[0] == engine.cache.most_recent().tokens == [*PROMPT, *fake.story(PROMPT, 3)]


def test_the_next_prompt_is_not_read_twice_after_drafts() -> None:
    context = fake.FakeContext()
    engine = make_engine(context, 5, 4)
    completed = run(engine)
    completion = Completion.of(engine.stream([*PROMPT, *completed.tokens, 9, 9], SamplingParams(max_tokens=1)))
    assert completion.totals.n_cached == len(PROMPT) + len(completed.tokens) - 1


def test_a_state_that_cannot_rewind_never_gets_drafts() -> None:
    context = fake.FakeContext(can_forget=False)
    assert run(make_engine(context, can_rewind=False)).totals.n_drafted == 0
    # A model that should be able to rewind, but cannot: the answer is read again, and nothing is drafted from then on.
    context = fake.FakeContext(can_forget=False)
    completion = run(make_engine(context, 3, 2))
    assert list(completion.tokens) == fake.story(PROMPT, 9)
    assert completion.totals.n_drafted == 3
    assert sum(token == PROMPT[0] for call in context.calls for _, token in call) == 2


# ── the distribution ────────────────────────────────────────────────────────────────────────────────────────────────


class Chain:
    """A decoder over four tokens whose next distribution depends on the last two; an answer is three tokens."""

    N = 4

    @staticmethod
    def p(tokens: Sequence[int]) -> npt.NDArray[np.float64]:
        row = np.random.default_rng([7, *tokens[-2:]]).dirichlet(np.ones(Chain.N))
        return np.asarray(row, np.float64)


class Always:
    """Drafts the same token for every position."""

    def __init__(self, token: int) -> None:
        self.token = token

    def draft(self, _said: Sequence[int], room: int) -> list[int]:
        return [self.token] * room


@pytest.mark.parametrize("drafted", range(Chain.N))
def test_drafts_do_not_change_the_distribution(drafted: int) -> None:
    """Exact: all outcomes of all draws are gone through, each with its probability.

    A draw is a uniform number, cut into as many equal parts as exactly separate the outcomes: instead of drawing, every
    token is taken in turn, and the probabilities multiply along the path that the engine really takes.
    """
    weights_of: collections.Counter[tuple[int, ...]] = collections.Counter()

    def sequences(path: tuple[int, ...]) -> None:
        """Force the draws of `path`; what follows is explored from where the forced ones end."""
        weights: list[float] = []

        class Forced(fake.FakeSampler):
            def sample(self, logits: npt.NDArray[np.float32]) -> int:
                i = len(weights)
                token = path[i] if i < len(path) else 0
                weights.append(math.exp(float(logits[token])))
                return token

        context = fake.FakeContext()
        context.row = lambda held: np.log(Chain.p(held)).astype(np.float32)  # type: ignore[method-assign]
        engine = Engine(context, Never(), Forced, make_speculator=lambda *_: Always(drafted))
        tokens = Completion.of(engine.stream([1, 2], SamplingParams(max_tokens=3))).tokens
        assert len(weights) == 3  # one draw a token that was kept: none for what was thrown away
        weights_of[tokens] += math.prod(weights)  # type: ignore[assignment]

    class Never(fake.FakeVocabulary):
        def is_eog(self, token: int) -> bool:
            return False

    for path in itertools.product(range(Chain.N), repeat=3):
        sequences(path)
    assert len(weights_of) == Chain.N**3
    for tokens, weight in weights_of.items():
        expected, held = 1.0, [1, 2]
        for token in tokens:
            expected *= float(Chain.p(held)[token])
            held.append(token)
        assert weight == pytest.approx(expected, rel=1e-5)


# ── Lookup ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def lookup(tokens: Sequence[int], n: int = 4) -> list[tuple[int, int]]:
    lookup = Lookup()
    for token in tokens:
        lookup.push(token)
    return list(itertools.islice(lookup.proposals(), n))


def test_what_followed_the_longest_and_latest_match_is_proposed() -> None:
    assert [token for token, _ in lookup([1, 2, 3, 4, 5, 9, 1, 2, 3])] == [4, 5, 9, 1]
    assert [token for token, _ in lookup([1, 2, 7, 9, 1, 2, 8, 9, 1, 2], 1)] == [8]  # the latest of two
    assert [token for token, _ in lookup([0, 1, 2, 3, 7, 9, 2, 3, 8, 9, 0, 1, 2, 3], 1)] == [7]  # the longest
    assert lookup([1, 2, 3]) == []


def test_a_repetition_is_proposed_to_go_on() -> None:
    assert [token for token, _ in lookup([1, 2, 1, 2, 1, 2], 6)] == [1, 2, 1, 2, 1, 2]


def test_longer_matches_have_higher_grades() -> None:
    text = list(range(30, 60))
    grades = [lookup([*text, 1, *text[:n]], 1)[0][1] for n in (2, 4, 8, 16, 29)]
    assert grades == [2, 3, 4, 5, 5]


def test_a_word_that_was_replaced_does_not_end_the_copy() -> None:
    assert lookup([1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 99], 2) == [(5, 0), (6, 1)]


@given(st.lists(st.integers(0, 3), max_size=60))
def test_every_proposal_follows_a_real_match(tokens: list[int]) -> None:
    lookup = Lookup()
    for token in tokens:
        lookup.push(token)
    proposals = list(itertools.islice(lookup.proposals(), 5))
    assert len(proposals) in (0, 5)
    if proposals and proposals[0][1] >= 2:
        n = 2 ** (proposals[0][1] - 1)  # tokens that match at the least, at some earlier place
        tail = tokens[-n:]
        places = [i for i in range(n, len(tokens)) if tokens[i - n : i] == tail]
        assert proposals[0][0] in [tokens[i] for i in places]


# ── when it pays ────────────────────────────────────────────────────────────────────────────────────────────────────


class Machine:
    """Says `story`, and takes seconds that are made up: `one` for a token, `more` for each further one in a decode."""

    def __init__(self, single_s: float = 0.1, more_s: float = 0.01) -> None:
        self.single_s, self.more_s = single_s, more_s

    def seconds(self, prompt: list[int], story: list[int], proposer: Oracle | None = None) -> tuple[float, int]:
        """Return the time that `story` takes after `prompt`, and the decodes."""
        costs = Costs()
        speculator = Speculator(proposer or Lookup(), prompt, costs)
        answer_tokens, spent, decodes = story[:1], 0.0, 0
        while len(answer_tokens) < len(story):
            before = proposer.now if proposer else 0.0
            drafted = speculator.draft(answer_tokens, len(story) - len(answer_tokens) - 1)
            spent += proposer.now - before if proposer else 0.0
            took = self.single_s + self.more_s * len(drafted)
            costs.add(1 + len(drafted), took)
            spent, decodes = spent + took, decodes + 1
            right = 0
            while right < len(drafted) and drafted[right] == story[len(answer_tokens) + right]:
                right += 1
            answer_tokens = story[: len(answer_tokens) + right + 1]
        return spent, decodes


class Oracle:
    """A draft model that knows the story, is right with the probability `share`, and takes `step_s` for a guess."""

    priors = DraftModel.priors
    n_before = DraftModel.n_before

    def __init__(self, story: list[int], share: float, step_s: float) -> None:
        self.story, self.share, self.step_s = story, share, step_s
        self.now, self.n, self.rng = 0.0, 0, np.random.default_rng(0)

    def push(self, token: int) -> None:
        self.n += 1

    def proposals(self) -> Iterator[tuple[int, int]]:
        for token in self.story[self.n :]:
            self.now += self.step_s
            yield token if self.rng.random() < self.share else -1, int(10 * self.share)


@pytest.mark.parametrize(
    ("share", "most"), [(0.9, 1 / 1.5), (0.7, 1 / 1.1), (0.4, 1 / 0.95), (0.1, 1 / 0.95), (0, 1 / 0.95)]
)
@pytest.mark.parametrize("more", [0.005, 0.02])
def test_a_draft_model_pays_or_is_left_alone(
    share: float, most: float, more: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        story = texts(seed)
        oracle = Oracle(story, share, 0.01)
        monkeypatch.setattr("llamalite.generation.speculation.time.perf_counter", lambda oracle=oracle: oracle.now)
        assert Machine(more_s=more).seconds([], story, oracle)[0] < 0.1 * len(story) * most


def test_a_draft_model_as_slow_as_the_model_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    story = texts(0)
    oracle = Oracle(story, 0.9, 0.1)
    monkeypatch.setattr("llamalite.generation.speculation.time.perf_counter", lambda: oracle.now)
    assert Machine(more_s=0.02).seconds([], story, oracle)[0] < 0.1 * len(story) / 0.95


def texts(seed: int, n: int = 400, vocabulary: int = 200) -> list[int]:
    """Words as a language has them: few are frequent, most are rare."""
    rng = np.random.default_rng(seed)
    return [int(i) for i in np.minimum(rng.zipf(1.3, n), vocabulary)]


def test_a_copy_is_several_times_as_fast_where_decodes_of_many_tokens_are_cheap() -> None:
    text = texts(0)
    spent, decodes = Machine(more_s=0.01).seconds([*text, 300], text)
    assert spent < 0.25 * 0.1 * len(text)
    assert decodes < len(text) / 8


def test_an_edited_copy_is_faster_too() -> None:
    text = texts(1)
    edited = list(text)
    edited[20::25] = [500 + i for i in range(len(edited[20::25]))]
    assert Machine(more_s=0.03).seconds([*text, 300], edited)[0] < 0.1 * len(text) / 1.5


@pytest.mark.parametrize("more", [0.01, 0.03, 0.1, 0.2])
def test_an_answer_that_repeats_nothing_costs_nothing(more: float) -> None:
    for seed in range(5):
        spent, _ = Machine(more_s=more).seconds(texts(seed), texts(100 + seed))
        assert spent < 0.1 * 400 / 0.95


@pytest.mark.parametrize("more", [0.1, 0.2])
def test_a_machine_that_gains_nothing_is_left_alone_even_by_a_copy(more: float) -> None:
    text = texts(3)
    assert Machine(more_s=more).seconds([*text, 300], text)[0] < 0.1 * len(text) / 0.95


def test_costs_are_the_least_seen_lately_and_are_forgotten() -> None:
    costs = Costs()
    assert costs.of(1) is None
    for seconds in (0.5, 1.0, 9.0, 1.5, 2.0, 1.0):
        costs.add(1, seconds)
    assert costs.of(1) == 1.0
    assert costs.of(4) == pytest.approx(1 + 3 * 0.35)
    costs.add_prompt(64, 12.8)
    assert costs.of(4) == pytest.approx(1 + 3 * 0.2)
    costs.add(4, 5.0)
    assert costs.of(4) == 5.0
    assert costs.of(8) == pytest.approx(1 + 7 * 0.2)  # the least that was seen for one more token
    for _ in range(300):
        costs.add(1, 1.0)
    assert costs.of(4) == pytest.approx(1 + 3 * 0.2)


# ── a draft model ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_draft_model_proposes_its_own_story_and_takes_back_what_was_wrong() -> None:
    reader = DraftReader(fake.FakeContext())
    for end in (4, 2):  # two answers, one after the other
        draft = DraftModel(reader)
        for token in PROMPT:
            draft.push(token)
        assert [token for token, _ in itertools.islice(draft.proposals(), end)] == fake.story(PROMPT, end)
        draft.push(9)
        assert [token for token, _ in itertools.islice(draft.proposals(), 3)] == fake.story([*PROMPT, 9], 3)


def test_a_draft_models_grade_is_its_probability() -> None:
    context = fake.FakeContext()
    context.row = lambda held: np.log(np.array([0.1, 0.65, 0.25])).astype(np.float32)  # type: ignore[method-assign]
    draft = DraftModel(DraftReader(context))
    draft.push(1)
    assert next(draft.proposals()) == (1, 6)


def test_a_draft_model_stops_where_its_context_is_full() -> None:
    draft = DraftModel(DraftReader(fake.FakeContext(n_ctx=6)))
    for token in PROMPT:
        draft.push(token)
    assert len(list(draft.proposals())) == 3  # after 4, 5 and 6 tokens
    for token in PROMPT:
        draft.push(token)
    assert list(draft.proposals()) == []


# ── real models ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("models") / "toy.gguf")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft every proposal: a toy's decodes are too short to measure what pays."""
    monkeypatch.setattr(Speculator, "_best_size", lambda self, chances, single_s: 1 + len(chances))
    monkeypatch.setattr("llamalite.generation.speculation._MIN_CHANCE", 0.0)
    monkeypatch.setattr(Speculator, "_settle", lambda self, n_new, n_right: setattr(self, "_max_drafted", 15))


@pytest.fixture(params=["lookup", "draft"])
def model(request: pytest.FixtureRequest, path: Path, eager: None) -> Iterator[Model]:
    """The toy with a draft model that agrees with it (itself), or with lookup as its default."""
    with Model(path, n_threads=1, n_ctx=512, exact=True, draft=path if request.param == "draft" else None) as loaded:
        loaded.defaults = loaded.defaults.replace(speculate=request.param, logit_bias=ENDS)
        yield loaded


SAMPLINGS = [
    {"temperature": 0},
    {"temperature": 0, "repeat_penalty": 1.5, "frequency_penalty": 0.3},
    {"temperature": 0.6, "top_k": 5, "seed": 3},
    {"temperature": 1.2, "top_p": 0.5, "presence_penalty": 0.2, "seed": 4},
    {"temperature": 0.7, "seed": 5, "grammar": 'root ::= ("once" | "upon" | "time" | " ")*'},
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_same_tokens_with_and_without_drafts(model: Model, sampling: dict[str, object]) -> None:
    """In exact mode an F32 model's rows differ by rounding only, and these seeds meet no tie."""
    prompt = model.tokenize("once upon a time there was a story " * 3)
    plain = model.generate(prompt, max_tokens=60, logprobs=2, speculate="off", **sampling)  # type: ignore[arg-type]
    model.clear()
    completion = model.generate(prompt, max_tokens=60, logprobs=2, **sampling)  # type: ignore[arg-type]
    assert completion.tokens == plain.tokens
    assert (completion.text, completion.finish_reason) == (plain.text, plain.finish_reason)
    assert completion.totals.n_drafted > 0
    assert plain.totals.n_drafted == 0
    assert completion.logprobs == pytest.approx(plain.logprobs, abs=1e-3)
    assert completion.top_logprobs is not None
    assert all(len(top) == 2 for top in completion.top_logprobs)


def test_some_drafts_are_accepted_and_some_are_not(model: Model) -> None:
    totals = model.generate("once upon a time once upon a time", max_tokens=80, temperature=0.8, seed=1).totals
    assert 0 < totals.n_accepted < totals.n_drafted


def test_sessions_and_prefixes_are_right_after_drafts(model: Model, tmp_path: Path) -> None:
    prompt = model.tokenize("once upon a time there was")
    completed = model.generate(prompt, max_tokens=40, temperature=0)
    assert model.n_held == len(prompt) + 39
    model.save_session(tmp_path / "a.session")
    going_on = [*prompt, *completed.tokens, *model.tokenize(" story", add_special=False)]
    want = model.generate(going_on, max_tokens=12, temperature=0, speculate="off")
    assert want.totals.n_cached == len(prompt) + 39
    model.clear()
    assert model.generate(going_on, max_tokens=12, temperature=0, speculate="off").tokens == want.tokens
    model.load_session(tmp_path / "a.session")
    completion = model.generate(going_on, max_tokens=12, temperature=0)
    assert completion.tokens == want.tokens
    assert completion.totals.n_cached == len(prompt) + 39


def test_a_batch_goes_without_drafts(model: Model) -> None:
    completions = model.generate_batch(["once upon a time"] * 3, max_tokens=9, temperature=0)
    assert [completion.totals.n_drafted for completion in completions] == [0, 0, 0]


def test_reproducible_goes_without_drafts(model: Model) -> None:
    assert model.generate("once upon a time", max_tokens=20, reproducible=True).totals.n_drafted == 0


def test_a_model_drafts_only_when_it_is_asked_to(path: Path, eager: None) -> None:
    with Model(path, n_threads=1) as plain:
        asked = {"max_tokens": 40, "temperature": 0, "logit_bias": ENDS}
        assert plain.generate("once upon a time " * 4, **asked).totals.n_drafted == 0  # type: ignore[arg-type]
        assert plain.generate("once upon a time " * 4, speculate="lookup", **asked).totals.n_drafted > 0  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="needs a draft model: load the model with draft=FILE"):
            plain.generate("once", speculate="draft")
        with pytest.raises(ValueError, match="speculate must be 'off', 'lookup', 'draft' or None, found 'fast'"):
            plain.generate("once", speculate="fast")  # type: ignore[arg-type]
    with Model(path, n_threads=1, draft=path) as drafting:
        assert drafting.generate("once upon", **asked).totals.n_drafted > 0  # type: ignore[arg-type]
        assert drafting.generate("once upon", speculate="off", **asked).totals.n_drafted == 0  # type: ignore[arg-type]


def test_a_draft_model_needs_the_same_vocabulary_token_by_token(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(raw.replace("▁story".encode(), "▁stary".encode()))
    with pytest.raises(VocabularyError, match=r"other.gguf cannot draft for toy.gguf: its token \d+ is '▁stary'"):
        Model(path, draft=other)


def test_cancelling_ends_what_a_draft_model_reads(path: Path, eager: None) -> None:
    with Model(path, n_threads=1, n_ctx=512, draft=path) as model:
        stream = model.stream("once upon a time", max_tokens=400, logit_bias=ENDS)
        for _ in range(5):
            next(stream)
        stream.cancel()
        assert list(stream)[-1].finish_reason == "cancelled"
        completion = model.generate("once upon a time", max_tokens=20, temperature=0, logit_bias=ENDS)
        model.clear()
        again = model.generate("once upon a time", max_tokens=20, temperature=0, logit_bias=ENDS, speculate="off")
        assert completion.tokens == again.tokens


def test_recurrent_models_are_refused(tmp_path: Path) -> None:
    import test_recurrent

    mamba = test_recurrent.write_mamba(tmp_path / "mamba.gguf")
    with Model(mamba, n_threads=1) as model:
        with pytest.raises(ValueError, match="mamba.gguf is recurrent, and cannot undo what it has read"):
            model.generate("once", speculate="lookup")
        assert model.generate("once", max_tokens=2).finish_reason in ("length", "stop")
    with pytest.raises(LlamaliteError, match="cannot undo what it has read"):
        Model(mamba, draft=mamba)


# ── the command line ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_line_takes_lookup_or_a_draft_model(llamalite_command: Run, path: Path, tmp_path: Path) -> None:
    asked = ("run", path, "once upon a time " * 6, "-n", "40", "--temp", "0", "--threads", "1", "--exact", "--json")
    plain = json.loads(llamalite_command(*asked).stdout)
    assert (plain["n_drafted"], plain["n_accepted"]) == (0, 0)
    for option in (["--lookup"], ["--draft", path]):
        ran = llamalite_command(*asked, *option)
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["text"] == plain["text"]
    other = tmp_path / "other.gguf"
    other.write_bytes(path.read_bytes().replace("▁story".encode(), "▁stary".encode()))
    ran = llamalite_command(*asked, "--draft", other)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
    assert "a draft model needs the same vocabulary" in ran.stderr
    ran = llamalite_command(*asked, "--lookup", "--draft", path)
    assert ran.returncode == 2
    assert "give --lookup or --draft, not both" in ran.stderr
