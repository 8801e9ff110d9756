"""imatrix: its sums equal a float64 computation, and llama.cpp's quantizer and `convert` read the file."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import toy

from llamalite.converters.importance import Importance
from llamalite.errors import EvaluationError
from llamalite.evaluation.imatrix import ImportanceMatrix, collect_imatrix
from llamalite.evaluation.windows import chunk_windows, tokens_of
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel
from llamalite.native.observer import MatrixObserver

TEXT = "once upon a time there was a story and the time was once upon a story, yes. " * 6
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("imatrix") / "toy.gguf")


@pytest.fixture(scope="module")
def matrix(path: Path) -> ImportanceMatrix:
    return collect_imatrix(path, TEXT, n_ctx=32, chunks=3, n_threads=1)


def test_the_first_layer_s_input_equals_a_twin_in_float64(path: Path, matrix: ImportanceMatrix) -> None:
    reader = gguf.GGUFReader(path)
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight").data.astype(np.float64)
    with NativeModel(path) as model:
        windows = chunk_windows(tokens_of(TEXT, model), 32, model.bos)[:3]
    rows = embedding[np.concatenate([window.tokens for window in windows])]  # [96, 64]
    normed = rows / np.sqrt(np.square(rows).mean(axis=1, keepdims=True) + 1e-5)  # the toy's norm weights are 1
    for name in ("attn_q", "attn_k", "attn_v"):
        assert matrix.means()[f"blk.0.{name}.weight"] == pytest.approx(np.square(normed).mean(axis=0), rel=1e-5)


def test_every_matrix_of_the_blocks_is_seen_over_every_token(path: Path, matrix: ImportanceMatrix) -> None:
    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    expected = {name for name in names if name.startswith("blk.") and "norm" not in name}
    assert set(matrix.sums) == expected
    assert set(matrix.counts.values()) == {96}  # the last layer's too, of which a prompt computes one row only
    assert matrix.n_chunks == 3
    means = matrix.means()
    assert np.array_equal(means["blk.1.ffn_gate.weight"], means["blk.1.ffn_up.weight"])
    for first, second in (("attn_q", "attn_output"), ("ffn_up", "attn_q"), ("attn_output", "ffn_gate")):
        assert not np.allclose(means[f"blk.1.{first}.weight"], means[f"blk.1.{second}.weight"], rtol=0.01)


def test_the_output_matrix_is_seen_on_demand(path: Path) -> None:
    with_output = collect_imatrix(path, TEXT, n_ctx=32, chunks=2, n_threads=1, process_output=True)
    assert with_output.counts["output.weight"] == 64


def test_convert_and_llama_quantize_read_what_is_saved(path: Path, matrix: ImportanceMatrix, tmp_path: Path) -> None:
    out = tmp_path / "imatrix.gguf"
    matrix.save(out, dataset="stories.txt")
    loaded = Importance.load(out)
    assert (loaded.dataset, loaded.n_chunks, set(loaded.rows)) == ("stories.txt", 3, set(matrix.sums))
    for name, mean in matrix.means().items():
        assert loaded.rows[name] == pytest.approx(mean, rel=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == ["imatrix.gguf"]
    keys = list(gguf.GGUFReader(out).fields)
    wanted = ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert [key for key in keys if not key.startswith("GGUF.")] == wanted  # llama-imatrix's, and no others


def test_an_exception_while_watching_stops_the_decode_and_passes_on(path: Path) -> None:
    def see(name: str, key: int, rows: object) -> None:
        raise EvaluationError(f"enough of {name}")

    observer = MatrixObserver(lambda name, n_rows: name == "blk.1.attn_q.weight", see)
    with (
        NativeModel(path) as model,
        NativeContext(model, ContextOptions(n_ctx=64, n_threads=1), observer=observer) as context,
    ):
        for _ in range(2):  # and again: the fault is not kept
            context.clear()
            with pytest.raises(EvaluationError, match=r"enough of blk\.1\.attn_q\.weight"):
                context.decode([1, 5, 6], [0, 1, 2], 0, True)


def test_the_command_writes_a_file_and_says_what_it_saw(llamalite_command: Run, path: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    args = ["imatrix", path, "-f", "text.txt", "--ctx", "32", "--threads", "1"]
    done = llamalite_command(*args, "--chunks", "2", "-o", "out.gguf")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "14 matrices over 2 chunks of 32 tokens: out.gguf\n"
    failed = llamalite_command(*args, "-o", "none/out.gguf")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "there is no folder" in failed.stderr
