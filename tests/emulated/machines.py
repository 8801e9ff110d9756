"""Emulated computers: ARM64, and x86-64 of several ages, by QEMU, for one process at a time.

    python tests/emulated/machines.py                                       what there is, and what is missing for it
    python tests/emulated/machines.py arm64-gcc                             fetch and compile what it needs
    python tests/emulated/machines.py arm64-gcc -m llamalite --version      run its Python

A machine is a `python`, a script in a folder of the caller's that starts QEMU with the real interpreter. Python finds
the script as `sys.executable`, so that the processes which it starts are emulated too. It has a /proc/cpuinfo and a
cache folder of its own. What is fetched and compiled is kept in the user's cache folder, for each version once.
"""

from __future__ import annotations

import hashlib
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

# As llama-cpp-python compiles it, but without OpenMP, which clang does not have for ARM64, and only the libraries. The
# C code, which quantizes, is compiled as usual; the C++ code is compiled with few optimizations.
OPTIONS = (
    *("CMAKE_BUILD_TYPE=Release", "CMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG", "BUILD_SHARED_LIBS=ON"),
    "CMAKE_BUILD_RPATH_USE_ORIGIN=ON",  # the libraries are copied elsewhere, and find each other there
    *("GGML_NATIVE=OFF", "GGML_OPENMP=OFF", "GGML_CCACHE=OFF", "GGML_ALL_WARNINGS=OFF", "LLAMA_ALL_WARNINGS=OFF"),
    *(f"LLAMA_BUILD_{one}=OFF" for one in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")),
)
SETS = ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")


@dataclass(frozen=True)
class Processor:
    """QEMU's name for it, and its /proc/cpuinfo: QEMU shows a process that of the real processor."""

    qemu: tuple[str, ...]
    cpuinfo: str


_OF_NEHALEM = (
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 syscall nx lm "
    "pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
)
NEHALEM = Processor(
    ("qemu-x86_64-static", "-cpu", "Nehalem"),
    f"vendor_id\t: GenuineIntel\nmodel name\t: Nehalem\nflags\t\t: {_OF_NEHALEM}\n",
)
HASWELL = Processor(
    ("qemu-x86_64-static", "-cpu", "Haswell"),
    f"vendor_id\t: GenuineIntel\nmodel name\t: Haswell\nflags\t\t: {_OF_NEHALEM} avx avx2 bmi1 bmi2 f16c fma\n",
)
CORTEX_A76 = Processor(  # that of a Raspberry Pi 5
    ("qemu-aarch64-static", "-cpu", "cortex-a76"),
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n",
)


@dataclass(frozen=True)
class Machine:
    """A processor that QEMU emulates, and the llama.cpp compiled for it by CMake's `options`; None: the installed one.

    `needs` are commands, each with the package of Debian that has it.
    """

    name: str
    processor: Processor
    compiler: str
    options: tuple[str, ...] | None
    needs: dict[str, str]
    target: str = "llama"

    @property
    def is_arm(self) -> bool:
        return self.processor is CORTEX_A76

    @property
    def decodes(self) -> bool:
        """Whether all of llama.cpp is built, and not only ggml's kernels."""
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
        """Fetch and compile what is missing."""
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
        settings = {
            "PYTHONHOME": home,
            "PYTHONPATH": ":".join(map(str, places)),
            "PYTHONDONTWRITEBYTECODE": "1",
            # Compiled kernels are kept for the next run; what llamalite found out about an installed llama.cpp is not.
            "XDG_CACHE_HOME": folder / "cache" if self.options is None else CACHE / f"{self.name}-home",
        }
        script = folder / "python"
        script.write_text(
            "#!/bin/sh\n"
            + "".join(f"export {name}={shlex.quote(str(value))}\n" for name, value in settings.items())
            + f"exec {shlex.join(self.processor.qemu)} -L {shlex.quote(str(self._root(folder)))} "
            + f'-0 "$0" {shlex.quote(str(interpreter))} "$@"\n',
            encoding="utf-8",
        )
        script.chmod(0o755)
        return script

    def _root(self, folder: Path) -> Path:
        """The folder in which QEMU looks for a file before it does at the file's real place."""
        root = fetching.arm64_debian() if self.is_arm else folder / "root"
        cpuinfo = root / "proc" / "cpuinfo"
        cpuinfo.parent.mkdir(parents=True, exist_ok=True)
        cpuinfo.write_text(f"processor\t: 0\n{self.processor.cpuinfo}\n", encoding="utf-8")
        return root

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


_QEMU = {"qemu-x86_64-static": "qemu-user-static"}
_X86 = {**_QEMU, "cmake": "cmake", "ninja": "ninja-build", "g++": "g++"}
_ARM = {
    "qemu-aarch64-static": "qemu-user-static",
    "cmake": "cmake",
    "ninja": "ninja-build",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "apt-get": "apt",
    "dpkg": "dpkg",
}
_CROSS = ("CMAKE_SYSTEM_NAME=Linux", "CMAKE_SYSTEM_PROCESSOR=aarch64", "GGML_CPU_ARM_ARCH=armv8.2-a+dotprod")
_CROSS_GCC = ("CMAKE_C_COMPILER=aarch64-linux-gnu-gcc", "CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")
_CROSS_CLANG = (  # with the C++ library of GCC
    *("CMAKE_C_COMPILER=clang", "CMAKE_CXX_COMPILER=clang++"),
    *("CMAKE_C_COMPILER_TARGET=aarch64-linux-gnu", "CMAKE_CXX_COMPILER_TARGET=aarch64-linux-gnu"),
)
_NONE = tuple(f"GGML_{one}=OFF" for one in SETS)
_UP_TO_AVX2 = tuple(f"GGML_{one}=ON" for one in SETS)

MACHINES = {
    one.name: one
    for one in (
        Machine("arm64-gcc", CORTEX_A76, "aarch64-linux-gnu-gcc", (*_CROSS, *_CROSS_GCC), _ARM),
        Machine("arm64-clang", CORTEX_A76, "clang", (*_CROSS, *_CROSS_CLANG), {**_ARM, "clang": "clang"}, "ggml-base"),
        Machine("x86-64-without-avx", NEHALEM, "g++", _NONE, _X86),
        Machine("x86-64-avx2", HASWELL, "g++", _UP_TO_AVX2, _X86),
        Machine("x86-64-too-old", NEHALEM, "", None, _QEMU),
    )
}


def main(arguments: list[str]) -> int:
    if not arguments:
        for machine in MACHINES.values():
            sys.stdout.write(f"{machine.name:20} {machine.missing() or 'can be emulated here'}\n")
        return 0
    name, *rest = arguments
    chosen = [machine for machine in MACHINES.values() if machine.name == name or machine.name.startswith(f"{name}-")]
    if not chosen:
        sys.exit(f"no machine is called {name}: {', '.join(MACHINES)}")
    try:
        for machine in chosen:
            if not rest:
                sys.stdout.write(f"{machine.name}: fetched and compiled once, then kept in {CACHE}\n")
                sys.stdout.flush()
            machine.make()
        if not rest:
            return 0
        with tempfile.TemporaryDirectory() as folder:
            return subprocess.run([chosen[0].python(Path(folder)), *rest], check=False).returncode
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
