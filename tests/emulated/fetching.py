"""The parts of an emulated computer, fetched once into the user's cache folder: llama.cpp, Debian, wheels.

Each part has a folder named after its version, which appears only when it is complete. pip fetches from PyPI and apt
from Debian; apt uses a separate state folder, so that the system's does not get another architecture.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from llamalite.files.user_folders import cache_folder

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = cache_folder() / "emulated"
DEBIAN_PACKAGES = ("python3", "libstdc++6", "libgomp1", "libatomic1", "zlib1g")
WHEELS = (
    *("numpy", "gguf", "click", "tqdm", "safetensors", "tokenizers", "sentencepiece", "huggingface_hub", "jinja2"),
    *("pyyaml", "numba", "pytest", "hypothesis", "diskcache", "typing_extensions"),
)
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")


def whole(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache; if it does not exist, `make` fills a temporary one, which is then
    renamed."""
    folder = CACHE / name
    if not folder.is_dir():
        part = folder.with_name(f"{name}.part-{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            make(part)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def run(*command: str | Path, **environment: str) -> None:
    """Run a command silently; if it fails, `RuntimeError` with the end of its output."""
    result = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | environment,
    )
    if result.returncode:
        said = "\n".join(result.stdout.splitlines()[-30:])
        raise RuntimeError(f"{command[0]} ended with {result.returncode}:\n{said}")


def constraint(name: str) -> str:
    """The version of a package in constraints.txt."""
    pinned = re.search(rf"^{re.escape(name)}==([^;\s]+)", constraints_text(), re.M)
    assert pinned is not None, f"constraints.txt does not have {name}"
    return pinned[1]


def constraints_text() -> str:
    return (CHECKOUT / "constraints.txt").read_text(encoding="utf-8")


def pip(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments)


def llama_cpp_python() -> Path:
    """The source of llama-cpp-python in the version of constraints.txt, with the whole of llama.cpp: from its sdist."""
    name = f"llama_cpp_python-{constraint('llama-cpp-python')}"

    def make(part: Path) -> None:
        wanted = f"llama-cpp-python=={constraint('llama-cpp-python')}"
        pip("download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", part, wanted)
        archive = part / f"{name}.tar.gz"
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
        archive.unlink()

    return whole(f"{name}-source", make) / name


def arm64_debian() -> Path:
    """A folder with Debian's Python for ARM64 and the libraries it needs, to be the root of ``qemu-aarch64 -L``."""

    def make(part: Path) -> None:
        state, cache = part / "state", part / "cache"
        for folder in (state / "lists" / "partial", cache / "archives" / "partial"):
            folder.mkdir(parents=True)
        (state / "status").touch()  # an empty one: nothing is installed yet
        places = (f"Dir::State={state}", f"Dir::State::status={state / 'status'}", f"Dir::Cache={cache}")
        options = [f"-o{one}" for one in ("APT::Architecture=arm64", "APT::Architectures=arm64", *places)]
        options += ["-oAPT::Sandbox::User=root", "-oDebug::NoLocking=1"]
        run("apt-get", *options, "update")
        run("apt-get", *options, "install", "--yes", "--no-install-recommends", "--download-only", *DEBIAN_PACKAGES)
        for package in sorted((cache / "archives").glob("*.deb")):
            run("dpkg", "--extract", package, part / "root")
        shutil.rmtree(state)
        shutil.rmtree(cache)

    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(encoding="utf-8"), re.M)
    return whole(f"arm64-debian-{release[1] if release else 'unknown'}", make) / "root"


def python_of(root: Path) -> Path:
    """The interpreter in `root`: usr/bin/python3.11."""
    return next(path for path in sorted((root / "usr" / "bin").glob("python3.*")) if path.name.count(".") == 1)


def arm64_wheels(python: str) -> Path:
    """The packages that llamalite and its tests import, for ARM64 and Python `python` ("3.11")."""
    key = hashlib.sha256(repr((WHEELS, PLATFORMS, constraints_text())).encode()).hexdigest()[:12]

    def make(part: Path) -> None:
        # Not what has no wheels (the source is compiled for ARM64 beside them), nor lines that the tests do not need.
        pinned = part / "constraints.txt"
        lines = [line for line in constraints_text().splitlines() if not line.startswith("llama-cpp-python")]
        pinned.write_text("\n".join(lines), encoding="utf-8")
        options = [word for one in PLATFORMS for word in ("--platform", f"{one}_aarch64")]
        options += ["--python-version", python, "--implementation", "cp", "--only-binary", ":all:"]
        pip("install", "--no-compile", "--target", part / "site", "--constraint", pinned, *options, *WHEELS)

    return whole(f"arm64-python{python}-{key}", make) / "site"
