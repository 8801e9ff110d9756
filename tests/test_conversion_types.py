"""The types to convert to, and what decides a tensor's type; an option without effect is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_checkpoint import write_checkpoint

from llamalite.converters import QuantizeParams, convert, preview
from llamalite.errors import QuantizationError
from llamalite.native import quantize
from llamalite.quant_types import FILE_TYPES, TENSOR_TYPES, FileType


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "toy", n_layer=1, n_embd=64, n_ff=64)


def test_the_file_types_are_all_that_the_library_takes(source: Path, tmp_path: Path) -> None:
    """NVFP4 (39), say, has a number in llama.h, and llama_model_quantize makes no file of it."""
    whole = convert(source, tmp_path / "f32.gguf", qtype="F32").path
    taken = set()
    for ftype in [*range(128), 1024]:
        number = FileType(str(ftype), ftype, TENSOR_TYPES["F32"], "")
        try:
            quantize.model_file(whole, tmp_path / "made.gguf", number)
        except QuantizationError as error:
            if "invalid output file type" in str(error):
                continue  # other refusals are of this model: no importance matrix, rows too short
        taken.add(ftype)
    assert taken == {kind.ftype for kind in FILE_TYPES.values()}


OVERRIDES: dict[str, tuple[list[str], str | None]] = {
    "each decides something": (["attn_v=Q8_0", "attn_.*=Q6_K", "ffn=Q4_0"], None),
    "none is called so": (["atn_v=Q8_0", "attn_k=Q6_K"], "--tensor-type: atn_v=Q8_0 matches no matrix of this model"),
    "no matrix": (["_norm=Q8_0"], "--tensor-type: _norm=Q8_0 matches no matrix of this model"),
    "behind another": (
        ["attn=Q8_0", "attn_v=Q6_K"],
        "--tensor-type: attn_v=Q6_K matches only what earlier patterns match, such as attn=Q8_0",
    ),
    "behind two": (
        ["attn_v=Q8_0", "attn_k=Q6_K", r"attn_[vk]=Q4_0"],
        r"--tensor-type: attn_[vk]=Q4_0 matches only what earlier patterns match, such as attn_v=Q8_0",
    ),
    "two": (
        ["a^=Q8_0", "ffn=Q8_0", "ffn=Q6_K"],
        "--tensor-type: a^=Q8_0 matches no matrix of this model; "
        "ffn=Q6_K matches only what earlier patterns match, such as ffn=Q8_0",
    ),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_an_override_that_changes_nothing_is_reported_in_one_line(
    case: str, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words, warning = OVERRIDES[case]
    pairs = [word.rpartition("=") for word in words]
    params = QuantizeParams(overrides=[(pattern, TENSOR_TYPES[kind]) for pattern, _, kind in pairs])
    preview(source, "Q4_0", params=params)
    assert [record.message for record in caplog.records] == ([] if warning is None else [warning])


def test_overrides_change_nothing_in_a_file_of_floats(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = QuantizeParams(overrides=[("attn", TENSOR_TYPES["Q8_0"])])
    convert(source, tmp_path / "f16.gguf", qtype="F16", params=params)
    assert [record.message for record in caplog.records] == ["--tensor-type changes nothing in F16"]
    caplog.clear()
    convert(source, tmp_path, qtype=["F16", "Q4_0"], params=params)
    assert not caplog.records
