"""The machine's memory: how much there is, and how much is free for this process.

On Linux it is read from /proc and /sys (cgroup v1 and v2 included), on macOS and Windows from system calls.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

from llamalite.hardware.system import cgroup_folders, read_number, read_text, sysctl

_RESERVED_ADDRESS_SPACE = 192 * 1024**2  # for threads' stacks, glibc's arenas, and Python's own growth


def free_memory_bytes() -> int:
    """Return the bytes that can be allocated without swapping, within the limits of the cgroup and the process."""
    if sys.platform == "linux":
        return min(linux_free_memory(Path("/")), address_space_left())
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "darwin":
        statistics = subprocess.run(["vm_stat"], capture_output=True, text=True, check=False).stdout
        page = int(match[1]) if (match := re.search(r"page size of (\d+)", statistics)) else 16384
        pages = sum(int(n) for n in re.findall(r"Pages (?:free|inactive|speculative|purgeable): +(\d+)", statistics))
        return pages * page or sysctl("hw.memsize") // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def address_space_left() -> int:
    """Return the bytes that RLIMIT_AS (``ulimit -v``) leaves for large buffers; ``sys.maxsize`` without a limit."""
    if sys.platform != "linux":
        return sys.maxsize
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    used = int(read_text(Path("/proc/self/statm")).split()[0]) * resource.getpagesize()
    return max(0, limit - used - _RESERVED_ADDRESS_SPACE)


def linux_free_memory(root: Path) -> int:
    """Return `free_memory_bytes` of the /proc and /sys below `root`."""
    match = re.search(r"MemAvailable: +(\d+) kB", read_text(root / "proc/meminfo"))
    free = int(match[1]) * 1024 if match else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for folder in cgroup_folders(root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = read_number(folder / limit_name), read_number(folder / used_name)
            if limit is not None and used is not None:
                cached = re.search(r"^(?:total_)?inactive_file (\d+)", read_text(folder / "memory.stat"), re.M)
                free = min(free, max(0, limit - used + (int(cached[1]) if cached else 0)))
    return free


def total_memory_bytes() -> int | None:
    """Return the bytes of memory of this machine, or of the cgroup's limit; None if the system does not say."""
    if sys.platform == "linux":
        return linux_total_memory(Path("/"))
    if sys.platform == "darwin":
        return sysctl("hw.memsize") or None
    return _windows_memory("total") if sys.platform == "win32" else None


def linux_total_memory(root: Path) -> int | None:
    """Return `total_memory_bytes` of the /proc and /sys below `root`."""
    match = re.search(r"MemTotal: +(\d+) kB", read_text(root / "proc/meminfo"))
    limits = [int(match[1]) * 1024] if match else []
    for folder in cgroup_folders(root, "memory"):
        limits += filter(None, (read_number(folder / name) for name in ("memory.max", "memory.limit_in_bytes")))
    return min(limits, default=None)


def _windows_memory(what: Literal["free", "total"] = "free") -> int:
    class Status(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((f"m{i}", ctypes.c_ulonglong) for i in range(7)),
        ]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
    return int(status.m0 if what == "total" else status.m1)  # ullTotalPhys, ullAvailPhys
