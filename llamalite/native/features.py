"""Which instruction sets the processor has, and which of them the installed llama.cpp was compiled to use.

    for feature in cpu_features():
        print(feature.name, feature.used, feature.present)     # AVX2 True True

llama.cpp reports only what it was compiled to use (``llama_print_system_info``); the operating system reports what the
processor has (`llamalite.native.processor`).
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

from llamalite.native import processor
from llamalite.native.library import llama


@dataclass(frozen=True)
class Feature:
    """An instruction set: whether llama.cpp uses it, and whether the processor has it (None: unknown)."""

    name: str
    used: bool
    present: bool | None


def cpu_features() -> list[Feature]:
    """Return the instruction sets that this processor has or llama.cpp uses."""
    info = llama().llama_print_system_info().decode()
    return known_features(info, platform.machine(), processor.instruction_checker())


def known_features(system_info: str, machine: str, has: processor.HasInstructions) -> list[Feature]:
    """Return `cpu_features` for llama.cpp's `system_info`, the kind of `machine`, and what its processor `has`."""
    used = set(re.findall(r"(\w+) = 1", system_info))
    sets = processor.instruction_sets(machine)
    features = [Feature(name, name in used, has(names)) for name, names in sets.items()]
    return [feature for feature in features if feature.used or feature.present is not False]


def processor_name() -> str:
    """Return the processor's name, as llama.cpp or the system reports it."""
    from llamalite.native.devices import devices

    name = next((device.description for device in devices() if device.kind == "cpu"), "")
    return name if name not in ("", "CPU") else platform.processor() or platform.machine()
