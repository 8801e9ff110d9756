"""Reads what the operating system reports: text and numbers in files, lists of processors, cgroups, sysctl."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path


def read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # some kernels lack the file
        return ""


def read_number(path: Path) -> int | None:
    text = read_text(path).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def cpu_list(text: str) -> set[int]:
    """Return the numbers in a list as the kernel writes it: "0-3,8" is {0, 1, 2, 3, 8}."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Return this process's cgroup folders for `controller`, the innermost first, then its parents."""
    base = root / "sys/fs/cgroup"
    folders: list[Path] = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controllers if controllers else base
        inner = top / path.strip("/")
        folders += [inner, *(parent for parent in inner.parents if parent == top or top in parent.parents)]
    return folders or [base]


def sysctl(name: str) -> int:
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    libc = ctypes.CDLL(None)
    failed = libc.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return 0 if failed else value.value
