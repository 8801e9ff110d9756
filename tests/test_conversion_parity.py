"""The files equal llama.cpp's: recorded digests check its first step, ``llama_model_quantize`` its second."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_checkpoint
from toy_importance import native_importance, native_overrides, write_importance

from llamalite import gguf_check
from llamalite.converters import Importance, QuantizeParams, convert
from llamalite.errors import QuantizationError
from llamalite.native import quantize
from llamalite.quant_types import FILE_TYPES, TENSOR_TYPES, file_type

# What convert_hf_to_gguf.py and llama-quantize of the pinned llama-cpp-python's source wrote for the checkpoints below:
#   python tests/record_digests.py LLAMA_CPP_SOURCE LLAMA_QUANTIZE
DIGESTS = json.loads((Path(__file__).parent / "data" / "llama_cpp_digests.json").read_text())

# 70B's eighty layers in two shapes, each with rows of 256 in one half of its matrices and almost nothing in the other:
# they meet all of llama.cpp's rules, with and without fallback, and codebooks are searched for only a million weights.
SHAPES: dict[str, dict[str, Any]] = {
    "untied": {"n_layer": 2, "n_embd": 256, "n_head": 8, "n_head_kv": 2, "n_ff": 256},
    "tied": {"n_layer": 32, "n_embd": 256, "n_head": 8, "n_head_kv": 8, "head_dim": 2, "n_ff": 8, "tied": True,
             "dtype": "F16", "tokenizer": "gpt2"},
    "70B-like, wide": {"n_layer": 80, "n_embd": 256, "n_head": 8, "n_head_kv": 1, "head_dim": 2, "n_ff": 8},
    "70B-like, deep": {"n_layer": 80, "n_embd": 8, "n_head": 8, "n_head_kv": 1, "head_dim": 32, "n_ff": 256},
    "odd: 32": {"n_layer": 2, "n_embd": 96, "n_head": 4, "n_head_kv": 4, "n_ff": 160, "dtype": "F32"},
    "odd: 72": {"n_layer": 2, "n_embd": 72, "n_head": 6, "n_head_kv": 3, "n_ff": 100, "bias": True},
    "odd: mixed": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_head_kv": 1, "head_dim": 64, "n_ff": 288,
                   "norm_dtype": "F32"},
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

FULL = ("untied", "tied", "70B-like, wide", "70B-like, deep", "odd: 32", "odd: 72", "odd: mixed")
FEW_TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ3_M")
NEEDS_MATRIX = {"Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}
# Blocks of 128 weights without a fallback: both refuse rows of another length.
NO_Q1_0 = tuple(shape for shape in FULL if shape != "untied")
MATRIX_FORM = {shape: ("dat" if shape.startswith("odd") else "gguf") for shape in FULL}
# The search in codebooks is slow: these types are compared on one shape, and on all of them only with PARITY=1.
CODEBOOKS = tuple(name for name in FILE_TYPES if name.startswith(("IQ1", "IQ2", "IQ3_X")))
ALL_SHAPES = pytest.mark.skipif(
    not os.environ.get("LLAMALITE_TEST_PARITY"), reason="codebooks on every shape: make test PARITY=1"
)

# --tensor-type and --pure: the lines of the table below the types.
OVERRIDES = [
    (r"attn_v", "Q8_0"), (r"blk\.([0-2]|7\d)\.ffn", "Q5_K"), (r"^(?!blk)[a-z]+_embd", "Q3_K"),
    (r"ffn_(down|up)\b", "IQ4_NL"), (r"[.]attn_[^qkv]+\.weight$", "Q6_K"),
]  # fmt: skip
RECIPES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "`--pure`": (["Q4_K_M", "Q3_K_L", "TQ2_0"], {"pure": True}),
    "`--tensor-type`": (["Q4_K_M", "IQ3_M"], {"overrides": OVERRIDES}),
    "`--tensor-type --pure`": (["Q4_K_M"], {"overrides": OVERRIDES, "pure": True}),
}


def types_of(shape: str, *, matrix: bool = False) -> list[str]:
    """The types that are compared on `shape`, with or without an importance matrix."""
    types = FILE_TYPES if shape in FULL else FEW_TYPES
    refused = set() if matrix else NEEDS_MATRIX
    return [name for name in types if name not in refused and not (name == "Q1_0" and shape in NO_Q1_0)]


def compared(shape: str, row: str) -> str:
    """The cell of docs/converter.md's table: what these tests compare."""
    if row in RECIPES:
        return "= ≡" if shape in FULL else ""
    plain = row in types_of(shape)
    with_matrix = shape in FULL and row in types_of(shape, matrix=True)
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


