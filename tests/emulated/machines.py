"""Computers that are not there: ARM64, and x86-64 of several ages, emulated by QEMU for one process at a time.

    python tests/emulated/machines.py                                       what there is, and what is missing for it
    python tests/emulated/machines.py arm64-gcc                             fetch and compile what it needs
    python tests/emulated/machines.py arm64-gcc -m llamalite --version      run its Python

A machine is a `python`, a script in a folder of the caller's that starts QEMU with the real interpreter. Python finds the
script as `sys.executable`, so that the processes which it starts are emulated too. What is fetched and compiled lies in
the user's cache folder, and is made once for each version.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import fetching  # noqa: E402 - found beside this file
from fetching import CACHE  # noqa: E402

import llamalite  # noqa: E402 - the package that is run there, installed or of the checkout

# As the package llama-cpp-python is built, but for the instructions of any processor of the kind, only the libraries, and
# without OpenMP, which clang does not have for ARM64. What quantizes and dequantizes is C, and compiled as ever; C++ as
# fast as it compiles.
OPTIONS = (
    *("CMAKE_BUILD_TYPE=Release", "CMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG", "BUILD_SHARED_LIBS=ON"),
    *("GGML_NATIVE=OFF", "GGML_OPENMP=OFF", "GGML_CCACHE=OFF", "GGML_ALL_WARNINGS=OFF", "LLAMA_ALL_WARNINGS=OFF"),
    *(f"LLAMA_BUILD_{one}=OFF" for one in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")),
)
CROSS = ("CMAKE_SYSTEM_NAME=Linux", "CMAKE_SYSTEM_PROCESSOR=aarch64")
SETS = ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")


@dataclass(frozen=True)
class Machine:
    """A processor that QEMU emulates, and the llama.cpp compiled for it (`options` of CMake; None: the installed one)."""

    name: str
    about: str
    qemu: tuple[str, ...]
    compiler: str
    options: tuple[str, ...] | None
    needs: dict[str, str]
    target: str = "llama"

    @property
    def is_arm(self) -> bool:
        return self.qemu[0] == "qemu-aarch64-static"

    @property
    def decodes(self) -> bool:
        """Whether the whole of llama.cpp is there, and not only ggml's kernels."""
        return self.target == "llama"

    def missing(self) -> str:
        """What this computer lacks to emulate the machine, and how to get it; empty if nothing."""
        if sys.platform != "linux" or (not self.is_arm and platform.machine() != "x86_64"):
            return f"QEMU emulates a process only on Linux{'' if self.is_arm else ', here on x86-64'}"
        lacking = {package: command for command, package in self.needs.items() if shutil.which(command) is None}
        if not lacking:
            return ""
        return f"{', '.join(sorted(lacking.values()))} not found: apt-get install {' '.join(sorted(lacking))}"

    def make(self) -> None:
        """Fetch and compile what is not there yet."""
        if missing := self.missing():
            raise RuntimeError(f"{self.name}: {missing}")
        self._interpreter()
        self._llama_cpp()

    def python(self, folder: Path) -> Path:
        """Write into `folder` the script that is this machine's Python, with the llamalite that is imported here."""
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "package" / "llamalite"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(llamalite.__file__).parent, target_is_directory=True)
        interpreter, home, packages = self._interpreter()
        places = (link.parent, *self._llama_cpp(), packages)
        settings = {"PYTHONHOME": str(home), "PYTHONPATH": ":".join(map(str, places)), "PYTHONDONTWRITEBYTECODE": "1"}
        script = folder / "python"
        script.write_text(
            "#!/bin/sh\n"
            + "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())
            + f': "${{NUMBA_CACHE_DIR:={CACHE / "numba" / self.name}}}"\nexport NUMBA_CACHE_DIR\n'
            + f'exec {shlex.join(self._qemu())} -0 "$0" {shlex.quote(str(interpreter))} "$@"\n',
            encoding="utf-8",
        )
        script.chmod(0o755)
        return script

    def _qemu(self) -> tuple[str, ...]:
        return (*self.qemu, "-L", str(fetching.arm64_debian())) if self.is_arm else self.qemu

    def _interpreter(self) -> tuple[Path, Path, Path]:
        """The interpreter, its home, and the folder of the packages it imports."""
        if not self.is_arm:
            import numpy

            return Path(sys.executable).resolve(), Path(sys.base_prefix), Path(numpy.__file__).parents[1]
        root = fetching.arm64_debian()
        python = fetching.python_of(root)
        return python, root / "usr", fetching.arm64_wheels(python.name.removeprefix("python"))

    def _llama_cpp(self) -> tuple[Path, ...]:
        """The folder with a package llama_cpp that has this machine's libraries; none if the installed one is run."""
        if self.options is None:
            return ()
        source = fetching.llama_cpp_python()
        version = subprocess.run([self.compiler, "--version"], capture_output=True, text=True, check=True).stdout
        key = hashlib.sha256(repr((source.name, OPTIONS, self.options, version)).encode()).hexdigest()[:12]
        return (fetching.whole(f"{self.name}-{key}", lambda part: self._compile(source, part)),)

    def _compile(self, source: Path, part: Path) -> None:
        # One folder for machines with the same compiler: only what depends on the processor is compiled again.
        build = CACHE / f"build-{self.compiler}-{source.name}"
        options = [f"-D{one}" for one in (*OPTIONS, *(self.options or ()))]
        fetching.run("cmake", "-S", source / "vendor" / "llama.cpp", "-B", build, "-G", "Ninja", *options)
        fetching.run("ninja", "-C", build, self.target)
        shutil.copytree(source / "llama_cpp", part / "llama_cpp")
        libraries = part / "llama_cpp" / "lib"
        libraries.mkdir(exist_ok=True)
        for library in (build / "bin").glob("lib*.so*"):
            shutil.copy2(library, libraries, follow_symlinks=False)
        (part / f"{source.name}.dist-info").mkdir()
        shutil.copy2(source / "PKG-INFO", part / f"{source.name}.dist-info" / "METADATA")


