"""compare: lockstep equals separate runs, passes equal one, the reports can be read, the budget names a type."""

from __future__ import annotations

import csv
import dataclasses
import html
import html.parser
import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
import toy_checkpoint
import toy_importance
from test_cli_models import on_terminal

import llamalite
from llamalite.errors import EvaluationError
from llamalite.evaluation.candidates import make_candidates
from llamalite.evaluation.comparison import Comparison, compare, iter_compare
from llamalite.evaluation.csv_report import to_csv
from llamalite.evaluation.html_report import to_html
from llamalite.evaluation.perplexity import perplexity
from llamalite.evaluation.protocol import EvalProtocol
from llamalite.evaluation.recommendation import check_budgets, recommend
from llamalite.evaluation.svg_charts import bars, lines, scatter
from llamalite.evaluation.windows import read_text, tokens_of
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel

TEXT = "once upon a time there was a story and the time was once upon a story, yes. " * 12
SETTINGS: dict[str, Any] = {"n_ctx": 32, "n_batch": 128, "n_threads": 1, "exact": True}
PROTOCOL = EvalProtocol(**SETTINGS)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("comparison") / "base.gguf")


@pytest.fixture(scope="module")
def quantized(base: Path) -> list[Path]:
    return make_candidates(base, ["Q8_0", "Q4_0"], base.parent / "made")[1]


@pytest.fixture(scope="module")
def comparison(base: Path, quantized: list[Path]) -> Comparison:
    return compare(base, quantized, TEXT, **SETTINGS)


def test_lockstep_equals_a_slow_twin(base: Path, quantized: list[Path], comparison: Comparison) -> None:
    rows = []
    for path in (base, quantized[1]):
        with (
            NativeModel(path) as model,
            NativeContext(model, ContextOptions(n_ctx=32, n_threads=1, exact=True)) as context,
        ):
            tokens = tokens_of(TEXT, model)
            for start in range(0, len(tokens) - 31, 32):
                chunk = tokens[start : start + 32].copy()
                chunk[0] = model.bos
                context.clear()
                context.decode(chunk, np.arange(32), 0, True)
                rows.append((context.logits()[16:31].astype(np.float64), chunk[17:]))
    kld, same, delta = [], [], []
    half = len(rows) // 2
    for (x, targets), (y, _) in zip(rows[:half], rows[half:], strict=True):
        for i, target in enumerate(targets):
            p, q = (np.exp(row[i] - row[i].max()) / np.exp(row[i] - row[i].max()).sum() for row in (x, y))
            kld.append(math.fsum(p * np.log(p / q)))
            same.append(p.argmax() == q.argmax())
            delta.append(q[target] - p[target])
    divergence = comparison.candidates[1].divergence
    assert divergence is not None
    assert (divergence.n_tokens, divergence.same_top_p) == (len(kld), np.mean(same))
    assert divergence.mean_kld == pytest.approx(np.mean(kld), rel=1e-5)
    assert divergence.max_kld == pytest.approx(max(kld), rel=1e-4)
    assert divergence.rms_delta_p == pytest.approx(math.sqrt(np.mean(np.square(delta))), rel=1e-4)


def test_a_split_model_is_one_model(base: Path, quantized: list[Path], tmp_path: Path) -> None:
    report = llamalite.convert(
        base, tmp_path / "parts.gguf", qtype="Q8_0", split_max_bytes=quantized[0].stat().st_size // 3
    )
    assert report.outputs[0].n_files > 1
    whole, split = compare(base, [quantized[0], report.path], TEXT, **SETTINGS).candidates
    assert split.n_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert split.bits_per_weight == whole.bits_per_weight
    assert split.divergence == whole.divergence


def test_perplexities_are_those_of_separate_runs(base: Path, quantized: list[Path], comparison: Comparison) -> None:
    for candidate, path in zip(comparison.candidates, quantized, strict=True):
        assert candidate.divergence is not None
        assert candidate.divergence.ppl == pytest.approx(perplexity(path, TEXT, **SETTINGS).ppl, rel=1e-7)
        assert candidate.divergence.ppl_base == pytest.approx(perplexity(base, TEXT, **SETTINGS).ppl, rel=1e-7)


