"""A comparison as one HTML page, which needs no other file and no network."""

from __future__ import annotations

from html import escape

from llamalite.evaluation.comparison import N_GENERATED, Candidate, Comparison
from llamalite.evaluation.recommendation import recommend
from llamalite.evaluation.svg_charts import bars, lines, scatter
from llamalite.hardware import GIB

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 1rem 0 .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .45rem; font-size: .93em; text-align: right; }
th, td { white-space: nowrap; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
td small { opacity: .65; }
.table { overflow-x: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1.5rem; margin: 1.5rem 0; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; }
.facts { width: auto; } .facts td { text-align: left; white-space: normal; }
"""

_PERCENTILES = (("median", "median_kld"), ("90%", "p90_kld"), ("95%", "p95_kld"), ("99%", "p99_kld"),
                ("99.9%", "p999_kld"), ("max", "max_kld"))  # fmt: skip

_EXPLANATION = (
    "KLD is the Kullback-Leibler divergence of the candidate's next-token distribution from the reference's, in nats "
    "per token: how far the probabilities moved. 0 means not at all; lower is better, as with perplexity. Same top is "
    "how often the likeliest token stayed the same, RMS Δp how far the probability of the text's token moved. ± is one "
    "standard error."
)


def to_html(comparison: Comparison, title: str = "What quantization cost", *, text: str | None = None) -> str:
    """Return an HTML document without scripts: tables, four charts, and how, when and where it was measured.

    `text` names the text that was scored.
    """
    models = [comparison.reference, *comparison.candidates]
    scored = comparison.candidates[0].divergence if comparison.candidates else None
    tokens = f"{scored.n_tokens:,} tokens scored" if scored else "nothing scored"
    state = "" if comparison.complete else " The run was stopped early: these are partial figures."
    head = f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>'
    return "\n".join(
        [
            f'{head}\n<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>',
            f"<h1>{escape(title)}</h1>",
            f"<p>Reference: <b>{escape(comparison.reference.name)}</b>; {tokens}. {_EXPLANATION}{state}</p>",
            f"<p>{escape(recommend(comparison))}</p>" if comparison.candidates else "",
            '<div class="table"><table>',
            "<tr><th>model</th><th>MiB</th><th>bits per weight</th><th>perplexity</th><th>paired difference</th>"
            "<th>mean KLD</th><th>median</th><th>99%</th><th>max</th><th>same top</th><th>RMS Δp</th></tr>",
            *(_quality_row(model, comparison) for model in models),
            "</table></div>",
            '<div class="charts">',
            *_charts(comparison, models),
            "</div>",
            '<h2>Running it here</h2>\n<div class="table"><table>',
            "<tr><th>model</th><th>prompt, tokens/s</th><th>generation, tokens/s</th><th>memory, MiB</th>"
            "<th>load, s</th></tr>",
            *(_running_row(model) for model in models),
            "</table></div>",
            '<h2>How it was measured</h2>\n<div class="table"><table class="facts">',
            *(f"<tr><th>{label}</th><td>{escape(fact)}</td></tr>" for label, fact in _facts(comparison, text)),
            "</table></div>",
            "</body>\n</html>\n",
        ]
    )


def _facts(comparison: Comparison, text: str | None) -> list[tuple[str, str]]:
    """Return what a reader must know to repeat the measurement, as (label, text) pairs."""
    how = comparison.protocol
    machine = how["machine"]
    cores = f"{machine['n_cores']} cores" if machine["n_cores"] else "cores unknown"
    memory = f"{machine['memory_bytes'] / GIB:.1f} GiB" if machine["memory_bytes"] else "memory unknown"
    flash = {"auto": "as llama.cpp chooses", False: "off", True: "on"}[how["flash_attn"]]
    return [
        ("date", str(how["date"]).replace("T", " ").replace("+00:00", " UTC")),
        ("machine", f"{machine['processor']}, {cores}, {memory}, {machine['system']}"),
        ("versions", str(how["versions"])),
        ("text", f"{text or 'not named'}, {how['n_tokens']:,} tokens"),
        ("scored", f"chunks of {how['n_ctx']} tokens that do not overlap, the second half of each"
                   + (f"; the first {how['chunks']} chunks" if how["chunks"] else "")
                   + (", BOS first in each" if how["bos"] else "")),
        ("computed", ("exact mode: " if how["exact"] else "") + f"{how['kv_type']} cache, flash attention {flash}, "
                     f"batches of {how['n_batch']} tokens in steps of {how['n_ubatch']}, "
                     f"{how['n_seq']} chunks at once, {how['n_threads']} threads"),
        ("speeds", f"rough: the prompt in these batches; generation as the median of {N_GENERATED} single tokens from "
                   "an empty cache; llamalite bench measures better"),
        ("memory", "by how much the process grew"),
    ]  # fmt: skip


def _quality_row(model: Candidate, comparison: Comparison) -> str:
    cells = [escape(model.name), f"{model.n_bytes / 2**20:,.1f}", f"{model.bits_per_weight:.2f}"]
    if (divergence := model.divergence) is not None:
        cells += [
            _plus_minus(divergence.ppl, divergence.ppl_err, 4),
            _plus_minus(divergence.ppl_diff, divergence.ppl_diff_err, 4),
            _plus_minus(divergence.mean_kld, divergence.mean_kld_err, 6),
            *(f"{value:.5f}" for value in (divergence.median_kld, divergence.p99_kld, divergence.max_kld)),
            f"{divergence.same_top_p:.2%} <small>± {divergence.same_top_p_err:.2%}</small>",
            f"{divergence.rms_delta_p:.3%}",
        ]
    else:  # the reference: every candidate has its perplexity
        first = comparison.candidates[0].divergence if comparison.candidates else None
        cells += [_plus_minus(first.ppl_base, first.ppl_base_err, 4) if first else "", *[""] * 7]
    return _table_row(cells)


def _running_row(model: Candidate) -> str:
    running = model.running
    return _table_row(
        [
            escape(model.name),
            f"{running.pp_tok_per_s:,.1f}",
            f"{running.tg_tok_per_s:,.1f}",
            f"{running.memory_bytes / 2**20:,.0f}",
            f"{running.load_s:.2f}",
        ]
    )


def _table_row(cells: list[str]) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _plus_minus(value: float, error: float, digits: int) -> str:
    return f"{value:.{digits}f} <small>± {error:.{digits}f}</small>"


def _charts(comparison: Comparison, models: list[Candidate]) -> list[str]:
    pairs = [(model, model.divergence) for model in comparison.candidates if model.divergence is not None]
    names = {model.path: model.qtype or model.name for model in models}
    if len(set(names.values())) < len(names):
        names = {model.path: model.name for model in models}
    sizes = [(names[model.path], model.n_bytes / 2**20, divergence.mean_kld) for model, divergence in pairs]
    spreads = [
        (names[model.path], [getattr(divergence, key) for _, key in _PERCENTILES]) for model, divergence in pairs
    ]
    charts = {
        "Size against divergence": scatter(sizes, x_label="file, MiB", y_label="mean KLD, nats", colour=1),
        "How divergence is spread": lines(
            spreads,
            [label for label, _ in _PERCENTILES],
            x_label="share of the tokens below",
            y_label="KLD, nats",
            colour=1,
        ),
        "Speed of the prompt": bars(
            [(names[model.path], model.running.pp_tok_per_s) for model in models], x_label="tokens a second"
        ),
        "Speed of generation": bars(
            [(names[model.path], model.running.tg_tok_per_s) for model in models], x_label="tokens a second"
        ),
    }
    return [f"<section><h2>{title}</h2>\n{chart}</section>" for title, chart in charts.items()]
