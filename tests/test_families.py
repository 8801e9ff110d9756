"""Every family of the README becomes the same file as with llama.cpp's converter, except for deliberate differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import pytest

from llamalite.converters import convert
from llamalite.native.model import NativeModel

RECORDED: dict[str, Any] = json.loads(families.DATA.read_text(encoding="utf-8"))
# Written only by the first of llama.cpp's two steps, or rewritten by the second.
_OF_STEPS = {"general.file_type", "general.quantization_version"}


@pytest.mark.parametrize("name", families.FAMILIES)
def test_keys_and_tensors_are_those_of_llama_cpps_converter(name: str, tmp_path: Path) -> None:
    family = families.FAMILIES[name]
    folder = families.write(tmp_path, name)
    stored = family.sizes.get("dtype", "BF16")
    report = convert(folder, tmp_path / "out.gguf", qtype=stored)
    actual, expected = families.described(report.path), RECORDED[name]
    assert actual["tensors"] == expected["tensors"]
    ours, theirs = (
        {key: rest for key, *rest in recorded["keys"] if key not in _OF_STEPS} for recorded in (actual, expected)
    )
    assert {key for key in ours | theirs if ours.get(key) != theirs.get(key)} == family.differs
    both = [key for key in theirs if key in ours]
    assert [key for key in ours if key in theirs] == both, "the order of the keys"
    assert report.tokens is not None
    assert not report.tokens.differences


def test_the_ends_of_llama_31_all_stop_a_generation(tmp_path: Path) -> None:
    folder = families.write(tmp_path, "Llama-3.1-8B-Instruct")
    path = convert(folder, tmp_path / "out.gguf", qtype="F16").path
    ends = json.loads((folder / "config.json").read_text())["eos_token_id"]
    with NativeModel(path, vocab_only=True) as model:
        assert all(model.is_eog(token) for token in ends)
