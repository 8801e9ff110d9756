"""The wheel and the sdist: one top-level name, every module, and what they install can be imported and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest.importorskip("setuptools", minversion="77", reason="builds wheels without network: needs setuptools>=77")

LINK = Path("llamalite", "converters")


def build(tree: Path, kind: str, out: Path) -> Path:
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


def modules_of(root: Path) -> set[str]:
    """The modules of the checkout by their path in a wheel."""
    own = {path for path in (root / "llamalite").rglob("*.py") if (root / LINK) not in path.parents}
    names = {path.relative_to(root).as_posix() for path in own}
    return names | {f"llamalite/{path.relative_to(root).as_posix()}" for path in (root / "converters").rglob("*.py")}


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's files in git, with the link as Windows' git writes it: a text file."""
    copy = tmp_path_factory.mktemp("tree")
    leave = shutil.ignore_patterns("__pycache__", "*.so", "*.dylib", "*.egg-info")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy / name)
    for name in ("llamalite", "converters", "models/demo", "tests"):
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, symlinks=True, ignore=leave)
    (copy / LINK).unlink()
    (copy / LINK).write_text("../converters")
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_owns_one_name_and_holds_every_module(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"llamalite"}
    assert {name for name in names if name.endswith(".py")} == modules_of(root)
    assert "llamalite/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    shipped = {f"llamalite/demo/{path.name}" for path in (root / "models" / "demo").iterdir()}
    assert {name for name in names if name.startswith("llamalite/demo/")} == shipped


def test_the_wheel_is_what_the_sdist_builds_too(tree: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(tree, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build(unpacked, "wheel", tmp_path)
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        ours, theirs = (
            {i.filename: i.CRC for i in z.infolist() if ".dist-info" not in i.filename} for z in (one, other)
        )
    assert ours == theirs


def test_the_installed_wheel_is_what_is_imported_and_run(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel], check=True
    )
    code = (
        "import llamalite, llamalite.converters as c; print(llamalite.__file__); print(c.__file__); llamalite.convert"
    )
    environment = os.environ | {"PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(target) for line in done.stdout.splitlines())
    script = target / "bin" / "llamalite"
    command = [script] if script.exists() else [sys.executable, "-m", "llamalite"]
    done = subprocess.run([*command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("Usage: llamalite")


def test_pyproject_lists_every_package(root: Path) -> None:
    listed = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {str(Path(name).parent).replace("/", ".").replace("\\", ".") for name in modules_of(root)}
    assert there <= listed
    assert listed - there == {"llamalite.demo"}


def test_the_constraints_are_versions_that_pyproject_accepts(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    tested = ("test", "lint", "fast", "plot", "parity", "browser")  # the extras that the Makefile installs
    asked = [*project["dependencies"], *(one for name in tested for one in project["optional-dependencies"][name])]
    pins = [Requirement(line) for line in (root / "constraints.txt").read_text().splitlines() if line[:1] not in "#"]
    for requirement in map(Requirement, asked):
        ours = [pin for pin in pins if pin.name.replace("_", "-") == requirement.name.replace("_", "-")]
        assert ours, f"constraints.txt does not pin {requirement.name}"
        for pin in ours:
            (version,) = pin.specifier
            assert requirement.specifier.contains(version.version)
