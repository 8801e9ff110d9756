"""Which instructions the processor has, and which of them the installed llama.cpp was compiled to use.

    for one in cpu_features():
        print(one.name, one.used, one.there)         # AVX2 True True;  there is None where the system does not tell

llama.cpp tells only what it uses (``llama_print_system_info``), fixed when it was compiled; the system tells what there
is: Linux /proc/cpuinfo, macOS sysctl, Windows ``IsProcessorFeaturePresent``, which knows the fewest.
"""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamalite.native.library import llama

Names = tuple[str, str | None, int | None]
Tells = Callable[[Names], bool | None]

# llama.cpp's name (ggml_backend_cpu_get_features, ggml-cpu.cpp) → /proc/cpuinfo, sysctl below hw.optional, Windows' PF_
_X86: dict[str, Names] = {
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
_ARM: dict[str, Names] = {
    "NEON": ("asimd", "neon", 19),
    "ARM_FMA": ("asimd", "neon", 19),
    "FP16_VA": ("asimdhp", "arm.FEAT_FP16", None),
    "DOTPROD": ("asimddp", "arm.FEAT_DotProd", 43),
    "MATMUL_INT8": ("i8mm", "arm.FEAT_I8MM", None),
    "SVE": ("sve", None, 46),
    "SME": ("sme", "arm.FEAT_SME", None),
}


@dataclass(frozen=True)
class Feature:
    """One set of instructions: whether llama.cpp uses it, and whether the processor has it (None: not known)."""

    name: str
    used: bool
    there: bool | None


def cpu_features() -> list[Feature]:
    """Return what this processor has or llama.cpp uses; sets that neither has are left out."""
    return known_features(llama().llama_print_system_info().decode(), platform.machine(), _of_this_system())


def known_features(told: str, machine: str, has: Tells) -> list[Feature]:
    """`cpu_features` from what llama.cpp told, the machine's name, and what the system says of one set."""
    used = set(re.findall(r"(\w+) = 1", told))
    table = _X86 if machine.lower() in ("x86_64", "amd64", "i686", "x86") else _ARM if _is_arm(machine) else {}
    found = [Feature(name, name in used, has(names)) for name, names in table.items()]
    return [one for one in found if one.used or one.there is not False]


def _is_arm(machine: str) -> bool:
    return machine.lower().startswith(("arm", "aarch64"))


def processor_name() -> str:
    """Return what the processor is called, as llama.cpp or the system has it."""
    from llamalite.native.devices import devices

    named = next((device.description for device in devices() if device.kind == "cpu"), "")
    return named if named not in ("", "CPU") else platform.processor() or platform.machine()


def _of_this_system() -> Tells:
    if sys.platform == "linux":
        return of_cpuinfo(_cpuinfo())
    if sys.platform == "darwin":
        return of_sysctl(subprocess.run(["sysctl", "hw.optional"], capture_output=True, text=True, check=False).stdout)
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


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # a box that hides it
        return ""
