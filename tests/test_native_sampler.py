"""llama.cpp's samplers, as the parameters ask for them; input that would abort the process is an error."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import toy

from llamalite.errors import LlamaliteError
from llamalite.native.model import NativeModel
from llamalite.native.sampler import NativeSampler
from llamalite.sampling import SamplingParams

Row = npt.NDArray[np.float32]
NAMES = [piece for piece, _, _ in toy.vocabulary()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    return NativeModel(toy.write_toy(tmp_path_factory.mktemp("sampler") / "toy.gguf"))


@pytest.fixture
def logits(model: NativeModel) -> Row:
    return np.random.default_rng(1).standard_normal(model.n_vocab).astype(np.float32)


def draws(model: NativeModel, logits: Row, n: int = 400, **options: Any) -> Counter[int]:
    sampler = NativeSampler(model, SamplingParams(**options))
    return Counter(sampler.sample(logits) for _ in range(n))


def test_temperature_0_takes_the_likeliest_and_leaves_the_logits_alone(model: NativeModel, logits: Row) -> None:
    before = logits.copy()
    assert set(draws(model, logits, 3, temperature=0, logit_bias={5: 1.0})) == {int(logits.argmax())}
    np.testing.assert_array_equal(logits, before)


def test_top_k_1_is_greedy_whatever_the_temperature(model: NativeModel, logits: Row) -> None:
    assert set(draws(model, logits, 5, top_k=1, temperature=5.0)) == {int(logits.argmax())}


def test_draws_follow_the_distribution(model: NativeModel) -> None:
    logits = np.full(model.n_vocab, -np.inf, np.float32)
    logits[[10, 20, 30]] = np.log([0.5, 0.3, 0.2])
    found = draws(model, logits, 3000, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
    assert set(found) == {10, 20, 30}
    for token, share in ((10, 0.5), (20, 0.3), (30, 0.2)):
        assert found[token] / 3000 == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"top_k": 2}, {10, 20}),
        ({"top_p": 0.6}, {10, 20}),
        ({"min_p": 0.5}, {10, 20}),
        ({"logit_bias": {10: -float("inf")}}, {20, 30}),
    ],
)
def test_candidates_are_those_that_the_parameters_leave(
    model: NativeModel, options: dict[str, Any], left: set[int]
) -> None:
    logits = np.full(model.n_vocab, -np.inf, np.float32)
    logits[[10, 20, 30]] = np.log([0.5, 0.3, 0.2])
    base: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    assert set(draws(model, logits, **(base | options))) == left


def test_a_seed_repeats_its_draws(model: NativeModel, logits: Row) -> None:
    params = SamplingParams(seed=5, temperature=2.0)
    first, second = NativeSampler(model, params), NativeSampler(model, params)
    assert [first.sample(logits) for _ in range(20)] == [second.sample(logits) for _ in range(20)]
    assert NativeSampler(model, SamplingParams()).seed != NativeSampler(model, SamplingParams()).seed
    assert NativeSampler(model, SamplingParams(reproducible=True)).seed == 0


def test_penalties_count_the_prompt_and_what_was_said(model: NativeModel) -> None:
    logits = np.zeros(model.n_vocab, np.float32)
    logits[[10, 20]] = 5.0, 4.5
    assert NativeSampler(model, SamplingParams(temperature=0, repeat_penalty=2.0)).sample(logits) == 10
    prompted = NativeSampler(model, SamplingParams(temperature=0, repeat_penalty=2.0), prompt=[10])
    assert [prompted.sample(logits) for _ in range(2)] == [20, 10]  # then both are punished alike
    present = NativeSampler(model, SamplingParams(temperature=0, presence_penalty=1.0))
    assert [present.sample(logits) for _ in range(2)] == [10, 20]


def test_a_grammar_is_kept_and_then_ends(model: NativeModel, logits: Row) -> None:
    sampler = NativeSampler(model, SamplingParams(grammar='root ::= "ye" ("s" | "p")', temperature=0))
    said = [sampler.sample(logits) for _ in range(4)]
    text = b"".join(model.token_to_piece(token) for token in said)
    assert text in (b"yes", b"yep")
    assert model.is_eog(said[-1])


def test_a_token_that_the_grammar_forbids_is_never_taken(model: NativeModel) -> None:
    logits = np.zeros(model.n_vocab, np.float32)
    logits[NAMES.index("a")] = 50.0
    for seed in range(5):
        sampler = NativeSampler(model, SamplingParams(grammar="root ::= [bc]", seed=seed))
        assert model.token_to_piece(sampler.sample(logits)) in (b"b", b"c")


def test_a_grammar_and_a_bias_that_leave_nothing_are_an_error(model: NativeModel, logits: Row) -> None:
    everything = dict.fromkeys(range(model.n_vocab), -float("inf"))
    with pytest.raises(LlamaliteError, match="no token may follow: the grammar and logit_bias together forbid"):
        NativeSampler(model, SamplingParams(grammar='root ::= "a"', logit_bias=everything)).sample(logits)
    with pytest.raises(LlamaliteError, match="no token may follow"):
        NativeSampler(model, SamplingParams(temperature=0, logit_bias=everything)).sample(logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_nan_are_an_error(model: NativeModel, temperature: float) -> None:
    with pytest.raises(LlamaliteError, match="not numbers"):
        NativeSampler(model, SamplingParams(temperature=temperature)).sample(np.full(model.n_vocab, np.nan, np.float32))


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('foo ::= "a"', "grammar does not contain a 'root' symbol"),
        ("root ::= root", "left recursion"),
        ('root ::= "a', "cannot parse the grammar: unexpected end of input"),
        ("root ::= nowhere", "cannot parse the grammar: Undefined rule identifier 'nowhere'"),
        ('root = "a"', "cannot parse the grammar: expecting ::= at"),
        ("root ::= " + "(" * 500 + '"a"' + ")" * 500, "nests brackets 500 deep, and 200 is the limit"),
        (
            "root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1}" for i in range(5000)) + '\na5000 ::= "x"',
            "4000 is the limit",
        ),
        ('root ::= "\0"', "NUL"),
        ('root ::= "a"{5,2}', r"line 1 of the grammar, \{5,2\}: the maximum, 2, is below the minimum, 5"),
        (
            'root ::= "{1}" # "\n  [\\]"] { 7 # }\n , 3 }',
            "line 2 of the grammar, .*the maximum, 3, is below the minimum, 7",
        ),
        ('root ::= "a"{0,2001}', "allows at most 2000 repetitions"),
        ('root ::= "a"{' + "9" * 5000 + "}", "allows at most 2000 repetitions"),
        ('root ::= "' + "a" * 1000 + '"{2000}', "expand to 2004000 characters"),
    ],
)
def test_a_grammar_that_llama_cpp_cannot_take_is_refused(
    model: NativeModel, grammar: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        NativeSampler(model, SamplingParams(grammar=grammar))
    assert capfd.readouterr().err == ""


def test_repetitions_that_llama_cpp_can_hold_pass(model: NativeModel) -> None:
    for times in ("{3}", "{0}", "{2,}", "{ 0 , 2000 }", "{2,2}", "{002}{2}"):
        NativeSampler(model, SamplingParams(grammar=f'root ::= "{{5,2}}" [{{5,2}}] "a"{times} # {{5,2}}')).close()


def test_a_bias_outside_the_vocabulary_is_refused(model: NativeModel) -> None:
    with pytest.raises(ValueError, match=f"names token 9999, and the vocabulary has {model.n_vocab}"):
        NativeSampler(model, SamplingParams(logit_bias={9999: 1.0}))
