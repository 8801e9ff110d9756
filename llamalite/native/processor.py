"""What the system says about the processor: its instruction sets, and what identifies it.

    has = instruction_checker()
    has(X86["AVX2"])            # True, False, or None if the system does not say

The sources are /proc/cpuinfo on Linux, sysctl on macOS, and ``IsProcessorFeaturePresent`` on Windows, which covers
the fewest sets. This module does not load llama.cpp.
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
HasInstructions = Callable[[Names], bool | None]

# llama.cpp's name (ggml_backend_cpu_get_features, ggml-cpu.cpp) → its names in /proc/cpuinfo and sysctl's hw.optional,
# and its number among Windows' PF_ constants
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
    """Return the sets that a processor of `machine` (``platform.machine()``) may have: `X86`, `ARM` or none."""
    name = machine.lower()
    if name in ("x86_64", "amd64", "i686", "x86"):
        return X86
    return ARM if name.startswith(("arm", "aarch64")) else {}


def instruction_checker() -> HasInstructions:
    """Return a function that tells whether this processor has an instruction set."""
    if sys.platform == "linux":
        return cpuinfo_checker(_cpuinfo_of_first_core())
    if sys.platform == "darwin":
        return sysctl_checker(_sysctl("hw.optional"))
    if sys.platform == "win32":
        kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore] # Windows only
        return lambda names: bool(kernel32.IsProcessorFeaturePresent(names[2])) if names[2] is not None else None
    return lambda _: None


def cpuinfo_checker(text: str) -> HasInstructions:
    """Return `instruction_checker` for the text of /proc/cpuinfo: ``flags`` on x86, ``Features`` on Arm."""
    line = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
    words = set(line[1].split()) if line else None
    return lambda names: None if words is None else names[0] in words


def sysctl_checker(text: str) -> HasInstructions:
    """Return `instruction_checker` for the output of ``sysctl hw.optional``; a missing key means unknown."""
    values = dict(re.findall(r"^hw\.optional\.([\w.]+): (\d+)$", text, re.M))
    return lambda names: None if names[1] is None or names[1] not in values else values[names[1]] == "1"


def missing(names: list[str]) -> list[str]:
    """Return those of `names` (llama.cpp's) that this processor lacks, as far as the system says."""
    known, has = instruction_sets(platform.machine()), instruction_checker()
    return [name for name in names if name in known and has(known[name]) is False]


def all_missing() -> list[str]:
    """Return llama.cpp's names of all instruction sets of this kind of processor that this one lacks."""
    return missing(list(instruction_sets(platform.machine())))


def identity() -> str:
    """Return a text that is the same for processors that can run the same programs: name and instruction sets."""
    if sys.platform == "linux":
        # These differ between cores, or from one moment to the next.
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
        lines = _cpuinfo_of_first_core().splitlines()
        text = "\n".join(line for line in lines if line.split(":")[0].strip() not in changing)
    elif sys.platform == "darwin":
        text = _sysctl("machdep.cpu") + _sysctl("hw.optional")
    else:
        has = instruction_checker()
        text = " ".join(name for name, names in instruction_sets(platform.machine()).items() if has(names))
    return f"{platform.machine()} {platform.processor()}\n{text}"


def _cpuinfo_of_first_core() -> str:
    """Return /proc/cpuinfo's text about the first core; the kernel is slow to write it for all cores."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 14)
    except OSError:  # a container that hides it
        return ""
    return text.split("\n\n", 1)[0]


def _sysctl(name: str) -> str:
    return subprocess.run(["sysctl", name], capture_output=True, text=True, check=False).stdout