def hold_equal(
    source: Path, first_step: Path, types: list[str], folder: Path, importance: Importance | None = None, **how: Any
) -> None:
    """Convert `source` to all of `types` in one read, and compare each file with llama_model_quantize's.

    Whole files without a matrix; with one, all but the keys that llama-quantize, not the C API, records of it.
    """
    overrides = how.pop("overrides", [])
    params = QuantizeParams(importance, [(pattern, TENSOR_TYPES[name]) for pattern, name in overrides], **how)
    report = convert(source, folder, qtype=types, params=params, n_threads=2)
    options = dict(how)
    if overrides:
        options["tt_overrides"] = native_overrides(overrides)
    if importance is not None:
        options["imatrix"] = native_importance(importance.rows)
    theirs = folder / "theirs"
    for output in report.outputs:
        quantize.model_file(first_step, theirs, file_type(output.qtype), 2, **options)
        if importance is None:
            assert output.path.read_bytes() == theirs.read_bytes(), output.qtype
            continue
        ours, expected = gguf_check.read_header(output.path), gguf_check.read_header(theirs)
        assert [(t.name, t.type, t.shape) for t in ours.tensors] == [
            (t.name, t.type, t.shape) for t in expected.tensors
        ], output.qtype
        assert output.path.read_bytes()[ours.data_offset :] == theirs.read_bytes()[expected.data_offset :], output.qtype
        assert set(ours.metadata) - set(expected.metadata) == {
            "quantize.imatrix.file", "quantize.imatrix.dataset", "quantize.imatrix.entries_count",
            "quantize.imatrix.chunks_count",
        }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_type_is_what_llama_model_quantize_makes_of_it(
    shape: str, checkpoints: dict[str, Path], first_steps: dict[str, Path], tmp_path: Path
) -> None:
    hold_equal(checkpoints[shape], first_steps[shape], types_of(shape), tmp_path)


@pytest.fixture(scope="module")
def matrices(checkpoints: dict[str, Path]) -> dict[str, Importance]:
    """An importance matrix for each shape of `FULL`, read from one of the two forms."""
    return {
        shape: Importance.load(write_importance(checkpoints[shape] / f"imatrix.{form}", checkpoints[shape], seed=5))
        for shape, form in MATRIX_FORM.items()
    }


@pytest.mark.parametrize("shape", FULL)
def test_with_an_importance_matrix_too(
    shape: str,
    checkpoints: dict[str, Path],
    first_steps: dict[str, Path],
    matrices: dict[str, Importance],
    tmp_path: Path,
) -> None:
    types = [name for name in types_of(shape, matrix=True) if name not in CODEBOOKS]
    hold_equal(checkpoints[shape], first_steps[shape], types, tmp_path, matrices[shape])


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=[ALL_SHAPES] if shape != "tied" else []) for shape in FULL]
)
def test_with_codebooks_too(
    shape: str,
    checkpoints: dict[str, Path],
    first_steps: dict[str, Path],
    matrices: dict[str, Importance],
    tmp_path: Path,
) -> None:
    hold_equal(checkpoints[shape], first_steps[shape], [*CODEBOOKS], tmp_path, matrices[shape])


@pytest.mark.parametrize("with_matrix", [False, True])
@pytest.mark.parametrize("shape", FULL)
def test_overrides_and_pure_are_what_llama_model_quantize_makes_of_them(
    shape: str, with_matrix: bool, checkpoints: dict[str, Path], first_steps: dict[str, Path],
    matrices: dict[str, Importance], tmp_path: Path,
) -> None:  # fmt: skip
    for i, (types, how) in enumerate(RECIPES.values()):
        (tmp_path / str(i)).mkdir()
        matrix = matrices[shape] if with_matrix else None
        hold_equal(checkpoints[shape], first_steps[shape], types, tmp_path / str(i), matrix, **how)


@pytest.mark.parametrize("shape", NO_Q1_0)
def test_rows_that_no_block_of_q1_0_fills_are_refused_by_both(
    shape: str, checkpoints: dict[str, Path], first_steps: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError):
        quantize.model_file(first_steps[shape], tmp_path / "theirs.gguf", file_type("Q1_0"), 2)
    with pytest.raises(QuantizationError, match="no fallback"):
        convert(checkpoints[shape], tmp_path / "ours.gguf", qtype="Q1_0")


@pytest.mark.parametrize("qtype", sorted(NEEDS_MATRIX))
def test_a_type_that_needs_a_matrix_says_so_before_anything_is_written(
    qtype: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError, match=f"{qtype} needs an importance matrix for blk.0.* pass one with"):
        convert(checkpoints["untied"], tmp_path / "out.gguf", qtype=qtype)
    assert not list(tmp_path.iterdir())


def test_several_types_in_one_read_are_the_same_files(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = checkpoints["untied"]
    report = convert(source, tmp_path, qtype=["Q4_K_M", "F32", "BF16", "Q8_0"])
    for output in report.outputs:
        single = convert(source, tmp_path / "single.gguf", qtype=output.qtype, force=True)
        assert output.path.read_bytes() == single.path.read_bytes()


def test_the_bytes_do_not_depend_on_threads_or_chunks(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoints["untied"]
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
