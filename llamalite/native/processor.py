"""What the system says of the processor: which sets of instructions it has, and what tells it from another one.

    has = of_this_system()
    has(X86["AVX2"])            # True, False, or None where the system does not tell

Linux is read from /proc/cpuinfo, macOS from sysctl, Windows from ``IsProcessorFeaturePresent``, which knows the fewest.
This module does not load llama.cpp.
"""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Names = tuple[str, str | None, int | None]
Tells = Callable[[Names], bool | None]

# llama.cpp's name (ggml_backend_cpu_get_features, ggml-cpu.cpp) → /proc/cpuinfo, sysctl below hw.optional, Windows' PF_
X86: dict[str, Names] = {
    "SSE3": ("pni", "sse3", 13),
    "SSSE3": ("ssse3", "supplementalsse3", 36),
    "AVX": ("avx", "avx1_0", 39),
    "AVX2": ("avx2", "avx2_0", 40),
    "F16C": ("f16c", "f16c", None),
    "FMA": ("fma", "fma", None),
    "BMI2": ("bmi2", "bmi2", None),
    "AVX_VNNI": ("avx_vnni", None, None),
    "AVX512": ("avx512f", "avx512f", 41),
    "AVX512_VBMI": ("avx512vbmi", "avx512vbmi", None),
    "AVX512_VNNI": ("avx512_vnni", "avx512vnni", None),
    "AVX512_BF16": ("avx512_bf16", "avx512bf16", None),
    "AMX_INT8": ("amx_int8", None, None),
}
ARM: dict[str, Names] = {
    "NEON": ("asimd", "neon", 19),
    "ARM_FMA": ("asimd", "neon", 19),
    "FP16_VA": ("asimdhp", "arm.FEAT_FP16", None),
    "DOTPROD": ("asimddp", "arm.FEAT_DotProd", 43),
    "MATMUL_INT8": ("i8mm", "arm.FEAT_I8MM", None),
    "SVE": ("sve", None, 46),
    "SME": ("sme", "arm.FEAT_SME", None),
}


def instruction_sets(machine: str) -> dict[str, Names]:
    """Return the sets that processors called `machine` (``platform.machine()``) may have: `X86`, `ARM` or none."""
    name = machine.lower()
    if name in ("x86_64", "amd64", "i686", "x86"):
        return X86
    return ARM if name.startswith(("arm", "aarch64")) else {}


def of_this_system() -> Tells:
    """Return the function that says of a set whether this processor has it."""
    if sys.platform == "linux":
        return of_cpuinfo(_first_of_cpuinfo())
    if sys.platform == "darwin":
        return of_sysctl(_sysctl("hw.optional"))
    if sys.platform == "win32":
        kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore] # Windows only
        return lambda names: bool(kernel32.IsProcessorFeaturePresent(names[2])) if names[2] is not None else None
    return lambda _: None


def of_cpuinfo(text: str) -> Tells:
    """Answer from the text of /proc/cpuinfo: ``flags`` on x86, ``Features`` on Arm."""
    line = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
    words = set(line[1].split()) if line else None
    return lambda names: None if words is None else names[0] in words


def of_sysctl(text: str) -> Tells:
    """Answer from what ``sysctl hw.optional`` prints; a key that is not there is not known."""
    told = dict(re.findall(r"^hw\.optional\.([\w.]+): (\d+)$", text, re.M))
    return lambda names: None if names[1] is None or names[1] not in told else told[names[1]] == "1"


def missing(names: list[str]) -> list[str]:
    """Return those of `names` (llama.cpp's) that this processor does not have, as far as the system tells."""
    known, has = instruction_sets(platform.machine()), of_this_system()
    return [name for name in names if name in known and has(known[name]) is False]


def lacking() -> list[str]:
    """Return every set of this kind of processor that this one does not have, by llama.cpp's names."""
    return missing(list(instruction_sets(platform.machine())))


def identity() -> str:
    """Return a text that is the same for processors that run the same programs: their name and instructions."""
    if sys.platform == "linux":
        # Frequencies and the like change from one moment to the next.
        changing = (
            "cpu MHz",
            "bogomips",
            "BogoMIPS",
            "processor",
            "core id",
            "apicid",
            "initial apicid",
            "physical id",
        )
        lines = _first_of_cpuinfo().splitlines()
        told = "\n".join(line for line in lines if line.split(":")[0].strip() not in changing)
    elif sys.platform == "darwin":
        told = _sysctl("machdep.cpu") + _sysctl("hw.optional")
    else:
        has = of_this_system()
        told = " ".join(name for name, names in instruction_sets(platform.machine()).items() if has(names))
    return f"{platform.machine()} {platform.processor()}\n{told}"


def _first_of_cpuinfo() -> str:
    """The text of /proc/cpuinfo on the first processor; the kernel takes long to write all of a large machine's."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 14)
    except OSError:  # a box that hides it
        return ""
    return text.split("\n\n", 1)[0]


def _sysctl(name: str) -> str:
    return subprocess.run(["sysctl", name], capture_output=True, text=True, check=False).stdout
