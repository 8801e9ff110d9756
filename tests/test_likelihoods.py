"""likelihoods: requests that share a decode and a context are scored as if each were alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import toy

from llamalite.evaluation.likelihoods import LikelihoodScorer, Request
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeModel]:
    with NativeModel(toy.write_toy(tmp_path_factory.mktemp("likelihoods") / "toy.gguf")) as loaded:
        yield loaded


def alone(model: NativeModel, context: tuple[int, ...], continuation: tuple[int, ...]) -> tuple[float, bool]:
    tokens = np.array(context + continuation)
    with NativeContext(model, ContextOptions(n_ctx=256, n_threads=1, exact=True)) as native:
        native.decode(tokens[:-1], np.arange(len(tokens) - 1), 0, True)
        rows = native.logits().astype(np.float64)[len(context) - 1 :]
    total, greedy = 0.0, True
    for row, token in zip(rows, continuation, strict=True):
        total += row[token] - row.max() - math.log(np.exp(row - row.max()).sum())
        greedy = greedy and int(row.argmax()) == token
    return total, greedy


def requests(seed: int, n_contexts: int = 6) -> list[Request]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n_contexts):
        context = (1, *rng.integers(3, 300, rng.integers(1, 40)).tolist())
        lengths = rng.integers(1, 8, int(rng.integers(1, 6))).tolist()
        made += [Request(context, tuple(rng.integers(3, 300, length).tolist())) for length in lengths]
    rng.shuffle(made)
    return made


@pytest.mark.parametrize(("n_batch", "n_seq_max"), [(512, 32), (64, 3), (48, 1)])
def test_together_equals_alone(model: NativeModel, n_batch: int, n_seq_max: int) -> None:
    asked = requests(7)
    with LikelihoodScorer(
        model, max_length=48, n_batch=n_batch, n_seq_max=n_seq_max, n_threads=1, exact=True
    ) as scorer:
        found = scorer.score(asked)
    for request, one in zip(asked, found, strict=True):
        expected, greedy = alone(model, request.context, request.continuation)
        assert one.log_likelihood == pytest.approx(expected, abs=1e-4)
        assert one.is_greedy == greedy


def test_a_greedy_continuation_is_seen(model: NativeModel) -> None:
    tokens = [1, 50, 60]
    with NativeContext(model, ContextOptions(n_ctx=256, n_threads=1, exact=True)) as native:
        for _ in range(4):
            native.clear()
            native.decode(tokens, np.arange(len(tokens)), 0, True)
            tokens.append(int(native.logits()[-1].argmax()))
    other = (*tokens[3:6], (tokens[6] + 1) % 300)
    with LikelihoodScorer(model, n_threads=1, exact=True) as scorer:
        found = scorer.score([Request((1, 50, 60), tuple(tokens[3:])), Request((1, 50, 60), other)])
    assert [one.is_greedy for one in found] == [True, False]


def test_a_long_context_loses_its_beginning(model: NativeModel) -> None:
    context = tuple(range(10, 60))
    with LikelihoodScorer(model, max_length=20, n_threads=1, exact=True) as scorer:
        found = scorer.score([Request(context, (5, 6, 7))])[0]
    assert found.log_likelihood == pytest.approx(alone(model, context[-18:], (5, 6, 7))[0], abs=1e-4)


def test_shared_contexts_are_read_once(model: NativeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = NativeContext._decode

    def noting(self: NativeContext, n: int) -> None:
        read.append(n)
        real(self, n)

    monkeypatch.setattr(NativeContext, "_decode", noting)
    choices = [Request(tuple(range(3, 103)), (choice, 8)) for choice in range(200, 204)]
    with LikelihoodScorer(model, n_threads=1) as scorer:
        scorer.score(choices)
    assert read == [100, 4]


def test_empty_requests_are_refused(model: NativeModel) -> None:
    with LikelihoodScorer(model, max_length=8, n_threads=1) as scorer:
        for request in (Request((), (1,)), Request((1,), ())):
            with pytest.raises(ValueError, match="at least one token each"):
                scorer.score([request])
        with pytest.raises(ValueError, match="longer than 8"):
            scorer.score([Request((1,), (3,) * 9)])
        assert scorer.score([]) == []
