"""A GPU is used where there is one; where there is none, asking for it is refused by every verb, in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import toy
from conftest import Run

from llamalite import Model
from llamalite.errors import ModelLoadError
from llamalite.native import building, devices, library
from llamalite.native.model import NativeModel

HAS_GPU = library.llama().llama_supports_gpu_offload()
without_gpu = pytest.mark.skipif(HAS_GPU, reason="the installed llama-cpp-python has a GPU backend")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("devices") / "toy.gguf")


def test_the_cpu_is_a_device_with_memory() -> None:
    cpu = next(device for device in devices.devices() if device.kind == "cpu")
    assert (cpu.name, cpu.backend, cpu.is_gpu) == ("CPU", "CPU", False)
    assert cpu.total_bytes >= cpu.free_bytes > 2**20
    assert "CPU" in devices.backends()


def test_auto_uses_the_gpu_if_there_is_one() -> None:
    assert devices.offload("auto") == (-1 if HAS_GPU else 0)
    assert devices.offload(0) == 0
    for wrong in ("some", -2, True, 1.5):
        with pytest.raises(ValueError, match="n_gpu_layers must be 'auto', 'all' or a number of layers"):
            devices.offload(wrong)  # type: ignore[arg-type]


@without_gpu
@pytest.mark.parametrize(
    ("options", "asked"),
    [({"n_gpu_layers": "all"}, "all layers"), ({"n_gpu_layers": 7}, "7 layers"), ({"device": "CUDA0"}, "device CUDA0")],
)
def test_the_library_refuses_before_it_reads(path: Path, options: dict[str, Any], asked: str) -> None:
    with pytest.raises(ModelLoadError, match=f"{asked} on a GPU: the installed llama-cpp-python has no GPU backend"):
        Model(path, **options)
    native = {"n_gpu_layers": -1} if options.get("n_gpu_layers") == "all" else options
    with pytest.raises(ModelLoadError, match="has no GPU backend"):
        NativeModel(path, **native)


@without_gpu
@pytest.mark.parametrize("option", [("--gpu-layers", "all"), ("--gpu-layers", "3"), ("--device", "CUDA0")])
@pytest.mark.parametrize(
    "verb",
    [
        ("run", "MODEL", "hi"), ("batch", "MODEL", "-i", "in.jsonl", "-o", "out.jsonl"),
        ("perplexity", "MODEL", "-f", "text.txt"), ("compare", "MODEL", "MODEL", "-f", "text.txt"),
        ("imatrix", "MODEL", "-f", "text.txt", "-o", "out.gguf"), ("bench", "MODEL"),
    ],
)  # fmt: skip
def test_every_verb_refuses_a_gpu_that_is_not_there(
    llamalite_command: Run, tmp_path: Path, path: Path, verb: tuple[str, ...], option: tuple[str, str]
) -> None:
    (tmp_path / "text.txt").write_text("once upon a time")
    (tmp_path / "in.jsonl").write_text('{"prompt": "once"}\n')
    ran = llamalite_command(*(str(path) if word == "MODEL" else word for word in verb), *option)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1), ran.stderr
    assert "has no GPU backend (it has CPU)" in ran.stderr
    assert "pip install --force-reinstall" in ran.stderr
    assert "CMAKE_ARGS=" in ran.stderr
    assert "--extra-index-url https://abetlen.github.io/llama-cpp-python/whl/" in ran.stderr


@pytest.mark.parametrize(
    ("platform", "part"),
    [("darwin", 'CMAKE_ARGS="-DGGML_METAL=on" pip'), ("win32", '$env:CMAKE_ARGS="-DGGML_CUDA=on"; pip'),
     ("linux", 'CMAKE_ARGS="-DGGML_')],
)  # fmt: skip
def test_the_command_to_reinstall_is_that_of_the_platform(
    monkeypatch: pytest.MonkeyPatch, platform: str, part: str
) -> None:
    monkeypatch.setattr(building, "identity", lambda: "a processor without AMX")
    monkeypatch.setattr(sys, "platform", platform)
    assert devices.gpu_install_command().startswith(part)


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU backend")
def test_a_device_is_found_by_its_name_and_others_are_refused(path: Path) -> None:
    gpu = next(device for device in devices.devices() if device.is_gpu)
    with Model(path, device=gpu.name.lower()) as model:
        assert model.generate("once", max_tokens=1).totals.n_generated == 1
    with pytest.raises(ModelLoadError, match=f"no device 'Zzz0'.*{gpu.name}"):
        Model(path, device="Zzz0")
