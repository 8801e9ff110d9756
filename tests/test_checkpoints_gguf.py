"""A GGUF file as the source of another: llama-quantize's bytes, keys copied, nothing quantized twice unless allowed."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import toy
from planned import plan_of
from toy_checkpoint import write_checkpoint

from llamalite.converters import QuantizeParams, convert
from llamalite.converters.checkpoints import open_checkpoint
from llamalite.errors import CheckpointError, GGUFError, QuantizationError, UnsupportedArchitectureError
from llamalite.native import quantize as native
from llamalite.quant_types import FILE_TYPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("gguf") / "toy", n_layer=1, n_embd=256, n_ff=256, n_head_kv=2, dtype="BF16"
    )


def by_llama_cpp(source: Path, target: Path, qtype: str, **options: bool) -> bytes:
    native.model_file(source, target, FILE_TYPES[qtype], **options)
    return target.read_bytes()


@pytest.mark.parametrize("source_type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("qtype", ["Q4_K_M", "F16", "BF16", "F32"])
def test_a_file_becomes_what_llama_quantize_makes_from_it(
    folder: Path, tmp_path: Path, source_type: str, qtype: str
) -> None:
    source = convert(folder, tmp_path / "source.gguf", qtype=source_type).path
    expected = by_llama_cpp(source, tmp_path / "theirs.gguf", qtype)
    assert convert(source, tmp_path / "ours.gguf", qtype=qtype).path.read_bytes() == expected


def test_two_steps_give_the_same_file_as_one(folder: Path, tmp_path: Path) -> None:
    once = convert(folder, tmp_path / "once.gguf", qtype="Q4_K_M").path
    between = convert(folder, tmp_path / "between.gguf", qtype="BF16").path
    assert convert(between, tmp_path / "twice.gguf", qtype="Q4_K_M").path.read_bytes() == once.read_bytes()


def test_foreign_keys_of_every_type_are_carried_over(tmp_path: Path) -> None:
    metadata = {"house.name": "größer", "house.rooms": -7, "house.height": 2.5, "house.warm": True}
    source = toy.write_toy(tmp_path / "a.gguf", chat_template=toy.CHATML, metadata=metadata)
    expected = by_llama_cpp(source, tmp_path / "theirs.gguf", "Q8_0")
    assert convert(source, tmp_path / "ours.gguf", qtype="Q8_0").path.read_bytes() == expected
    fields = gguf.GGUFReader(tmp_path / "ours.gguf").fields
    assert {key: fields[key].contents() for key in metadata} == metadata


def test_several_types_are_made_in_one_read(folder: Path, tmp_path: Path) -> None:
    source = convert(folder, tmp_path / "toy-F16.gguf", qtype="F16").path
    report = convert(source, tmp_path, qtype=["Q4_K_M", "Q8_0"])
    assert [output.path.name for output in report.outputs] == ["toy-Q4_K_M.gguf", "toy-Q8_0.gguf"]
    for output in report.outputs:
        assert output.path.read_bytes() == by_llama_cpp(source, tmp_path / "theirs.gguf", output.qtype)


# -- quantized already ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source_type", ["Q8_0", "Q5_1", "Q4_K_M", "IQ4_NL"])
def test_a_quantized_file_is_quantized_again_only_when_asked_to(folder: Path, tmp_path: Path, source_type: str) -> None:
    source = convert(folder, tmp_path / "source.gguf", qtype=source_type).path
    with pytest.raises(QuantizationError, match=r"\.weight is \S+ already and would become \S+: .*--allow-requantize"):
        convert(source, tmp_path / "ours.gguf", qtype="Q3_K_M")
    assert not (tmp_path / "ours.gguf").exists()
    expected = by_llama_cpp(source, tmp_path / "theirs.gguf", "Q3_K_M", allow_requantize=True)
    result = convert(
        source, tmp_path / "ours.gguf", qtype="Q3_K_M", params=QuantizeParams(allow_requantize=True)
    ).path.read_bytes()
    assert result == expected


def test_tensors_that_keep_their_type_keep_their_bytes(folder: Path, tmp_path: Path) -> None:
    source = convert(folder, tmp_path / "source.gguf", qtype="Q4_K_M").path
    assert convert(source, tmp_path / "copy.gguf", qtype="Q4_K_M").path.read_bytes() == source.read_bytes()


def test_the_command_names_the_option_that_allows_it(folder: Path, tmp_path: Path, llamalite_command) -> None:  # type: ignore[no-untyped-def]
    source = convert(folder, tmp_path / "toy-Q8_0.gguf", qtype="Q8_0").path
    refused = llamalite_command("convert", source, "-t", "Q4_0", "-o", "again.gguf")
    assert refused.returncode == 1
    assert "--allow-requantize" in refused.stderr
    assert llamalite_command("convert", source, "-t", "Q4_0", "-o", "again.gguf", "--allow-requantize").returncode == 0
    assert (tmp_path / "again.gguf").exists()


# -- split models -----------------------------------------------------------------------------------------------------


def split(source: Path, stem: str, n: int) -> list[Path]:
    """The file at `source` as a set of `n` files, as llama-gguf-split makes it."""
    reader = gguf.GGUFReader(source)
    paths = []
    for i in range(n):
        paths.append(source.with_name(f"{stem}-{i + 1:05}-of-{n:05}.gguf"))
        writer = gguf.GGUFWriter(paths[-1], "llama")
        for field in reader.fields.values() if i == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[0]
                sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", n)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[i::n]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_a_split_model_becomes_one_file(folder: Path, tmp_path: Path) -> None:
    whole = convert(folder, tmp_path / "whole.gguf", qtype="F16").path
    first, *_ = split(whole, "toy", 3)
    expected = by_llama_cpp(first, tmp_path / "theirs.gguf", "Q4_K_M")
    assert convert(first, tmp_path / "ours.gguf", qtype="Q4_K_M").path.read_bytes() == expected


def test_an_incomplete_split_model_is_refused(folder: Path, tmp_path: Path) -> None:
    first, second, _ = split(convert(folder, tmp_path / "whole.gguf", qtype="F16").path, "toy", 3)
    with pytest.raises(GGUFError, match="not the first"):
        plan_of(second)
    second.unlink()
    with pytest.raises(GGUFError, match=r"toy-00002-of-00003\.gguf"):
        plan_of(first)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_other_architectures_and_experts_are_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "phi.gguf", "phi3")
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        UnsupportedArchitectureError, match=r"phi\.gguf is of the architecture phi3; llamalite supports dense"
    ):
        plan_of(tmp_path / "phi.gguf")


def test_a_damaged_file_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    source = convert(folder, tmp_path / "source.gguf", qtype="F16").path
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(GGUFError, match="damaged or incomplete"):
        convert(source, tmp_path / "ours.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.gguf"]


def test_a_file_that_is_not_gguf_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(struct.pack("<4sI", b"GGML", 3))
    with pytest.raises(CheckpointError, match="is not a GGUF file: pass one, or the folder"):
        open_checkpoint(tmp_path / "model.gguf")
