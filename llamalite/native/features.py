"""Which instructions the processor has, and which of them the installed llama.cpp was compiled to use.

    for one in cpu_features():
        print(one.name, one.used, one.there)         # AVX2 True True;  there is None where the system does not tell

llama.cpp tells only what it uses (``llama_print_system_info``), fixed when it was compiled;
`llamalite.native.processor` knows what there is.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

from llamalite.native import processor
from llamalite.native.library import llama


@dataclass(frozen=True)
class Feature:
    """One set of instructions: whether llama.cpp uses it, and whether the processor has it (None: not known)."""

    name: str
    used: bool
    there: bool | None


def cpu_features() -> list[Feature]:
    """Return what this processor has or llama.cpp uses; sets that neither has are left out."""
    told = llama().llama_print_system_info().decode()
    return known_features(told, platform.machine(), processor.of_this_system())


def known_features(told: str, machine: str, has: processor.Tells) -> list[Feature]:
    """`cpu_features` from what llama.cpp told, the machine's name, and what the system says of one set."""
    used = set(re.findall(r"(\w+) = 1", told))
    sets = processor.instruction_sets(machine)
    found = [Feature(name, name in used, has(names)) for name, names in sets.items()]
    return [one for one in found if one.used or one.there is not False]


def processor_name() -> str:
    """Return what the processor is called, as llama.cpp or the system has it."""
    from llamalite.native.devices import devices

    named = next((device.description for device in devices() if device.kind == "cpu"), "")
    return named if named not in ("", "CPU") else platform.processor() or platform.machine()