_QEMU = {"qemu-aarch64-static": "qemu-user-static", "qemu-x86_64-static": "qemu-user-static"}
_BUILD = {"cmake": "cmake", "ninja": "ninja-build"}
_ARM = {
    "qemu-aarch64-static": "qemu-user-static",
    **_BUILD,
    **{"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "apt-get": "apt", "dpkg": "dpkg"},
}
_X86 = {"qemu-x86_64-static": "qemu-user-static", **_BUILD, "g++": "g++"}


def _compilers(c: str, cxx: str) -> tuple[str, ...]:
    return f"CMAKE_C_COMPILER={c}", f"CMAKE_CXX_COMPILER={cxx}"


MACHINES = {
    one.name: one
    for one in (
        Machine(
            *("arm64-gcc", "ARM64, llama.cpp from GCC", ("qemu-aarch64-static",), "aarch64-linux-gnu-gcc"),
            options=(*CROSS, *_compilers("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++")),
            needs=_ARM,
        ),
        Machine(  # clang has no C++ library of its own for ARM64: it takes that of GCC
            *("arm64-clang", "ARM64, ggml's kernels from clang", ("qemu-aarch64-static",), "clang"),
            options=(
                *(*CROSS, *_compilers("clang", "clang++")),
                *(f"CMAKE_{language}_COMPILER_TARGET=aarch64-linux-gnu" for language in ("C", "CXX")),
            ),
            needs={**_ARM, "clang": "clang"},
            target="ggml-base",
        ),
        Machine(
            *("x86-64-without-avx", "x86-64 of 2008", ("qemu-x86_64-static", "-cpu", "Nehalem"), "g++"),
            options=tuple(f"GGML_{one}=OFF" for one in SETS),
            needs=_X86,
        ),
        Machine(
            *("x86-64-avx2", "x86-64 of 2013", ("qemu-x86_64-static", "-cpu", "Haswell"), "g++"),
            options=tuple(f"GGML_{one}=ON" for one in SETS),
            needs=_X86,
        ),
        Machine(
            *("x86-64-too-old", "the installed llama.cpp on x86-64 of 2008"),
            *(("qemu-x86_64-static", "-cpu", "Nehalem"), "", None),
            needs={"qemu-x86_64-static": "qemu-user-static"},
        ),
    )
}


def main(arguments: list[str]) -> int:
    if not arguments:
        for machine in MACHINES.values():
            print(f"{machine.name:20} {machine.about}{machine.missing() and f' - {machine.missing()}'}")
        return 0
    name, *rest = arguments
    chosen = [machine for machine in MACHINES.values() if machine.name == name or machine.name.startswith(f"{name}-")]
    if not chosen:
        sys.exit(f"no machine is called {name}: {', '.join(MACHINES)}")
    try:
        for machine in chosen:
            print(f"{machine.name}: {machine.about}", file=sys.stderr, flush=True)
            machine.make()
        if not rest:
            return 0
        with tempfile.TemporaryDirectory() as folder:
            return subprocess.run([chosen[0].python(Path(folder)), *rest], check=False).returncode
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
