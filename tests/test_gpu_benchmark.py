"""benchmarks/gpu.py: it says if there is no GPU; its arithmetic, and its measurement of the CPU alone."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

import llamalite
from llamalite.native import devices


@pytest.fixture(scope="module")
def benchmark(root: Path) -> dict[str, Any]:
    return runpy.run_path(str(root / "benchmarks" / "gpu.py"))


@pytest.mark.skipif(any(one.is_gpu for one in devices.devices()), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_measures_nothing(root: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1])}
    command = [sys.executable, str(root / "benchmarks" / "gpu.py"), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no GPU: the installed llama-cpp-python has the backends CPU\nnothing was measured")
    assert not (tmp_path / "out.json").exists()


def test_the_distance_of_logits_is_what_it_says(benchmark: dict[str, Any]) -> None:
    base = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32)) + np.float32(3)
    found = benchmark["distance"](base, other)
    assert found["mean_kld"] == pytest.approx(0.5 * np.log(2) / 4, rel=1e-4)  # 0.5 ln 2 - 0.25 ln 2, and 0
    assert found["same_top"] == 0.5
    assert found["max_abs"] == pytest.approx(3 + np.log(2), rel=1e-5)
    assert benchmark["distance"](base, base) == {"max_abs": 0.0, "mean_kld": 0.0, "same_top": 1.0}


def test_the_cpu_alone_is_measured_and_is_its_own_reference(benchmark: dict[str, Any], tmp_path: Path) -> None:
    path = toy.write_toy(tmp_path / "toy.gguf")
    (record,) = benchmark["measure"](path, None, 16, 1, [0])
    assert record["tg_tok_per_s"] > 0
    assert record["pp_tok_per_s"] > 0
    assert (record["max_abs"], record["same_top"]) == (0.0, 1.0)
    assert benchmark["logits"](path, 0, None, 16).shape == (16, len(toy.vocabulary()))
