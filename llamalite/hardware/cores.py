"""The processor's cores: how many there are, and how many this process may use.

On Linux they are read from /proc and /sys (affinity, cgroup v1 and v2, hybrid cores), on macOS and Windows from system
calls. Where a system does not report the physical cores, they are estimated from the hardware threads.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from llamalite.hardware.system import cgroup_folders, cpu_list, read_number, read_text, sysctl


def physical_cores() -> int:
    """Return how many physical cores this process may use: the best number of threads for generation.

    Affinity and the cgroup's quota are respected. On hybrid processors only the fast cores count, as in llama.cpp
    (``cpu_get_num_math``, common/common.cpp).
    """
    if sys.platform == "linux":
        return linux_cores(Path("/"), os.sched_getaffinity(0))
    if sys.platform == "darwin":
        for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            if (n_cores := sysctl(name)) > 0:
                return n_cores
    if sys.platform == "win32" and (n_cores := _windows_cores()) > 0:
        return n_cores
    return max(1, (os.cpu_count() or 2) // 2)


def linux_cores(root: Path, allowed: Iterable[int]) -> int:
    """Return `physical_cores` of the /sys and /proc below `root`, for the hardware threads `allowed`."""
    cpus = sorted(allowed)
    fast = cpu_list(read_text(root / "sys/devices/cpu_core/cpus"))  # the fast cores of Intel's hybrid processors
    if not fast:  # Arm's big.LITTLE has capacities: 1024 is the fastest
        capacities = {cpu: read_number(root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity") for cpu in cpus}
        top = max((capacity for capacity in capacities.values() if capacity is not None), default=0)
        fast = {cpu for cpu, capacity in capacities.items() if capacity is not None and 2 * capacity > top}
    cpus = [cpu for cpu in cpus if cpu in fast] or cpus
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = read_number(topology / "physical_package_id"), read_number(topology / "core_id")
        cores.add((package, core) if core is not None else ("cpu", cpu))
    quota = _cgroup_quota(root)
    return max(1, min(len(cores), int(quota) if quota else len(cores)))


def machine_cores() -> int | None:
    """Return how many physical cores the machine has, usable or not; None if the system does not say."""
    if sys.platform == "linux":
        return linux_machine_cores(Path("/"))
    if sys.platform == "darwin":
        return sysctl("hw.physicalcpu") or None
    return None


def linux_machine_cores(root: Path) -> int | None:
    """Return `machine_cores` of the /sys below `root`."""
    cores = set()
    for cpu in cpu_list(read_text(root / "sys/devices/system/cpu/online")):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        cores.add((read_number(topology / "physical_package_id"), read_number(topology / "core_id")))
    return None if any(core is None for _, core in cores) else len(cores) or None


def hardware_threads() -> int:
    """Return how many hardware threads this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _cgroup_quota(root: Path) -> float | None:
    """Return the number of processors that the cgroup grants, None without a limit."""
    limits = []
    for folder in cgroup_folders(root, "cpu"):
        words = read_text(folder / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            limits.append(int(words[0]) / int(words[1]))
        quota, period = read_number(folder / "cpu.cfs_quota_us"), read_number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            limits.append(quota / period)
    return min(limits, default=None)


def _windows_cores() -> int:
    """Count processor cores of the highest efficiency class (GetLogicalProcessorInformationEx)."""
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore] # Windows only
    size = ctypes.c_ulong(0)
    kernel32.GetLogicalProcessorInformationEx(0, None, ctypes.byref(size))  # 0: RelationProcessorCore
    buffer = ctypes.create_string_buffer(size.value)
    if not kernel32.GetLogicalProcessorInformationEx(0, buffer, ctypes.byref(size)):
        return 0
    classes, at = [], 0
    while at + 10 <= size.value:  # records: Relationship (4 bytes), Size (4), Flags (1), EfficiencyClass (1), ...
        classes.append(buffer.raw[at + 9])
        at += max(8, int.from_bytes(buffer.raw[at + 4 : at + 8], "little"))
    return classes.count(max(classes, default=0))