def test_models_that_do_not_fit_together_are_compared_in_passes(
    base: Path, quantized: list[Path], comparison: Comparison, caplog: pytest.LogCaptureFixture
) -> None:
    *_, last = iter_compare(base, quantized, TEXT, PROTOCOL, free_bytes=0)
    assert last.chunks_done == last.n_chunks
    for candidate, other in zip(last.comparison().candidates, comparison.candidates, strict=True):
        assert candidate.divergence == other.divergence
    assert sum("this will be slow" in record.message for record in caplog.records) == 2


def test_results_so_far_can_be_read_at_any_time(base: Path, quantized: list[Path]) -> None:
    run = iter_compare(base, quantized, TEXT, PROTOCOL, free_bytes=0)
    first = next(run)
    early = first.comparison()
    assert (early.complete, [candidate.name for candidate in early.candidates]) == (False, ["base-Q8_0"])
    assert first.mean_kld() == {"base-Q8_0": early.candidates[0].divergence and early.candidates[0].divergence.mean_kld}
    run.close()


def test_a_model_against_itself_costs_nothing(base: Path) -> None:
    divergence = compare(base, [base], TEXT, **SETTINGS).candidates[0].divergence
    assert divergence is not None
    assert (divergence.same_top_p, divergence.ppl_diff, divergence.rms_delta_p) == (1.0, 0.0, 0.0)
    assert divergence.max_kld < 1e-13


def test_another_vocabulary_is_refused(base: Path, tmp_path: Path) -> None:
    without_bos = toy.write_toy(tmp_path / "other.gguf", add_bos=False)
    with pytest.raises(EvaluationError, match="tokenizes the text differently from base.gguf"):
        compare(base, [without_bos], TEXT, **SETTINGS)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(base, [], TEXT, **SETTINGS)


def test_a_checkpoint_gives_a_reference_in_its_own_type_and_a_candidate_for_each_type(tmp_path: Path) -> None:
    source = toy_checkpoint.write_checkpoint(tmp_path / "checkpoint")
    reference, made = make_candidates(source, ["Q8_0", "Q4_0"], tmp_path / "made")
    assert reference.stem.rpartition("-")[2] in ("F32", "F16", "BF16")
    assert [path.stem.rpartition("-")[2] for path in made] == ["Q8_0", "Q4_0"]


def test_the_budget_chooses_the_smallest_file_that_meets_it_and_fits(comparison: Comparison) -> None:
    eight, four = (candidate.divergence.mean_kld for candidate in comparison.candidates if candidate.divergence)
    assert eight < four
    names = {"base-Q8_0": eight, "base-Q4_0": four}
    for budget, free, expected in (
        (four, 10**12, "base-Q4_0"),
        ((four + eight) / 2, 10**12, "base-Q8_0"),
        (eight / 2, 10**12, None),
        (four, 1000, None),
    ):
        results = check_budgets(comparison, kld_budget=budget, n_ctx=512, free_bytes=free)
        assert [result.candidate.name for result in results] == ["base-Q4_0", "base-Q8_0"]
        assert next((result.candidate.name for result in results if result.chosen), None) == expected
        assert [result.within_budget for result in results] == [
            names[result.candidate.name] <= budget for result in results
        ]
        assert [result.fits for result in results] == [free > 1000] * 2


