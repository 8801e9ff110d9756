"""This machine's cores and memory, and the memory that a model needs.

n_threads = physical_cores()              # 6 on a laptop with 6 cores and 12 hardware threads
needed = memory_needed(read_header(path), n_ctx=4096)
needed.fits(free_memory_bytes())
"""

from llamalite.hardware.cores import hardware_threads, machine_cores, physical_cores
from llamalite.hardware.memory import address_space_left, free_memory_bytes, total_memory_bytes
from llamalite.hardware.model_memory import (
    DEFAULT_N_CTX,
    GIB,
    MemoryNeeded,
    memory_needed,
    plan_memory,
    planned_n_ctx,
    repacked_types,
)

__all__ = [
    "DEFAULT_N_CTX",
    "GIB",
    "MemoryNeeded",
    "address_space_left",
    "free_memory_bytes",
    "hardware_threads",
    "machine_cores",
    "memory_needed",
    "physical_cores",
    "plan_memory",
    "planned_n_ctx",
    "repacked_types",
    "total_memory_bytes",
]
