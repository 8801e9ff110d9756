"""What this machine has: cores that this process may use, memory that is free; and what a model needs of it.

n = physical_cores()                        # 6 on a laptop with 6 cores and 12 hardware threads
need = memory_needed(read_header(path), n_ctx=4096)
need.total_bytes <= free_memory_bytes()
"""

from llamalite.hardware.cores import hardware_threads, machine_cores, physical_cores
from llamalite.hardware.memory import address_space_left, free_memory_bytes, total_memory_bytes
from llamalite.hardware.model_memory import (
    DEFAULT_N_CTX,
    GIB,
    MemoryNeeded,
    fit,
    memory_needed,
    planned_n_ctx,
    repacked,
    repacked_types,
)

__all__ = [
    "DEFAULT_N_CTX",
    "GIB",
    "MemoryNeeded",
    "address_space_left",
    "fit",
    "free_memory_bytes",
    "hardware_threads",
    "machine_cores",
    "memory_needed",
    "physical_cores",
    "planned_n_ctx",
    "repacked",
    "repacked_types",
    "total_memory_bytes",
]
