"""The files are llama.cpp's own: the first step by recorded digests, the second beside ``llama_model_quantize``."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_checkpoint
from toy_importance import native_importance, native_overrides, write_importance

from llamalite import gguf_check
from llamalite.converters import Importance, Recipe, convert
from llamalite.errors import QuantizationError
from llamalite.native import quantize
from llamalite.quant_types import FILE_TYPES, TENSOR_TYPES, file_type

# What convert_hf_to_gguf.py and llama-quantize of the pinned llama-cpp-python's source wrote for the checkpoints below:
#   python tests/record_digests.py LLAMA_CPP_SOURCE LLAMA_QUANTIZE
DIGESTS = json.loads((Path(__file__).parent / "data" / "llama_cpp_digests.json").read_text())

SHAPES: dict[str, dict[str, Any]] = {
    "rows of 256": {"n_layer": 9, "n_embd": 256, "n_head": 8, "n_head_kv": 2, "n_ff": 512},
    "rows of 256, tied": {"n_layer": 3, "n_embd": 256, "n_ff": 256, "tied": True, "dtype": "F16", "tokenizer": "gpt2"},
    "rows of 32": {"n_layer": 2, "n_embd": 96, "n_head": 4, "n_head_kv": 4, "n_ff": 160, "dtype": "F32"},
    "rows of neither": {"n_layer": 2, "n_embd": 72, "n_head": 6, "n_head_kv": 3, "n_ff": 100, "bias": True},
    "rows mixed": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_head_kv": 1, "head_dim": 64, "n_ff": 288,
                   "norm_dtype": "F32"},
    "70B-like": {"n_layer": 80, "n_embd": 32, "n_head": 8, "n_head_kv": 1, "n_ff": 32, "tied": True},
    "llama3 scaling": {
        "n_embd": 128, "n_head": 2, "n_head_kv": 1, "n_ff": 256, "tokenizer": "gpt2", "tied": True, "n_shards": 3,
        "rope_theta": 500000.0, "max_position_embeddings": 131072,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    },
    "yarn, transformers 5": {
        "n_embd": 64, "n_ff": 64, "dtype": "F64",
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0,
                            "beta_slow": 1.0, "original_max_position_embeddings": 128},
    },
    "Mistral, linear": {
        "n_embd": 64, "n_ff": 64, "architectures": ["MistralForCausalLM"], "model_type": "mistral",
        "rope_scaling": {"type": "linear", "factor": 2.0}, "norm_dtype": "F16",
    },
}  # fmt: skip

FULL = ("rows of 256", "rows of 256, tied", "rows of 32", "rows of neither")
FEW_TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ3_M")
MATRIX_TYPES = ("Q2_K_S", "IQ3_XXS", "IQ2_M", "IQ2_XS", "IQ1_S", "IQ1_M", "IQ3_XS", "Q4_0", "Q5_0", "Q4_K_M", "IQ4_XS")
NEEDS_MATRIX = {"Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}


MATRIX_SHAPES = [("rows of 256, tied", "gguf"), ("rows of 32", "dat"), ("rows of neither", "gguf")]


def types_of(shape: str) -> list[str]:
    """The types that are compared on `shape` without an importance matrix."""
    return [qtype for qtype in (FILE_TYPES if shape in FULL else FEW_TYPES) if qtype not in NEEDS_MATRIX]


def compared(shape: str, qtype: str) -> str:
    """The cell of docs/converter.md's table: what these tests hold equal."""
    plain = qtype in types_of(shape)
    with_matrix = qtype in MATRIX_TYPES and shape in dict(MATRIX_SHAPES)
    return {(True, True): "= ≡", (True, False): "=", (False, True): "≡", (False, False): ""}[plain, with_matrix]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: toy_checkpoint.write_checkpoint(folder / "toy" / name, **shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_unquantized_file_is_that_of_llama_cpps_converter(
    shape: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    expected = DIGESTS["files"][shape]
    report = convert(checkpoints[shape], tmp_path / "out.gguf", qtype=expected["outtype"].upper())
    assert hashlib.sha256(report.path.read_bytes()).hexdigest() == expected["sha256"]


@pytest.fixture(scope="module")
def first_steps(checkpoints: dict[str, Path]) -> dict[str, Path]:
    """llama.cpp's unquantized files, which `test_the_unquantized_file_is_that_of_llama_cpps_converter` vouches for."""
    made = {}
    for name, folder in checkpoints.items():
        made[name] = folder / "step1.gguf"
        convert(folder, made[name], qtype=DIGESTS["files"][name]["outtype"].upper())
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_every_type_is_what_llama_model_quantize_makes_of_it(
    shape: str, checkpoints: dict[str, Path], first_steps: dict[str, Path], tmp_path: Path
) -> None:
    types = types_of(shape)
    refused = []
    for qtype in types:
        try:
            quantize.model_file(first_steps[shape], tmp_path / f"{qtype}.gguf", file_type(qtype), 2)
        except QuantizationError:  # noqa: PERF203 - one in thirty-five
            refused.append(qtype)
            with pytest.raises(QuantizationError, match="no fallback"):  # refused there, refused here
                convert(checkpoints[shape], tmp_path / "ours.gguf", qtype=qtype)
    assert set(refused) <= {"Q1_0"}
    report = convert(checkpoints[shape], tmp_path, qtype=[qtype for qtype in types if qtype not in refused])
    for one in report.outputs:
        assert one.path.read_bytes() == (tmp_path / f"{one.qtype}.gguf").read_bytes(), one.qtype


# The first shape is large, and codebooks are searched slowly.
@pytest.mark.parametrize(("shape", "form"), MATRIX_SHAPES)
def test_with_an_importance_matrix_too(
    shape: str, form: str, checkpoints: dict[str, Path], first_steps: dict[str, Path], tmp_path: Path
) -> None:
    """``llama_model_quantize`` gets the same rows; the keys that llama-quantize adds are looked at by themselves."""
    path = write_importance(tmp_path / f"imatrix.{form}", checkpoints[shape], seed=5)
    importance = Importance.load(path)
    report = convert(
        checkpoints[shape], tmp_path, qtype=[*MATRIX_TYPES], recipe=Recipe(importance=importance), n_threads=2
    )
    for one in report.outputs:
        theirs = tmp_path / "theirs.gguf"
        quantize.model_file(
            first_steps[shape], theirs, file_type(one.qtype), 2, imatrix=native_importance(importance.rows)
        )
        ours, expected = gguf_check.read_header(one.path), gguf_check.read_header(theirs)
        assert [(t.name, t.type, t.shape) for t in ours.tensors] == [
            (t.name, t.type, t.shape) for t in expected.tensors
        ]
        assert one.path.read_bytes()[ours.data_offset :] == theirs.read_bytes()[expected.data_offset :], one.qtype
        assert set(ours.metadata) - set(expected.metadata) == {
            "quantize.imatrix.file", "quantize.imatrix.dataset", "quantize.imatrix.entries_count",
            "quantize.imatrix.chunks_count",
        }  # fmt: skip


def test_overrides_and_pure_are_what_llama_model_quantize_makes_of_them(
    checkpoints: dict[str, Path], first_steps: dict[str, Path], tmp_path: Path
) -> None:
    overrides = [(r"attn_v", "Q8_0"), (r"blk\.[0-2]\.ffn", "Q5_K"), (r"ffn_down", "IQ4_NL"), (r"token", "Q3_K")]
    ours = [(pattern, TENSOR_TYPES[name]) for pattern, name in overrides]
    for shape in ("rows of 256", "rows of 32"):
        for pure in (False, True):
            quantize.model_file(
                first_steps[shape], tmp_path / "theirs.gguf", file_type("Q4_K_M"), 2, pure=pure,
                tt_overrides=native_overrides(overrides),
            )  # fmt: skip
            recipe = Recipe(overrides=ours, pure=pure)
            convert(checkpoints[shape], tmp_path / "ours.gguf", qtype="Q4_K_M", recipe=recipe, force=True)
            assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("qtype", sorted(NEEDS_MATRIX))
def test_a_type_that_needs_a_matrix_says_so_before_anything_is_written(
    qtype: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError, match=f"{qtype} needs an importance matrix for blk.0.* pass one with"):
        convert(checkpoints["rows of 256"], tmp_path / "out.gguf", qtype=qtype)
    assert not list(tmp_path.iterdir())


def test_several_types_in_one_read_are_the_same_files(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = checkpoints["rows of 256"]
    report = convert(source, tmp_path, qtype=["Q4_K_M", "F32", "BF16", "Q8_0"])
    for output in report.outputs:
        single = convert(source, tmp_path / "single.gguf", qtype=output.qtype, force=True)
        assert output.path.read_bytes() == single.path.read_bytes()


def test_the_bytes_do_not_depend_on_threads_or_chunks(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoints["rows of 256"]
    whole = convert(source, tmp_path / "whole.gguf", qtype="Q4_K_M", n_threads=1).path.read_bytes()
    monkeypatch.setattr("llamalite.converters.pipeline.CHUNK_WEIGHTS", 3 * 256)
    assert convert(source, tmp_path / "cut.gguf", qtype="Q4_K_M", n_threads=5).path.read_bytes() == whole


def test_the_type_table_is_that_of_the_installed_library() -> None:
    for kind in TENSOR_TYPES.values():
        assert quantize.block_layout(kind.ggml_type) == (kind.block_size, kind.block_bytes), kind.name


@pytest.mark.parametrize("qtype", [name for name in FILE_TYPES if FILE_TYPES[name].tensor_type.scales])
def test_an_overflowing_scale_is_seen_where_the_table_says(qtype: str) -> None:
    """`scales` is the only place where a block of huge weights turns infinite."""
    kind = FILE_TYPES[qtype].tensor_type
    rows = np.full((1, kind.block_size), 3e9, np.float32)
    importance = np.ones(kind.block_size, np.float32)
    block = quantize.quantize_rows(kind, rows, importance=importance)
    scales = [block[0, at : at + 2].copy().view(np.float16)[0] for at in kind.scales]
    assert not np.isfinite(scales).all()


def test_the_table_in_the_docs_is_what_is_compared_here(root: Path) -> None:
    namespace = runpy.run_path(str(root / "docs" / "write_parity.py"))
    text = (root / "docs" / "converter.md").read_text(encoding="utf-8")
    assert namespace["page"](text) == text, "run: python docs/write_parity.py"
