"""On emulated computers (ARM64, x86-64 without AVX and with AVX2 only) llamalite gives the same results as here.

`make arm` and `make x86-levels` ask for these tests; tests/emulated/machines.py makes the computers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import MACHINES, Machine

pytestmark = [pytest.mark.emulated, pytest.mark.slow]
MADE = [machine for machine in MACHINES.values() if machine.options is not None]
# ggml rounds these the same way everywhere. A search for a scale sums products, which compilers for ARM64 contract to
# fused multiply-adds: there the correct bytes are those of that machine's ggml.
ALIKE_EVERYWHERE = ("Q8_0", "F16")

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Machine:
    found: Machine = request.param
    asked = os.environ.get("LLAMALITE_TEST_EMULATED", "")
    if not asked or not (asked == "1" or found.name.startswith(asked)):
        pytest.skip("not asked for: make arm, make x86-levels, or make test EMULATED=1")
    if missing := found.missing():
        pytest.skip(missing)
    return found


@pytest.fixture
def python_there(machine: Machine, tmp_path: Path, root: Path) -> Command:
    """Run the machine's Python in the checkout: ``python_there("-m", "llamalite", "--version")``."""
    python = machine.python(tmp_path / machine.name)

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), *map(str, arguments)]
        settings = os.environ | {"LLAMALITE_TEST_PARITY": ""} | environment
        return subprocess.run(command, cwd=root, env=settings, capture_output=True, text=True, timeout=1800)

    return run


def on(machines: list[Machine]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("machine", machines, indirect=True, ids=[machine.name for machine in machines])


def said(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, f"{result.stdout[-6000:]}\n{result.stderr[-3000:]}"
    return result.stdout


@on(MADE)
def test_the_kernels_make_the_bytes_of_the_ggml_there(machine: Machine, python_there: Command) -> None:
    tests = "bytes_are_those_of_ggml or with_an_importance_matrix or strange_rows or passes_its_trial"
    out = said(python_there("-m", "pytest", "tests/test_kernels.py", "-q", "-p", "no:cacheprovider", "-k", tests))
    assert " passed" in out


@on([machine for machine in MADE if machine.decodes])
def test_a_conversion_has_the_right_bytes_and_answers(
    machine: Machine, python_there: Command, llamalite_command: Command, tmp_path: Path, root: Path
) -> None:
    types = ("Q4_K_M", *ALIKE_EVERYWHERE)
    convert = ("convert", root / "models" / "demo", *(word for name in types for word in ("--type", name)), "--output")
    here, fast, ggml = (tmp_path / name for name in ("here", "fast", "ggml"))
    said(llamalite_command(*convert, here))
    said(python_there("-m", "llamalite", *convert, fast, LLAMALITE_KERNELS="fast"))
    said(python_there("-m", "llamalite", *convert, ggml, LLAMALITE_KERNELS="ggml"))
    for name in types:
        (file,) = (path.name for path in here.glob(f"*-{name}.gguf"))
        assert (fast / file).read_bytes() == (ggml / file).read_bytes(), name
        if name in ALIKE_EVERYWHERE or not machine.is_arm:
            assert (fast / file).read_bytes() == (here / file).read_bytes(), name
    (model,) = fast.glob("*-Q4_K_M.gguf")
    answer = said(python_there("-m", "llamalite", "run", model, "What is the capital of France?"))
    assert "Paris" in answer


@on([MACHINES["x86-64-too-old"]])
def test_an_older_processor_is_told_what_to_do_about_the_installed_llama_cpp(
    machine: Machine, python_there: Command, root: Path
) -> None:
    refused = python_there("-m", "llamalite", "run", root / "models" / "demo", "Hello")
    if refused.returncode == 0:
        pytest.skip("the installed llama.cpp runs on a processor without AVX")
    assert refused.returncode == 1, refused.stderr
    assert "cannot run on this processor (illegal instruction): it was compiled for processors with " in refused.stderr
    assert "AVX2" in refused.stderr
    assert "pip install" in refused.stderr
