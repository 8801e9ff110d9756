"""This machine: its processor, memory and devices, and how the installed llama.cpp uses them.

machine = examine()                 # takes about a second: the memory's bandwidth is measured
machine.free_bytes, machine.bandwidth_bytes_per_s, machine.missed
machine_facts()                     # what to store beside a measurement; nothing is measured
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any

from llamalite import hardware
from llamalite._version import __version__
from llamalite.native import devices, features, library, verdict
from llamalite.performance.bandwidth import memory_bandwidth


@dataclass(frozen=True)
class Machine:
    """The parts of a machine. None means unknown; the bandwidth was measured with `n_usable` threads."""

    processor: str
    n_cores: int | None  # physical cores of the machine
    n_usable: int  # physical cores that this process may use: the best number of threads for generation
    n_hardware_threads: int
    features: tuple[features.Feature, ...]
    total_bytes: int | None
    free_bytes: int
    bandwidth_bytes_per_s: float
    devices: tuple[devices.Device, ...]
    supports_gpu: bool
    verdict: verdict.LibraryVerdict  # what the trial of the installed llama.cpp on this processor found
    versions: dict[str, str]

    @property
    def missed(self) -> list[str]:
        """Instructions that the processor has and the installed llama.cpp does not use."""
        return [feature.name for feature in self.features if feature.present and not feature.used]

    @property
    def unknown(self) -> list[str]:
        """Instructions that llama.cpp does not use; the system does not say whether the processor has them."""
        return [feature.name for feature in self.features if feature.present is None and not feature.used]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"missed": self.missed, "backends": devices.backends()}


def machine_facts() -> dict[str, Any]:
    """Return processor, cores, memory and system, to store beside a measurement; nothing is measured."""
    return {
        "processor": features.processor_name(),
        "n_cores": hardware.machine_cores(),
        "n_usable": hardware.physical_cores(),
        "memory_bytes": hardware.total_memory_bytes(),
        "system": _system(),
    }


def examine() -> Machine:
    """Return this machine's parts. Measuring its memory takes about a second."""
    n_usable = hardware.physical_cores()
    return Machine(
        processor=features.processor_name(),
        n_cores=hardware.machine_cores(),
        n_usable=n_usable,
        n_hardware_threads=hardware.hardware_threads(),
        features=tuple(features.cpu_features()),
        total_bytes=hardware.total_memory_bytes(),
        free_bytes=hardware.free_memory_bytes(),
        bandwidth_bytes_per_s=memory_bandwidth(n_usable),
        devices=tuple(devices.devices()),
        supports_gpu=bool(library.llama().llama_supports_gpu_offload()),
        verdict=verdict.current(),
        versions={"llamalite": __version__, "python": platform.python_version(), "system": _system()}
        | dict(part.rsplit(" ", 1) for part in library.version().split(", ")),
    )


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"
