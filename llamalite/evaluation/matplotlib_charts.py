"""A comparison as one image with three charts, drawn by matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from llamalite.errors import EvaluationError
from llamalite.evaluation.comparison import Comparison

SUFFIXES = (".png", ".svg", ".pdf")
_PERCENTILES = (("median", "median_kld"), ("90%", "p90_kld"), ("95%", "p95_kld"), ("99%", "p99_kld"),
              ("99.9%", "p999_kld"))  # fmt: skip


def check_plot(path: Path) -> None:
    """Raise ``EvaluationError`` without matplotlib, ``ValueError`` if `path` has none of `SUFFIXES`."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a plot is written as {', '.join(SUFFIXES)}; found {path.name!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise EvaluationError("plots need matplotlib: pip install matplotlib")


def plot(comparison: Comparison, path: Path) -> None:
    """Write charts of size against KLD, of the spread of KLD, and of speeds to `path`."""
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)  # needs no window system
    sizes, spread, speeds = figure.subplots(1, 3)
    for candidate in comparison.candidates:
        if (divergence := candidate.divergence) is None:
            continue
        label, mib = candidate.qtype or candidate.name, candidate.n_bytes / 2**20
        sizes.errorbar(mib, divergence.mean_kld, yerr=divergence.mean_kld_err, fmt="o", capsize=3)
        sizes.annotate(label, (mib, divergence.mean_kld), xytext=(6, 4), textcoords="offset points")
        shares, values = zip(*((share, getattr(divergence, key)) for share, key in _PERCENTILES), strict=True)
        spread.plot(shares, values, marker="o", label=label)
    sizes.set(xlabel="file, MiB", ylabel="mean KLD, nats", title="Size against divergence", yscale="log")
    sizes.margins(x=0.2)
    spread.set(xlabel="share of the tokens below", ylabel="KLD, nats", title="How divergence is spread", yscale="log")
    spread.legend(fontsize="small")
    models = [comparison.reference, *comparison.candidates]
    places = range(len(models))
    speeds.barh([p - 0.2 for p in places], [model.running.pp_tok_per_s for model in models], 0.4, label="prompt")
    speeds.barh([p + 0.2 for p in places], [model.running.tg_tok_per_s for model in models], 0.4, label="generation")
    speeds.set_yticks(list(places), [model.qtype or model.name for model in models])
    speeds.invert_yaxis()
    speeds.set(xlabel="tokens a second", title="Speed")
    speeds.legend(fontsize="small")
    figure.savefig(path, dpi=120)
