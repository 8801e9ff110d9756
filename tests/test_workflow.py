"""`.github/workflows/test.yml` is valid, runs what CONTRIBUTING.md says, on the systems that README.md names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def path(root: Path) -> Path:
    return root / ".github" / "workflows" / "test.yml"


@pytest.fixture
def job(path: Path) -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]["test"]
    return job


def actionlint(path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("actionlint", path=sysconfig.get_path("scripts"))
    if program is None:
        pytest.skip("actionlint is not installed: pip install '.[test]', on Linux")
    return subprocess.run([program, "-no-color", path], capture_output=True, text=True)


def test_the_workflow_is_valid(path: Path) -> None:
    done = actionlint(path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong"), [("runs-on:", "run-on:"), ("matrix.runner }}", "matrix.machine }}"), ("cache@v5", "cache@v2")]
)
def test_a_workflow_that_github_would_refuse_is_found(path: Path, tmp_path: Path, right: str, wrong: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(right) == 1
    (tmp_path / "test.yml").write_text(text.replace(right, wrong), encoding="utf-8")
    assert actionlint(tmp_path / "test.yml").returncode == 1


def test_the_readme_names_the_systems(job: dict[str, Any], root: Path) -> None:
    limits = (root / "README.md").read_text(encoding="utf-8").partition("## Limits")[2]
    systems = [one["system"] for one in job["strategy"]["matrix"]["include"]]
    named = re.search(r"runs the tests on ([^.]+)\.", limits)
    assert named is not None
    assert re.split(", | and ", named[1].replace("\n", " ")) == systems


def test_without_make_the_commands_are_those_of_contributing(job: dict[str, Any], root: Path) -> None:
    (block,) = re.findall(r"```bat\n(.*?)```", (root / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    told = re.split("\n| && ", block.strip().replace("\\", "/").replace("py -3.12", "python"))
    (run,) = (step["run"] for step in job["steps"] if "venv" in step.get("run", ""))
    assert run.strip().splitlines() == told
    assert sum(step.get("run") == "make test" for step in job["steps"]) == 1


def test_the_wheel_is_cached_under_its_own_key(job: dict[str, Any]) -> None:
    (cache,) = (step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/cache@"))
    assert cache["path"] == "${{ steps.wheels.outputs.folder }}"
    assert cache["key"].endswith("-${{ steps.wheels.outputs.key }}")
    (key,) = (step["run"] for step in job["steps"] if step.get("id") == "wheels")
    assert "building" in key
