"""perplexity: its windows, its arithmetic against slow twins, its protocol, its command."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import toy
from test_cli_models import on_terminal

import llamalite
from llamalite.errors import EvaluationError
from llamalite.evaluation.comparison import compare
from llamalite.evaluation.likelihoods import LikelihoodScorer, Request
from llamalite.evaluation.measured_model import Decoder, check_finite
from llamalite.evaluation.perplexity import iter_perplexity, perplexity
from llamalite.evaluation.protocol import EvalProtocol
from llamalite.evaluation.scoring import Float32s, Float64s, RunningMean, mean_error, negative_log_likelihoods
from llamalite.evaluation.text_units import TextUnits
from llamalite.evaluation.windows import (
    NOT_SCORED,
    TokenIds,
    Window,
    batches,
    chunk_windows,
    read_text,
    stride_windows,
    tokens_of,
)
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel

TEXT = "once upon a time there was a story and the time was once upon a story, yes. " * 12
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("perplexity") / "toy.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[NativeModel]:
    with NativeModel(path) as loaded:
        yield loaded


def slow_nll(model: NativeModel, window: TokenIds, n_ctx: int) -> Float64s:
    """−ln p of each token of `window` but the first, one sequence, all rows, in float64."""
    with NativeContext(model, ContextOptions(n_ctx=n_ctx, n_threads=1, exact=True)) as context:
        context.decode(window, np.arange(len(window)), 0, True)
        logits = context.logits().astype(np.float64)
    maximum = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - maximum).sum(axis=1)) + maximum[:, 0]
    return np.array([log_sum[i] - logits[i, token] for i, token in enumerate(window[1:])])


# ── arithmetic ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_likelihoods_of_a_hand_computed_case() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], dtype=np.float32)) + np.float32(40)
    nll = negative_log_likelihoods(logits, np.array([0, 2]))
    assert nll == pytest.approx([math.log(2), -math.log(0.7)], rel=1e-5)
    uniform = negative_log_likelihoods(np.zeros((1, 8), dtype=np.float32), np.array([3]))
    assert uniform[0] == math.log(8)


@pytest.mark.parametrize("n_vocab", [3, 511, 40_000])
def test_likelihoods_equal_a_float64_twin(n_vocab: int) -> None:
    rng = np.random.default_rng(n_vocab)
    logits: Float32s = rng.normal(3, 6, (40, n_vocab)).astype(np.float32)
    targets = rng.integers(0, n_vocab, 40)
    twin = []
    for row, target in zip(logits.tolist(), targets, strict=True):
        top = max(row)
        twin.append(math.log(sum(math.exp(x - top) for x in row)) + top - row[target])
    assert negative_log_likelihoods(logits, targets) == pytest.approx(twin, rel=1e-6, abs=1e-7)


def test_a_mean_and_its_error_of_a_hand_computed_case() -> None:
    # 1 2 3 6: mean 3, s² = (4 + 1 + 0 + 9) / 3, error √(s² / 4)
    mean = mean_error([1.0, 2.0, 3.0, 6.0])
    assert (mean.mean, mean.count) == (3.0, 4)
    assert mean.error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert math.isnan(mean_error([5.0]).error)
    assert math.isnan(mean_error([]).mean)


def test_a_running_mean_equals_the_mean_of_all() -> None:
    values = np.random.default_rng(1).normal(1e6, 1, 1000)
    running = RunningMean()
    for part in np.split(values, [0, 1, 3, 700]):
        running.add(part)
    whole = mean_error(values)
    assert running.count == 1000
    assert running.mean == pytest.approx(whole.mean, rel=1e-14)
    assert running.error == pytest.approx(whole.error, rel=1e-6)


# ── windows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_chunks_have_bos_in_front_and_score_their_second_half() -> None:
    tokens = np.arange(10, 29, dtype=np.int32)  # 19 tokens: two chunks of 8, and 3 that fill none
    first, second = chunk_windows(tokens, 8, bos=1)
    assert first.tokens.tolist() == [1, 11, 12, 13, 14, 15, 16, 17]
    assert (first.first, first.targets.tolist()) == (4, [15, 16, 17, NOT_SCORED])
    assert second.tokens.tolist() == [1, 19, 20, 21, 22, 23, 24, 25]
    assert chunk_windows(tokens, 8, bos=None)[1].tokens[0] == 18
    assert tokens[0] == 10  # the caller's array stays as it was


def test_bos_between_documents_is_not_scored() -> None:
    tokens = np.array([1, 5, 6, 7, 8, 1, 9, 9, 1, 5, 6, 7, 8, 9, 9, 9], dtype=np.int32)
    assert chunk_windows(tokens, 8, bos=1)[0].targets.tolist() == [NOT_SCORED, 9, 9, NOT_SCORED]


def test_a_stride_scores_every_token_but_the_first_once() -> None:
    tokens = np.arange(100, 123, dtype=np.int32)
    windows = stride_windows(tokens, n_ctx=8, stride=3)
    assert windows[0].tokens.tolist() == list(range(100, 107))
    assert (windows[0].first, windows[0].targets.tolist()) == (0, list(range(101, 108)))
    assert (windows[1].tokens.tolist(), windows[1].targets.tolist()) == (list(range(103, 110)), [108, 109, 110])
    assert [t for window in windows for t in window.targets.tolist()] == list(range(101, 123))
    for window in windows:
        assert window.tokens[window.first + 1 :].tolist() == window.targets[:-1].tolist()
        assert len(window.tokens) < 8


def test_a_stride_without_overlap_has_nothing_to_predict_a_window_s_first_token_from() -> None:
    windows = stride_windows(np.arange(9, dtype=np.int32), n_ctx=4, stride=4)
    assert [window.targets.tolist() for window in windows] == [[1, 2, 3], [5, 6, 7]]


def test_windows_share_a_batch_and_long_ones_are_cut() -> None:
    windows = [Window(np.arange(6, dtype=np.int32), 3, np.array([4, 5, NOT_SCORED], dtype=np.int32))] * 3
    first, second = batches(windows, n_ctx=6, n_batch=12)
    assert (first.seq_ids.tolist(), first.positions.tolist()) == ([0] * 6 + [1] * 6, [*range(6), *range(6)])
    assert first.wanted.tolist() == ([False] * 3 + [True] * 3) * 2
    assert (first.window_ends, second.window_ends, len(second.tokens)) == ((3, 6), (3,), 6)
    head, tail, *_ = batches(windows, n_ctx=6, n_batch=4)
    assert (head.fresh, head.window_ends, head.targets.tolist()) == (True, (), [4])
    assert (tail.fresh, tail.window_ends, tail.positions.tolist()) == (False, (2,), [4, 5])
    assert tail.targets.tolist() == [5, NOT_SCORED]


# ── the whole ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n_batch", [16, 48, 256, 2048])
def test_perplexity_equals_a_slow_twin_for_every_batch_size(model: NativeModel, n_batch: int) -> None:
    tokens = tokens_of(TEXT, model)
    expected = []
    for start in range(0, len(tokens) - 31, 32):
        chunk = tokens[start : start + 32].copy()
        chunk[0] = model.bos
        expected.append(slow_nll(model, chunk, 32)[16:])
    result = perplexity(model, TEXT, n_ctx=32, n_batch=n_batch, exact=True, n_threads=1)
    nll = np.concatenate(expected)
    assert result.ppl == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    assert result.ppl_err == pytest.approx(math.exp(nll.mean()) * nll.std(ddof=1) / math.sqrt(len(nll)), rel=1e-4)
    running = [math.exp(np.concatenate(expected[: n + 1]).mean()) for n in range(len(expected))]
    assert result.running_ppl == pytest.approx(running, rel=1e-5)
    assert (result.n_scored, result.complete, result.n_chunks) == (len(nll), True, len(expected))


def test_a_stride_equals_a_slow_twin(model: NativeModel) -> None:
    tokens = tokens_of(TEXT, model)[:200]
    scored: list[float] = []
    for start in range(0, 200, 20):  # as Hugging Face's page: what earlier windows scored is left out
        end = min(start + 64, 200)
        scored += slow_nll(model, tokens[start:end], 64)[len(scored) - start :].tolist()
        if end == 200:
            break
    result = perplexity(model, tokens, n_ctx=64, stride=20, exact=True, n_threads=1)
    assert (result.n_scored, len(scored)) == (199, 199)
    assert result.ppl == pytest.approx(math.exp(np.mean(scored)), rel=1e-5)


def test_text_bytes_tokens_and_a_stream_of_one_document_are_the_same(model: NativeModel, path: Path) -> None:
    tokens = tokens_of(TEXT, model)
    shapes = [TEXT, TEXT.encode(), tokens, tokens.tolist(), [TEXT], iter([TEXT.encode()])]
    results = [perplexity(path, text, n_ctx=64, n_threads=1).to_json() for text in shapes]
    for result in results:
        del result["decode_s"], result["scoring_s"]
        assert result == results[0]


def test_a_stream_is_read_no_further_than_needed(model: NativeModel) -> None:
    read = []

    def documents() -> Iterator[str]:
        while True:
            read.append(1)
            yield TEXT

    result = perplexity(model, documents(), n_ctx=64, chunks=3, n_threads=1)
    assert (result.n_chunks, len(read)) == (3, 1)


def test_a_file_is_read_as_bytes_and_loses_one_newline(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\xff\n\n")
    assert read_text(tmp_path / "a.txt") == b"one\r\ntwo\xff\n"
    (tmp_path / "b.txt").write_bytes(b"\n")
    assert read_text(tmp_path / "b.txt") == b""


def test_bytes_and_words_of_the_scored_tokens(model: NativeModel) -> None:
    units = TextUnits(model)
    tokens = tokens_of("once upon  time\nxq", model)  # BOS, then pieces that begin with the space before a word
    assert units.count(tokens[:-1], tokens[1:]) == (len(" once upon  time\nxq"), 4)
    at = [model.token_to_piece(int(token)) for token in tokens].index(b"q")
    assert units.count(tokens[at - 1 : at], tokens[at : at + 1]) == (1, 0)  # inside a word: no word begins
    result = perplexity(model, TEXT, n_ctx=64, n_threads=1)
    bits = result.nll * result.n_scored / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / (result.n_bytes or 0))
    assert result.bits_per_word == pytest.approx(bits / (result.n_words or 0))


def test_what_cannot_be_measured_is_refused(model: NativeModel, tmp_path: Path, path: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"has 13 tokens, and a context of 8 needs at least 16: .* is 6 \(--ctx 6\)"
    ):
        perplexity(model, np.arange(13), n_ctx=8)
    with pytest.raises(EvaluationError, match="has 0 tokens"):
        perplexity(model, [], n_ctx=8, stride=2)
    with pytest.raises(ValueError, match="n_ctx must be 4 or more"):
        perplexity(model, TEXT, n_ctx=3)
    with pytest.raises(ValueError, match=r"the stride must lie in 1\.\.8"):
        perplexity(model, TEXT, n_ctx=8, stride=9)
    with pytest.raises(ValueError, match="chunks must be 1 or more"):
        perplexity(model, TEXT, chunks=0)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(path.read_bytes())
    reader = gguf.GGUFReader(damaged, "r+")
    next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight").data[3] = np.nan
    reader.data.flush()
    requests = [Request((1, 5), (6, 7))]
    with NativeModel(damaged) as bad, LikelihoodScorer(bad, n_threads=1) as scorer:
        for call in (
            lambda: perplexity(bad, TEXT, n_ctx=32, n_threads=1),
            lambda: compare(path, [damaged], TEXT, n_ctx=32, n_threads=1),
            lambda: scorer.score(requests),
        ):
            with pytest.raises(EvaluationError, match=r"logits of damaged\.gguf are not finite"):
                call()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_logit_that_is_nan_is_found_wherever_it_is(
    value: float, model: NativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = EvalProtocol(n_ctx=32, n_batch=32, n_threads=1)
    batch = next(batches(protocol.windows(tokens_of(TEXT, model), model), 32, 32))
    real = NativeContext.logits
    with protocol.context(model) as context:
        decoder = Decoder(context)
        n_rows, n_vocab = decoder.decode(batch).shape

        def one_wrong(self: NativeContext) -> Float32s:
            rows: Float32s = real(self).copy()
            rows[n_rows - 1, n_vocab - 1] = value  # the last row is not scored
            return rows

        monkeypatch.setattr(NativeContext, "logits", one_wrong)
        with pytest.raises(EvaluationError, match=f"1 of {n_rows * n_vocab} logits of toy.gguf are not finite"):
            decoder.decode(batch)
    check_finite(np.full(100, 3e38, np.float32), "large, and finite")


def test_leaving_early_gives_the_results_so_far_and_frees_the_context(model: NativeModel) -> None:
    run = iter_perplexity(model, TEXT, EvalProtocol(n_ctx=32, n_batch=32, n_threads=1))
    first = next(run)
    run.close()
    assert (first.chunks_done, first.complete) == (1, False)
    assert first.running_ppl == [first.ppl]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on Windows")
def test_an_exception_stops_a_decode_at_once(tmp_path: Path) -> None:
    def late(*_: object) -> None:
        raise KeyboardInterrupt

    big = toy.write_toy(tmp_path / "big.gguf", n_layer=6, n_embd=256, n_ff=1024)
    with NativeModel(big) as model:
        protocol = EvalProtocol(n_ctx=1024, n_batch=1024, n_ubatch=64, n_threads=1)
        batch = next(batches(protocol.windows(np.full(2048, 7, dtype=np.int32), model), 1024, 1024))
        with protocol.context(model) as context:
            decoder = Decoder(context)
            start = time.perf_counter()
            decoder.decode(batch)
            whole = time.perf_counter() - start
            before = signal.signal(signal.SIGALRM, late)
            signal.setitimer(signal.ITIMER_REAL, whole / 20)
            try:
                with pytest.raises(KeyboardInterrupt):
                    decoder.decode(batch)
            finally:
                signal.signal(signal.SIGALRM, before)
            assert context.seq_pos_max(0) < 1023
            assert decoder.decode(batch).shape[0] == len(batch.targets)  # and the context is as good as before


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_prints_a_table_or_one_json_document(llamalite_command: Run, path: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT + "\n", encoding="utf-8")
    table = llamalite_command("perplexity", path, "-f", "text.txt", "--ctx", "64", "--chunks", "3", "--threads", "1")
    assert (table.returncode, table.stderr) == (0, "")
    said = llamalite_command(
        "perplexity", path, "-f", "-", "--ctx", "64", "--chunks", "3", "--threads", "1", "--json", input=TEXT
    )
    assert (said.returncode, said.stderr) == (0, "")
    document = json.loads(said.stdout)
    assert f"PPL        {document['ppl']:.4f} ± {document['ppl_err']:.5f}\n" in table.stdout
    assert (document["n_scored"], document["chunks_done"], document["protocol"]["n_ctx"]) == (93, 3, 64)
    assert document["ppl"] == pytest.approx(perplexity(path, TEXT, n_ctx=64, chunks=3, n_threads=1).ppl, rel=1e-9)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of POSIX")
def test_on_a_terminal_it_says_what_the_figure_is_for(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    args = ("perplexity", path, "-f", text, "--ctx", "64", "--chunks", "2", "--threads", "1")
    assert f"\nLower is better. To see what quantization cost:\n  llamalite compare CHECKPOINT {path}" in on_terminal(
        *args
    )
    assert "Lower is better" not in on_terminal(*args, "-q") + on_terminal(*args, "--json")


def test_the_command_reports_a_failure_in_one_line(llamalite_command: Run, path: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("once", encoding="utf-8")
    for args, expected in (
        ([path, "-f", "short.txt"], "a context of 512 needs at least 1024: give a longer text"),
        ([path, "-f", "none.txt"], "none.txt"),
        (["no-such-model", "-f", "short.txt"], "no model 'no-such-model'"),
        (["short.txt", "-f", "short.txt"], "is not a GGUF file"),
    ):
        failed = llamalite_command("perplexity", *args)
        assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
        assert expected in failed.stderr
    assert llamalite_command("perplexity", path).returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_prints_the_results_so_far(path: Path, tmp_path: Path) -> None:
    import fcntl
    import pty
    import struct
    import termios

    (tmp_path / "text.txt").write_text(TEXT * 300, encoding="utf-8")
    inner, outer = pty.openpty()
    fcntl.ioctl(outer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a bar needs a width
    environment = os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1])}
    command = [
        sys.executable,
        "-m",
        "llamalite",
        "perplexity",
        str(path),
        "-f",
        "text.txt",
        "--ctx",
        "64",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=outer, env=environment, cwd=tmp_path) as process:
        os.close(outer)
        seen = b""
        while b"PPL" not in seen:  # the bar's; a process that has ended raises OSError
            seen += os.read(inner, 4096)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0].decode()
    os.close(inner)
    assert process.returncode == 130
    assert said.startswith("stopped after ")
    assert "\nPPL        " in said


# ── the real thing ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.reference
@pytest.mark.parametrize("n_ctx", [128, 256, 512])
def test_exact_mode_reaches_llama_perplexity_s_figures(stories: Path, shared: Path, n_ctx: int) -> None:
    figures = json.loads((shared / "expected" / "perplexity.json").read_text(encoding="utf-8"))["exact_mode"]
    expected = next(figure for figure in figures if figure["n_ctx"] == n_ctx)
    text = read_text(shared / "wikitext-2-test.txt")
    result = perplexity(stories, text, n_ctx=n_ctx, chunks=expected["chunks"], exact=True, n_threads=1)
    assert result.ppl == pytest.approx(float(expected["ppl"]), abs=1e-3)
    assert result.ppl_err == pytest.approx(float(expected["ppl_err"]), abs=1e-4)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    return llamalite.convert(
        shared / "stories260k", tmp_path_factory.mktemp("stories") / "stories-F32.gguf", qtype="F32"
    ).path
