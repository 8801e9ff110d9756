"""What this machine has: cores that this process may use, memory that is free; and what a model needs of it.

    n = physical_cores()                        # 6 on a laptop with 6 cores and 12 hardware threads
    need = memory_needed(read_header(path), n_ctx=4096)
    need.total_bytes <= free_memory_bytes()

Linux is read from /proc and /sys (affinity, cgroup v1 and v2, hybrid cores); macOS and Windows from their own calls. A
value that a system does not tell is estimated upwards from what it does, never invented.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llamalite.errors import GGUFError, OutOfMemoryError
from llamalite.gguf_check import Header
from llamalite.quant_types import TENSOR_TYPES

GIB = 1024**3
DEFAULT_N_CTX = 8192
_CTX_STEP = 256  # llama.cpp rounds n_ctx up to it (llama_context's constructor, llama-context.cpp)


def physical_cores() -> int:
    """Return how many physical cores this process may use: what generation runs best on.

    Affinity and a cgroup's quota count; of hybrid processors only the fast cores, as llama.cpp counts them
    (``cpu_get_num_math``, common/common.cpp).
    """
    if sys.platform == "linux":
        return linux_cores(Path("/"), os.sched_getaffinity(0))
    if sys.platform == "darwin":
        for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            if (found := _sysctl(name)) > 0:
                return found
    if sys.platform == "win32" and (found := _windows_cores()) > 0:
        return found
    return max(1, (os.cpu_count() or 2) // 2)


def linux_cores(root: Path, allowed: Iterable[int]) -> int:
    """`physical_cores` from the /sys and /proc below `root`, for the hardware threads `allowed`."""
    cpus = sorted(allowed)
    fast = _cpu_list(_read(root / "sys/devices/cpu_core/cpus"))  # Intel's hybrids name their fast cores here
    if not fast:  # Arm's big.LITTLE tells capacities: 1024 is the fastest
        capacity = {cpu: _number(root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity") for cpu in cpus}
        top = max((one for one in capacity.values() if one is not None), default=0)
        fast = {cpu for cpu, one in capacity.items() if one is not None and 2 * one > top}
    cpus = [cpu for cpu in cpus if cpu in fast] or cpus
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = _number(topology / "physical_package_id"), _number(topology / "core_id")
        cores.add((package, core) if core is not None else ("cpu", cpu))
    quota = _cgroup_quota(root)
    return max(1, min(len(cores), int(quota) if quota else len(cores)))


def machine_cores() -> int | None:
    """Return how many physical cores the machine has, whoever may use them; None where the system does not tell."""
    if sys.platform == "linux":
        return linux_machine_cores(Path("/"))
    if sys.platform == "darwin":
        return _sysctl("hw.physicalcpu") or None
    return None


def linux_machine_cores(root: Path) -> int | None:
    """`machine_cores` from the /sys below `root`."""
    cores = set()
    for cpu in _cpu_list(_read(root / "sys/devices/system/cpu/online")):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        cores.add((_number(topology / "physical_package_id"), _number(topology / "core_id")))
    return None if any(core is None for _, core in cores) else len(cores) or None


def hardware_threads() -> int:
    """Return how many hardware threads this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _cgroup_quota(root: Path) -> float | None:
    """Return the processors that the cgroup grants, None without a limit."""
    limits = []
    for folder in _cgroup_folders(root, "cpu"):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            limits.append(int(words[0]) / int(words[1]))
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            limits.append(quota / period)
    return min(limits, default=None)


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Return this process's cgroup folders for `controller`, innermost first, those of its parents after them."""
    base, found = root / "sys/fs/cgroup", []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controllers if controllers else base
        inner = top / path.strip("/")
        found += [inner, *(parent for parent in inner.parents if parent == top or top in parent.parents)]
    return found or [base]


def free_memory_bytes() -> int:
    """Return the memory that a new allocation may take without swapping, the limits of cgroup and process included."""
    if sys.platform == "linux":
        return min(linux_free_memory(Path("/")), address_space_left())
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "darwin":
        import subprocess

        told = subprocess.run(["vm_stat"], capture_output=True, text=True, check=False).stdout
        page = int(match[1]) if (match := re.search(r"page size of (\d+)", told)) else 16384
        pages = sum(int(n) for n in re.findall(r"Pages (?:free|inactive|speculative|purgeable): +(\d+)", told))
        return pages * page or _sysctl("hw.memsize") // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


