"""On emulated computers - ARM64, x86-64 without AVX and with AVX2 only - llamalite does what it does on this one.

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
# Ggml's conversions to these types round in one way only; what searches for a scale sums products, which ARM64's
# compilers contract to fused multiply-adds, so that other bytes are right there.
ALIKE_EVERYWHERE = ("Q8_0", "F16")

Ask = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Machine:
    found: Machine = request.param
    asked = os.environ.get("LLAMALITE_TEST_EMULATED", "")
    if not asked or not found.name.startswith("" if asked == "1" else asked):
        pytest.skip("not asked for: make arm, make x86-levels, or make test EMULATED=1")
    if missing := found.missing():
        pytest.skip(missing)
    return found


@pytest.fixture
def ask(machine: Machine, tmp_path: Path, root: Path) -> Ask:
    """Run the machine's Python in the checkout: ``ask("-m", "llamalite", "--version")``; it must succeed."""
    python = machine.python(tmp_path / machine.name)

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), *map(str, arguments)]
        settings = os.environ | {"LLAMALITE_TEST_PARITY": ""} | environment
        result = subprocess.run(command, cwd=root, env=settings, capture_output=True, text=True, timeout=900)
        assert result.returncode == 0, f"{result.stdout[-6000:]}\n{result.stderr[-3000:]}"
        return result

    return run


on_each = pytest.mark.parametrize("machine", MADE, indirect=True, ids=lambda machine: machine.name)
on_each_that_decodes = pytest.mark.parametrize(
    "machine", [one for one in MADE if one.decodes], indirect=True, ids=lambda machine: machine.name
)


@on_each
def test_the_kernels_make_the_bytes_of_that_ggml(ask: Ask) -> None:
    ask(
        *("-m", "pytest", "tests/test_kernels.py", "-q", "-p", "no:cacheprovider", "-W", "default"),
        LLAMALITE_TEST_EXAMPLES="3",
    )


@on_each_that_decodes
def test_a_conversion_has_the_bytes_that_it_should_and_answers(
    ask: Ask, machine: Machine, tmp_path: Path, root: Path, llamalite_command: Callable[..., object]
) -> None:
    demo, types = root / "models" / "demo", ("Q4_K_M", *ALIKE_EVERYWHERE)
    convert = ("convert", demo, "--force", *(word for name in types for word in ("-t", name)), "-o")
    here, there, with_ggml = (tmp_path / name for name in ("here", "there", "with-ggml"))
    llamalite_command(*convert, here)
    ask("-m", "llamalite", *convert, there, LLAMALITE_KERNELS="fast")
    ask("-m", "llamalite", *convert, with_ggml, LLAMALITE_KERNELS="ggml")
    for name in types:
        file = f"demo-{name}.gguf"
        assert (there / file).read_bytes() == (with_ggml / file).read_bytes(), name
        if name in ALIKE_EVERYWHERE or not machine.is_arm:
            assert (there / file).read_bytes() == (here / file).read_bytes(), name
    answer = ask("-m", "llamalite", "run", there / "demo-Q4_K_M.gguf", "What is the capital of France?").stdout
    assert "Paris" in answer
