"""How far one model's next-token distributions are from another's, for each token and over all of them.

    reference p = (0.5, 0.25, 0.25), candidate q = (0.25, 0.5, 0.25):
    KL(p‖q) = 0.5·ln 2 − 0.25·ln 2 + 0 = 0.1733 nats; the top tokens differ; Δp of token 0 is −0.25

Both distributions are computed in float64 from the raw logits. (llama.cpp stores the reference's log-probabilities in a
file, as 16-bit integers, cut 16 nats below the maximum; here nothing is stored or cut.) The statistics and
their names are those of ``kl_divergence()`` in llama.cpp's tools/perplexity/perplexity.cpp. This module uses neither
models nor texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from llamalite.evaluation.scoring import Float32s, Float64s, Ints, mean_error, row_slices

PERCENTILES = (0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


class TokenDivergence:
    """Five numbers for each of `n` scored tokens: float64 [n], except `same_top`, which is bool [n]."""

    def __init__(self, n: int) -> None:
        self.nll_base = np.full(n, np.nan)
        self.nll = np.full(n, np.nan)
        self.kld = np.full(n, np.nan)
        self.delta_p = np.full(n, np.nan)  # p(token) of the candidate minus that of the reference
        self.same_top = np.zeros(n, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.kld)

    def head(self, n: int) -> TokenDivergence:
        """Return the first `n` tokens as views."""
        part = TokenDivergence(0)
        for name in vars(part):
            setattr(part, name, getattr(self, name)[:n])
        return part


def diverge(
    reference: Float32s, candidates: Sequence[Float32s], targets: Ints, into: Sequence[TokenDivergence], at: int
) -> None:
    """Fill ``into[i][at:at + n]`` from `reference` and ``candidates[i]``, each float32 [n, n_vocab].

    KL(p‖q) = Σ p·(x − y) + ln Σe^y − ln Σe^x, where x and y are the logits and p is the reference's softmax. It is
    computed in float64, a few rows at a time.
    """
    for start, end in row_slices(len(targets), reference.shape[-1] * 8):
        rows, chosen = np.arange(end - start), targets[start:end]
        x, p, log_z = _distribution(reference[start:end])
        nll_base = log_z - x[rows, chosen]
        base_p = p[rows, chosen]
        top = reference[start:end].argmax(axis=1)
        for candidate, divergence in zip(candidates, into, strict=True):
            y, q, log_w = _distribution(candidate[start:end])
            span = slice(at + start, at + end)
            divergence.nll_base[span] = nll_base
            divergence.nll[span] = log_w - y[rows, chosen]
            divergence.delta_p[span] = q[rows, chosen] - base_p
            divergence.same_top[span] = candidate[start:end].argmax(axis=1) == top
            np.subtract(x, y, out=y)
            # Rounding may give −1e-16 for two equal distributions.
            divergence.kld[span] = np.maximum(np.einsum("ij,ij->i", p, y) + log_w - log_z, 0.0)


def _distribution(logits: Float32s) -> tuple[Float64s, Float64s, Float64s]:
    """Return logits minus their maximum, their softmax, and ln of its denominator: float64 [n, v], [n, v], [n]."""
    shifted = np.subtract(logits, logits.max(axis=1, keepdims=True), dtype=np.float64)
    softmax = np.exp(shifted)
    total = softmax.sum(axis=1)
    softmax /= total[:, None]
    return shifted, softmax, np.log(total)


@dataclass(frozen=True)
class Divergence:
    """What a candidate lost against its reference over `n_tokens` tokens; `_err` marks standard errors of the mean.

    Likelihoods and divergences are in nats, probabilities and shares in 0..1. Differences are paired: their errors are
    computed from each token's difference, and are far smaller than the errors of the two perplexities.
    """

    n_tokens: int
    ppl_base: float
    ppl_base_err: float
    ppl: float
    ppl_err: float
    ppl_diff: float  # ppl − ppl_base
    ppl_diff_err: float
    ln_ppl_ratio: float  # ln(ppl / ppl_base), the mean of the differences in likelihood
    ln_ppl_ratio_err: float
    ppl_ratio: float
    ppl_ratio_err: float
    correlation: float  # of the two models' likelihoods over the tokens
    mean_kld: float
    mean_kld_err: float
    median_kld: float
    p90_kld: float
    p95_kld: float
    p99_kld: float
    p999_kld: float
    max_kld: float
    same_top_p: float
    same_top_p_err: float
    mean_delta_p: float
    mean_delta_p_err: float
    rms_delta_p: float
    rms_delta_p_err: float
    delta_p_percentiles: dict[str, float]  # "min", "0.1", ... "99.9", "max"

    def to_json(self) -> dict[str, object]:
        """Return the statistics as plain numbers; None for what a single token does not define."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def summarize(tokens: TokenDivergence) -> Divergence:
    """Return the statistics of at least one token. Percentiles interpolate linearly, as in llama.cpp."""
    if not len(tokens):
        raise ValueError("there are no tokens to summarize")
    base, candidate = mean_error(tokens.nll_base), mean_error(tokens.nll)
    ratio = mean_error(tokens.nll - tokens.nll_base)
    ppl_base, ppl = math.exp(base.mean), math.exp(candidate.mean)
    kld, delta_p, squares = mean_error(tokens.kld), mean_error(tokens.delta_p), mean_error(np.square(tokens.delta_p))
    rms = math.sqrt(squares.mean)
    same, n = float(tokens.same_top.mean()), len(tokens)
    median, p90, p95, p99, p999 = (float(x) for x in np.percentile(tokens.kld, [50, 90, 95, 99, 99.9]))
    shares = np.percentile(tokens.delta_p, [0, *PERCENTILES, 100])
    return Divergence(
        n_tokens=n,
        ppl_base=ppl_base,
        ppl_base_err=ppl_base * base.error,
        ppl=ppl,
        ppl_err=ppl * candidate.error,
        ppl_diff=ppl - ppl_base,
        # The delta method: to first order, the difference of two perplexities is this mean.
        ppl_diff_err=mean_error(ppl * tokens.nll - ppl_base * tokens.nll_base).error,
        ln_ppl_ratio=ratio.mean,
        ln_ppl_ratio_err=ratio.error,
        ppl_ratio=math.exp(ratio.mean),
        ppl_ratio_err=math.exp(ratio.mean) * ratio.error,
        correlation=_correlation(tokens.nll, tokens.nll_base),
        mean_kld=kld.mean,
        mean_kld_err=kld.error,
        median_kld=median,
        p90_kld=p90,
        p95_kld=p95,
        p99_kld=p99,
        p999_kld=p999,
        max_kld=float(tokens.kld.max()),
        same_top_p=same,
        same_top_p_err=math.sqrt(same * (1 - same) / (n - 1)) if n > 1 else math.nan,
        mean_delta_p=delta_p.mean,
        mean_delta_p_err=delta_p.error,
        rms_delta_p=rms,
        rms_delta_p_err=0.5 / rms * squares.error if rms else 0.0,
        delta_p_percentiles=dict(
            zip(["min", *(f"{p:g}" for p in PERCENTILES), "max"], (float(x) for x in shares), strict=True)
        ),
    )


def _correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    da, db = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(da @ da) * float(db @ db))
    return float(da @ db) / scale if scale else math.nan