_ADDRESS_SPACE_KEPT = 192 * 1024**2  # for threads' stacks, glibc's arenas, and Python's own growth


def address_space_left() -> int:
    """Return what RLIMIT_AS (``ulimit -v``) leaves for large things; mapped files count. Without a limit, a lot."""
    if sys.platform != "linux":
        return sys.maxsize
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    held = int(_read(Path("/proc/self/statm")).split()[0]) * resource.getpagesize()
    return max(0, limit - held - _ADDRESS_SPACE_KEPT)


def linux_free_memory(root: Path) -> int:
    """`free_memory_bytes` from the /proc and /sys below `root`."""
    match = re.search(r"MemAvailable: +(\d+) kB", _read(root / "proc/meminfo"))
    free = int(match[1]) * 1024 if match else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for folder in _cgroup_folders(root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and used is not None:
                cached = re.search(r"^(?:total_)?inactive_file (\d+)", _read(folder / "memory.stat"), re.M)
                free = min(free, max(0, limit - used + (int(cached[1]) if cached else 0)))
    return free


def total_memory_bytes() -> int | None:
    """Return the memory of this machine, or what its cgroup may use of it; None where the system does not tell."""
    if sys.platform == "linux":
        return linux_total_memory(Path("/"))
    if sys.platform == "darwin":
        return _sysctl("hw.memsize") or None
    return _windows_memory("total") if sys.platform == "win32" else None


def linux_total_memory(root: Path) -> int | None:
    """`total_memory_bytes` from the /proc and /sys below `root`."""
    match = re.search(r"MemTotal: +(\d+) kB", _read(root / "proc/meminfo"))
    limits = [int(match[1]) * 1024] if match else []
    for folder in _cgroup_folders(root, "memory"):
        limits += filter(None, (_number(folder / name) for name in ("memory.max", "memory.limit_in_bytes")))
    return min(limits, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not every kernel has every file
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _cpu_list(text: str) -> set[int]:
    """Return the numbers of a kernel's list: "0-3,8" is {0, 1, 2, 3, 8}."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _sysctl(name: str) -> int:
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    libc = ctypes.CDLL(None)
    failed = libc.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return 0 if failed else value.value


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


# ── what a model needs ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class MemoryNeeded:
    """Bytes that a model takes on the CPU: its weights, the copy of those that llama.cpp repacks for the processor's
    vector units, the KV cache, and the buffers that a micro-batch is computed in (an estimate from above)."""

    n_ctx: int
    weights_bytes: int
    repacked_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.repacked_bytes + self.kv_bytes + self.compute_bytes

    def __str__(self) -> str:
        return (
            f"{self.total_bytes / GIB:.2f} GiB (weights {self.weights_bytes / GIB:.2f}, repacked copy "
            f"{self.repacked_bytes / GIB:.2f}, KV cache of {self.n_ctx} tokens {self.kv_bytes / GIB:.2f}, "
            f"buffers {self.compute_bytes / GIB:.2f})"
        )


def repacked_types(features: str) -> frozenset[str]:
    """Return the tensor types that llama.cpp holds a second time, in an order made for the processor.

    `features` is ``llama_print_system_info()``; the rules are ``ggml_repack_get_optimal_repack_type``
    (ggml-cpu/repack.cpp) and the ``supports_op`` of AMX's buffers (ggml-cpu/amx/amx.cpp).
    """
    has = set(re.findall(r"(\w+) = 1", features))
    types: set[str] = set()
    if "REPACK" in has and "AVX2" in has:
        types |= {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
    if "REPACK" in has and "AVX512" in has:
        types |= {"Q2_K"}
    if "REPACK" in has and "NEON" in has and ("DOTPROD" in has or "MATMUL_INT8" in has):
        types |= {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4", "Q1_0"}
    if {"AMX_INT8", "AVX512_VNNI"} <= has:
        types |= {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "F16"}
    return frozenset(types)


def memory_needed(
    header: Header,
    *,
    n_ctx: int,
    n_ubatch: int = 512,
    kv_type: str = "F16",
    flash_attn: bool = True,
    repacked: frozenset[str] = frozenset(),
) -> MemoryNeeded:
    """Return what the file of `header` needs with a context of `n_ctx` tokens; `repacked` is from `repacked_types`."""
    n_ctx = -(-n_ctx // _CTX_STEP) * _CTX_STEP
    weights = header.tensor_bytes
    # The embedding is read row by row and stays as it is; matrices need rows in groups of 8.
    again = sum(
        tensor.nbytes
        for tensor in header.all_tensors
        if tensor.type.name in repacked and tensor.name != "token_embd.weight" and len(tensor.shape) == 2
    )
    kv = TENSOR_TYPES[kv_type.upper()]
    heads = _known(lambda: header.n_head_kv * (header.n_embd_head_k + header.n_embd_head_v))
    kv_bytes = n_ctx * _known(lambda: header.n_layer) * heads * kv.block_bytes // kv.block_size
    widest = max(header.n_vocab, 2 * (_known(lambda: header.n_ff) + _known(lambda: header.n_embd)))
    attention = 4 if flash_attn else 4 + 4 * _known(lambda: header.n_head)
    per_row = 4 * (widest + 4 * _known(lambda: header.n_embd)) + n_ctx * attention
    return MemoryNeeded(n_ctx, weights, again, kv_bytes, n_ubatch * per_row + 4 * header.n_vocab)


def _known(number: Callable[[], int]) -> int:
    """Return a key's number, 0 where an architecture has no such key: a recurrent model has no heads to cache."""
    try:
        return number()
    except GGUFError:
        return 0


def fit(
    header: Header,
    *,
    n_ctx: int | None,
    free_bytes: int,
    n_ubatch: int = 512,
    kv_type: str = "F16",
    flash_attn: bool = True,
    repacked: frozenset[str] = frozenset(),
) -> MemoryNeeded:
    """Return what the model needs at `n_ctx`, or at the default context: at most 8192, what it was trained for, and
    what `free_bytes` hold. Raises ``OutOfMemoryError`` with the numbers and the nearest setting that fits.
    """

    def need(n: int, kv: str = kv_type) -> MemoryNeeded:
        return memory_needed(
            header, n_ctx=n, n_ubatch=n_ubatch, kv_type=kv, flash_attn=flash_attn or kv != kv_type, repacked=repacked
        )

    wanted = (
        n_ctx if n_ctx is not None else max(1, min(DEFAULT_N_CTX, _known(lambda: header.n_ctx_train) or DEFAULT_N_CTX))
    )
    if need(wanted).total_bytes <= free_bytes:
        return need(wanted)
    per_step = need(2 * _CTX_STEP).total_bytes - need(_CTX_STEP).total_bytes
    room = (free_bytes - need(_CTX_STEP).total_bytes) // per_step + 1 if per_step else 0
    largest = min(room * _CTX_STEP, wanted - 1) // _CTX_STEP * _CTX_STEP
    if largest >= _CTX_STEP and n_ctx is None:
        return need(largest)
    name = header.path.name
    if largest >= _CTX_STEP:
        advice = f"n_ctx={largest} fits"
        if need(wanted, "Q8_0").total_bytes <= free_bytes:
            advice += ", and so does kv_type='Q8_0'"
    else:
        advice = "convert it to a smaller type, close other programs, or run a smaller model"
    raise OutOfMemoryError(f"{name} needs {need(wanted)}, and {free_bytes / GIB:.2f} GiB are free: {advice}")


def planned_n_ctx(
    header: Header,
    n_ctx: int | None,
    *,
    on_gpu: bool,
    kv_type: str,
    flash_attn: bool,
    repacked: frozenset[str],
    draft: Header | None = None,
) -> int:
    """Return the context length to load a model with, beside the one of `draft`; ``OutOfMemoryError`` as `fit` has it.

    A model whose layers are on a GPU is measured by llama.cpp alone. `repacked` is from `repacked_types`.
    """
    usual = n_ctx or min(DEFAULT_N_CTX, header.n_ctx_train)
    if on_gpu:
        return usual
    drafts = memory_needed(draft, n_ctx=usual, repacked=repacked).total_bytes if draft else 0
    need = fit(
        header,
        n_ctx=n_ctx,
        free_bytes=free_memory_bytes() - drafts,
        kv_type=kv_type,
        flash_attn=flash_attn,
        repacked=repacked,
    )
    return n_ctx or need.n_ctx
