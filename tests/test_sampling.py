"""Parameters are checked, and the message names the field, its range and what was found."""

from __future__ import annotations

import dataclasses
import math

import pytest

from llamalite.sampling import SamplingParams


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature must lie in 0\.\.100, found -0.1"),
        ({"temperature": "hot"}, "temperature must lie in .* found 'hot'"),
        ({"temperature": math.nan}, "temperature must lie in"),
        ({"top_p": 1.5}, r"top_p must lie in 0\.\.1, found 1.5"),
        ({"min_p": -1}, r"min_p must lie in 0\.\.1, found -1"),
        ({"top_k": -1}, r"top_k must be a whole number in 0\.\."),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_k": True}, "top_k must be a whole number"),
        ({"max_tokens": -1}, "max_tokens must be a whole number in 0"),
        ({"seed": 2**32 - 1}, "seed must be a whole number in 0..4294967294"),
        ({"seed": -1}, "seed must be"),
        ({"repeat_penalty": 0}, "repeat_penalty must lie in 0.01"),
        ({"repeat_last_n": -1}, "repeat_last_n must be"),
        ({"presence_penalty": math.inf}, "presence_penalty must lie in"),
        ({"frequency_penalty": 101}, "frequency_penalty must lie in"),
        ({"logprobs": 1001}, "logprobs must be a whole number in 0..1000"),
        ({"logit_bias": {"1": 2.0}}, "found the key '1'"),
        ({"logit_bias": {-1: 2.0}}, "found the key -1"),
        ({"logit_bias": {1: math.inf}}, "logit_bias of token 1 must be a number or -inf"),
        ({"logit_bias": {1: math.nan}}, "logit_bias of token 1"),
        ({"stop": ["a", ""]}, "stop must hold strings that are not empty"),
        ({"stop": [-1]}, r"stop must hold strings that are not empty, and token ids, found \[-1\]"),
        ({"stop": [True]}, "stop must hold strings"),
        ({"stop": 5.0}, "stop must hold strings"),
        ({"stop": {"a": 1}}, "stop must hold strings"),
        ({"grammar": 5}, "grammar must be a string .GBNF., found 5"),
        ({"logit_bias": [1]}, r"logit_bias maps token ids to numbers, found \[1\]"),
        ({"logit_bias": None}, "logit_bias maps token ids to numbers, found None"),
        ({"logit_bias": {1: 10**400}}, "logit_bias of token 1 must be a number or -inf"),
        ({"grammar": " "}, "grammar is empty"),
        ({"grammar": "root ::= x", "json_schema": {}}, "grammar and json_schema exclude each other"),
        ({"json_schema": {}, "stop": "x"}, "stop and json_schema exclude each other"),
        ({"json_schema": {}, "stop": 0}, "stop and json_schema exclude each other"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**options)  # type: ignore[arg-type]


def test_the_edges_are_allowed() -> None:
    SamplingParams(temperature=0, top_k=0, top_p=1, min_p=0, max_tokens=0, logprobs=0, seed=2**32 - 2)
    SamplingParams(logit_bias={5: -math.inf}, stop="one", repeat_last_n=0)


def test_one_stop_text_is_a_list_of_one() -> None:
    assert SamplingParams(stop="end").stops == ("end",)
    assert SamplingParams(stop=["a", "b"]).stops == ("a", "b")


def test_stops_may_be_strings_and_token_ids() -> None:
    params = SamplingParams(stop=["a", 7, "b", 0])
    assert (params.stops, sorted(params.stop_tokens)) == (("a", "b"), [0, 7])
    assert SamplingParams(stop=7).stop == (7,)


def test_parameters_do_not_change() -> None:
    params = SamplingParams()
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0  # type: ignore[misc]
    assert params.replace(temperature=1.0).temperature == 1.0
    assert params.temperature == 0.8


def test_a_field_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(TypeError, match="unknown parameter 'temp'; known are max_tokens, temperature, top_k"):
        SamplingParams().replace(temp=1.0)


def test_greedy_is_temperature_0_or_one_candidate() -> None:
    assert SamplingParams(temperature=0).is_greedy
    assert SamplingParams(top_k=1).is_greedy
    assert not SamplingParams().is_greedy


def test_penalties_are_on_when_something_is_counted_and_penalized() -> None:
    assert not SamplingParams().has_penalties
    assert SamplingParams(repeat_penalty=1.1).has_penalties
    assert not SamplingParams(repeat_penalty=1.1, repeat_last_n=0).has_penalties


def test_a_file_brings_its_own_defaults_and_cannot_break_them() -> None:
    params = SamplingParams.from_metadata(
        {
            "general.sampling.temp": "0.600000",
            "general.sampling.top_k": "20",
            "general.sampling.min_p": "nan",
            "general.sampling.top_p": "many",
            "general.sampling.penalty_repeat": "1.05",
            "general.name": "x",
        }
    )
    assert (params.temperature, params.top_k, params.repeat_penalty) == (0.6, 20, 1.05)
    assert (params.min_p, params.top_p) == (0.05, 0.95)
