"""divergence: every statistic against a hand-computed case and against a slow twin in float64."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from llamalite.evaluation.divergence import PERCENTILES, TokenDivergence, diverge, summarize
from llamalite.evaluation.scoring import Float32s


def tokens_of(reference: Float32s, candidate: Float32s, targets: list[int]) -> TokenDivergence:
    divergence = TokenDivergence(len(targets))
    diverge(reference, [candidate], np.array(targets), [divergence], 0)
    return divergence


def test_one_token_by_hand() -> None:
    reference = np.log(np.array([[0.5, 0.25, 0.25]], dtype=np.float32)) + np.float32(7)
    candidate = np.log(np.array([[0.25, 0.5, 0.25]], dtype=np.float32)) - np.float32(3)
    divergence = tokens_of(reference, candidate, [0])
    assert divergence.kld[0] == pytest.approx(0.25 * math.log(2), rel=1e-6)  # 0.5·ln 2 − 0.25·ln 2
    assert divergence.delta_p[0] == pytest.approx(-0.25, rel=1e-6)
    assert divergence.nll_base[0] == pytest.approx(math.log(2), rel=1e-6)
    assert divergence.nll[0] == pytest.approx(math.log(4), rel=1e-6)
    assert not divergence.same_top[0]


def test_a_model_does_not_diverge_from_itself() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (50, 1000)).astype(np.float32)
    divergence = tokens_of(logits, logits.copy(), [3] * 50)
    assert divergence.kld.max() < 1e-14
    assert divergence.same_top.all()
    assert not divergence.delta_p.any()


def log_sum(values: list[float]) -> float:
    top = max(values)
    return math.log(math.fsum(math.exp(value - top) for value in values)) + top


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 1.0, 30.0])
def test_every_token_equals_a_slow_twin(noise: float) -> None:
    rng = np.random.default_rng(5)
    reference = rng.normal(0, 4, (300, 700)).astype(np.float32)
    candidate = (reference + rng.normal(0, noise, (300, 700))).astype(np.float32)
    targets = rng.integers(0, 700, 300).tolist()
    divergence = tokens_of(reference, candidate, targets)
    for i, target in enumerate(targets):
        x, y = reference[i].tolist(), candidate[i].tolist()
        log_z, log_w = log_sum(x), log_sum(y)
        kld = math.fsum(math.exp(v - log_z) * ((v - log_z) - (w - log_w)) for v, w in zip(x, y, strict=True))
        assert divergence.kld[i] == pytest.approx(kld, rel=1e-9, abs=1e-14)
        assert divergence.nll_base[i] == pytest.approx(log_z - x[target], rel=1e-12)
        assert divergence.nll[i] == pytest.approx(log_w - y[target], rel=1e-12)
        assert divergence.delta_p[i] == pytest.approx(
            math.exp(y[target] - log_w) - math.exp(x[target] - log_z), abs=1e-14
        )
        assert divergence.same_top[i] == (x.index(max(x)) == y.index(max(y)))


def test_several_candidates_fill_their_places() -> None:
    rng = np.random.default_rng(2)
    rows = [rng.normal(0, 2, (6, 40)).astype(np.float32) for _ in range(3)]
    targets = np.arange(6)
    together = [TokenDivergence(8), TokenDivergence(8)]
    diverge(rows[0], rows[1:], targets, together, 2)
    for candidate, divergence in zip(rows[1:], together, strict=True):
        alone = tokens_of(rows[0], candidate, targets.tolist())
        assert divergence.kld[2:].tolist() == alone.kld.tolist()
        assert np.isnan(divergence.kld[:2]).all()


def by_hand() -> TokenDivergence:
    """Four tokens whose statistics fit on a napkin."""
    tokens = TokenDivergence(4)
    tokens.nll_base[:] = [1, 2, 3, 2]  # mean 2, deviations −1 0 1 0
    tokens.nll[:] = [1, 3, 3, 3]  # mean 2.5
    tokens.kld[:] = [0.0, 0.1, 0.3, 0.2]
    tokens.delta_p[:] = [0.0, -0.2, 0.1, -0.1]
    tokens.same_top[:] = [True, True, True, False]
    return tokens


def test_the_sums_by_hand() -> None:
    summary = summarize(by_hand())
    # The standard error of n values is √(Σ(x − mean)² / (n − 1) / n): here √(… / 12).
    expected = {
        "n_tokens": 4,
        "ppl_base": math.exp(2),
        "ppl_base_err": math.exp(2) * math.sqrt(2 / 12),
        "ppl": math.exp(2.5),
        "ppl_err": math.exp(2.5) * math.sqrt(3 / 12),  # deviations −1.5 0.5 0.5 0.5
        "ppl_diff": math.exp(2.5) - math.exp(2),
        "ln_ppl_ratio": 0.5,  # differences 0 1 0 1
        "ln_ppl_ratio_err": math.sqrt(1 / 12),
        "ppl_ratio": math.exp(0.5),
        "ppl_ratio_err": math.exp(0.5) * math.sqrt(1 / 12),
        "correlation": 2 / math.sqrt(2 * 3),  # Σ of products 1.5 + 0 + 0.5 + 0
        "mean_kld": 0.15,
        "mean_kld_err": math.sqrt(0.05 / 12),  # deviations −0.15 −0.05 0.15 0.05
        "median_kld": 0.15,
        "p90_kld": 0.27,  # 0.2 and 0.3 are the places 2 and 3, and 0.9·3 = 2.7
        "p95_kld": 0.285,
        "p99_kld": 0.297,
        "p999_kld": 0.2997,
        "max_kld": 0.3,
        "same_top_p": 0.75,
        "same_top_p_err": math.sqrt(0.75 * 0.25 / 3),
        "mean_delta_p": -0.05,
        "mean_delta_p_err": math.sqrt(0.05 / 12),
        "rms_delta_p": math.sqrt(0.015),
        "rms_delta_p_err": 0.5 / math.sqrt(0.015) * math.sqrt(9e-4 / 12),  # squares 0 .04 .01 .01, mean .015
    }
    for name, value in expected.items():
        assert getattr(summary, name) == pytest.approx(value, rel=1e-12), name
    assert summary.delta_p_percentiles["min"] == -0.2
    assert summary.delta_p_percentiles["50"] == pytest.approx(-0.05)
    assert summary.delta_p_percentiles["max"] == 0.1


def test_the_sums_equal_llama_cpp_s_formulas() -> None:
    rng = np.random.default_rng(8)
    tokens = TokenDivergence(5000)
    tokens.nll_base[:] = rng.gamma(2, 2, 5000)
    tokens.nll[:] = tokens.nll_base + rng.normal(0.05, 0.3, 5000)
    tokens.kld[:] = rng.gamma(0.5, 0.1, 5000)
    tokens.delta_p[:] = rng.normal(0, 0.03, 5000)
    tokens.same_top[:] = rng.random(5000) < 0.9
    summary = summarize(tokens)
    n, q, base = 5000, tokens.nll.tolist(), tokens.nll_base.tolist()

    def mean_and_uncertainty(values: list[float]) -> tuple[float, float]:
        mean = math.fsum(values) / n
        return mean, math.sqrt((math.fsum(v * v for v in values) / n - mean * mean) / (n - 1))

    (mean_q, err_q), (mean_base, err_base) = mean_and_uncertainty(q), mean_and_uncertainty(base)
    products = math.fsum(a * b for a, b in zip(q, base, strict=True))
    covariance = (products / n - mean_q * mean_base) / (n - 1)
    assert summary.ppl == pytest.approx(math.exp(mean_q))
    assert summary.correlation == pytest.approx(covariance / (err_q * err_base))
    assert summary.ln_ppl_ratio_err == pytest.approx(math.sqrt(err_q**2 + err_base**2 - 2 * covariance), rel=1e-6)
    ppl, ppl_base = math.exp(mean_q), math.exp(mean_base)
    diff_err = math.sqrt((ppl * err_q) ** 2 + (ppl_base * err_base) ** 2 - 2 * ppl * ppl_base * covariance)
    assert summary.ppl_diff_err == pytest.approx(diff_err, rel=1e-6)
    mse, mse_err = mean_and_uncertainty([d * d for d in tokens.delta_p.tolist()])
    assert summary.rms_delta_p_err == pytest.approx(0.5 / math.sqrt(mse) * mse_err)
    ordered = sorted(tokens.kld.tolist())
    assert summary.median_kld == pytest.approx(statistics.median(ordered))
    place = 0.999 * (n - 1)
    low = int(place)
    assert summary.p999_kld == pytest.approx((1 - (place - low)) * ordered[low] + (place - low) * ordered[low + 1])
    assert list(summary.delta_p_percentiles) == ["min", *(f"{p:g}" for p in PERCENTILES), "max"]


def test_one_token_has_no_errors_and_none_has_no_sums() -> None:
    summary = summarize(by_hand().head(1))
    assert (summary.n_tokens, summary.mean_kld, summary.to_json()["mean_kld_err"]) == (1, 0.0, None)
    with pytest.raises(ValueError, match="no tokens"):
        summarize(TokenDivergence(0))