# ── what is written ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Strict(html.parser.HTMLParser):
    """Refuses a tag that is not closed where it should be, and notes what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(comparison: Comparison) -> None:
    page = to_html(comparison, title="<b> & cost", text="<my> text")
    parser = _Strict()
    parser.feed(page)
    assert (parser.open, parser.loads) == ([], [])
    assert "&lt;b&gt; &amp; cost" in page
    assert page.count("<svg") == 4
    assert "<td>&lt;my&gt; text, " in page
    machine = comparison.protocol["machine"]
    for fact in (
        comparison.protocol["date"][:10],
        machine["processor"],
        machine["system"],
        comparison.protocol["versions"],
    ):
        assert html.escape(fact) in page
    assert "n_ubatch" not in page  # words, no names of the code
    assert "nan" not in page.lower().replace("finance", "")
    assert f"{comparison.candidates[0].divergence.mean_kld:.6f}" in page  # type: ignore[union-attr]


def test_charts_show_zero_and_single_values() -> None:
    for chart in (
        scatter([("same", 1.0, 0.0)], x_label="x", y_label="y"),
        scatter([("<a>", 1.0, 0.5), ("b", 2000.0, 5e-9)], x_label="x", y_label="y"),
        lines([("a", [0.0, 0.0])], ["50%", "max"], x_label="x", y_label="y"),
        bars([("a", 0.0)], x_label="t/s"),
    ):
        assert "nan" not in chart
        assert "inf" not in chart
        assert "<a>" not in chart


def test_csv_and_json_say_the_same(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    document = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert [row["name"] for row in rows] == ["base", "base-Q8_0", "base-Q4_0"]
    for row, candidate in zip(rows[1:], document["candidates"], strict=True):
        for name in ("ppl", "mean_kld", "p999_kld", "same_top_p", "rms_delta_p", "n_bytes", "tg_tok_per_s"):
            assert float(row[name]) == candidate[name]
        assert float(row["delta_p_99.9"]) == candidate["delta_p_percentiles"]["99.9"]


def test_a_picture_is_drawn(comparison: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    from llamalite.evaluation.matplotlib_charts import plot

    plot(comparison, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="a plot is written as"):
        plot(comparison, tmp_path / "cost.bmp")


def test_the_command_studies_a_checkpoint(llamalite_command: Run, tmp_path: Path) -> None:
    source = toy_checkpoint.write_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    args = ["compare", source, "-t", "Q8_0", "-t", "Q4_0", "-f", "text.txt", "--ctx", "32", "--threads", "1"]
    table = llamalite_command(*args, "--csv", "a.csv", "--html", "a.html", "--kld-budget", "100")
    assert (table.returncode, table.stderr) == (0, "wrote a.csv\nwrote a.html\n")
    assert "with a mean KLD of at most 100" in table.stdout
    assert "\n→ " in table.stdout
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").startswith("name,path,")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "text.txt (sha256 " in page
    said = llamalite_command(*args, "--json", "--kld-budget", "100")
    document = json.loads(said.stdout)
    assert (said.stderr, len(document["candidates"]), document["complete"]) == ("", 2, True)
    assert document["budget"]["chosen"] is not None
    assert llamalite_command("compare", source, "-f", "text.txt").returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of POSIX")
@pytest.mark.parametrize("columns", [80, 120])
def test_the_tables_keep_to_the_terminals_width_and_end_with_a_conclusion(
    columns: int, base: Path, quantized: list[Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    args: tuple[str | Path, ...] = ("compare", base, *quantized, "-f", text, "--ctx", "32", "--threads", "1")
    code, *lines = on_terminal(*args, colour=False, columns=columns).rstrip().split("\n")
    lines = [line.rpartition("\r")[2] for line in lines]  # bars are drawn over
    shown = "\n".join(lines)
    assert code == "0"
    assert max(map(len, lines)) <= columns, shown
    assert [line.split("  ")[0] for line in lines if line[:4] in ("QUAL", "SIZE")] == ["QUALITY", "SIZE AND SPEED"]
    assert ("RMS Δp: in a wider terminal" in shown) == (columns == 80)
    assert [line.split()[0] for line in lines if line.startswith(("F32 ", "Q8_0 ", "Q4_0 "))] == [
        "F32", "Q8_0", "Q4_0",
    ] * 2  # fmt: skip
    assert "The smallest with a mean KLD of at most 0.05 is Q8_0: " in " ".join(shown.split())
    assert shown.endswith("same top token.")
    quiet = on_terminal(*args, "-q", colour=False, columns=columns)
    assert "SAME TOP" in quiet
    assert "lower is better" not in quiet


def test_the_recommendation_names_the_smallest_within_the_budget(comparison: Comparison) -> None:
    eight, four = (candidate.divergence.mean_kld for candidate in comparison.candidates if candidate.divergence)
    ratio = [comparison.reference.n_bytes / candidate.n_bytes for candidate in comparison.candidates]
    sentence = recommend(comparison, (eight + four) / 2)
    assert sentence.startswith(
        f"The smallest with a mean KLD of at most {(eight + four) / 2:g} is Q8_0: {ratio[0]:.1f} times"
    )
    assert f"{comparison.candidates[0].divergence.same_top_p:.1%} same top token" in sentence  # type: ignore[union-attr]
    assert recommend(comparison, eight / 2).startswith("None has a mean KLD of at most ")
    assert "The nearest is Q8_0: " in recommend(comparison, eight / 2)
    alone = dataclasses.replace(comparison, candidates=comparison.candidates[1:])
    assert recommend(alone, four).startswith(f"Q4_0: {ratio[1]:.1f} times smaller than the reference, perplexity ")
    renamed = dataclasses.replace(comparison.candidates[1], name="other-Q4_0")  # no type of one model: its whole name
    assert recommend(dataclasses.replace(comparison, candidates=(renamed,))).startswith("other-Q4_0: ")


def test_generation_is_timed_over_single_tokens_after_some_that_warm_up(
    base: Path, quantized: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    real = NativeContext._decode

    def noting(self: NativeContext, n: int) -> None:
        decoded.append(n)
        if decoded.count(1) in (1, 2, 10):  # a cold start, and one that is disturbed, tell nothing of the speed
            time.sleep(0.3)
        real(self, n)

    monkeypatch.setattr(NativeContext, "_decode", noting)
    comparison = compare(base, quantized[:1], TEXT, **SETTINGS, chunks=2)
    assert decoded.count(1) == 2 * 36
    assert comparison.reference.running.tg_tok_per_s > 36 / 0.9


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(llamalite_command: Run, base: Path) -> None:
    done = llamalite_command("compare", base, base, "-f", base, "--html", "nowhere/study.html")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: there is no folder nowhere to write study.html into\n"


def test_candidates_are_made_with_an_importance_matrix(llamalite_command: Run, tmp_path: Path) -> None:
    source = toy_checkpoint.write_checkpoint(tmp_path / "checkpoint")
    matrix = toy_importance.write_importance(tmp_path / "imatrix.gguf", source, seed=1)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    args = ["compare", source, "-t", "IQ2_XS", "-f", "text.txt", "--ctx", "32", "--threads", "1", "--json"]
    without = llamalite_command(*args)
    assert without.returncode == 1
    assert "importance matrix" in without.stderr
    ran = llamalite_command(*args, "--imatrix", matrix)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["candidates"][0]["qtype"] == "IQ2_XS"


# ── the real thing ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.reference
def test_exact_mode_reaches_the_recorded_figures(tmp_path: Path, shared: Path) -> None:
    outputs = llamalite.convert(shared / "stories260k", tmp_path, qtype=["F32", "Q8_0", "Q4_0"]).outputs
    paths = {output.qtype: output.path for output in outputs}
    figures = json.loads((shared / "expected" / "divergence.json").read_text(encoding="utf-8"))["exact_mode"]
    text = read_text(shared / "wikitext-2-test.txt")
    comparison = compare(
        paths["F32"], [paths["Q8_0"], paths["Q4_0"]], text, n_ctx=256, chunks=32, exact=True, n_threads=1
    )
    for candidate in comparison.candidates:
        expected, measured = figures[candidate.qtype], candidate.to_json()
        assert measured["n_tokens"] == expected["n_tokens"]
        assert measured["ppl_base"] == pytest.approx(expected["ppl_base"], abs=1e-3)
        assert measured["ppl"] == pytest.approx(expected["ppl"], rel=2e-3)
        assert measured["mean_kld"] == pytest.approx(expected["mean_kld"], rel=0.02)
        assert measured["median_kld"] == pytest.approx(expected["median_kld"], rel=0.02)
        assert measured["same_top_p"] == pytest.approx(expected["same_top_p"], abs=0.005)
        assert measured["rms_delta_p"] == pytest.approx(expected["rms_delta_p"], rel=0.02)
