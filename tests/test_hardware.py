"""Cores and memory from the systems' own files, and what a model needs of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy

from llamalite import hardware
from llamalite.errors import OutOfMemoryError
from llamalite.gguf_check import read_header
from llamalite.hardware import memory
from llamalite.hardware.cores import linux_cores


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def threads(pairs: dict[int, int]) -> dict[str, str]:
    """Hardware threads and the core that each belongs to."""
    base = "sys/devices/system/cpu"
    return {f"{base}/cpu{cpu}/topology/core_id": str(core) for cpu, core in pairs.items()} | {
        f"{base}/cpu{cpu}/topology/physical_package_id": "0" for cpu in pairs
    }


SMT = threads({0: 0, 1: 1, 2: 2, 3: 3, 4: 0, 5: 1, 6: 2, 7: 3})


def test_two_threads_of_a_core_are_one_core(tmp_path: Path) -> None:
    assert linux_cores(machine(tmp_path, SMT), range(8)) == 4


def test_affinity_counts(tmp_path: Path) -> None:
    assert linux_cores(machine(tmp_path, SMT), [0, 1, 4]) == 2


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_cgroup_quota_counts(tmp_path: Path, quota: str, cores: int) -> None:
    files = SMT | {"proc/self/cgroup": "0::/user/app", "sys/fs/cgroup/user/cpu.max": quota}
    assert linux_cores(machine(tmp_path, files), range(8)) == cores


def test_an_old_cgroup_counts_too(tmp_path: Path) -> None:
    files = SMT | {
        "proc/self/cgroup": "4:cpu,cpuacct:/box",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "300000",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
    }
    assert linux_cores(machine(tmp_path, files), range(8)) == 3


def test_of_hybrid_processors_the_fast_cores_count(tmp_path: Path) -> None:
    intel = threads({0: 0, 1: 0, 2: 1, 3: 1, 4: 4, 5: 5, 6: 6, 7: 7}) | {"sys/devices/cpu_core/cpus": "0-3"}
    assert linux_cores(machine(tmp_path / "intel", intel), range(8)) == 2
    capacity = {f"sys/devices/system/cpu/cpu{i}/cpu_capacity": str(c) for i, c in enumerate([400, 400, 1024, 1024])}
    arm = threads({i: i for i in range(4)}) | capacity
    assert linux_cores(machine(tmp_path / "arm", arm), range(4)) == 2


def test_a_machine_that_reports_nothing_uses_its_hardware_threads(tmp_path: Path) -> None:
    assert linux_cores(tmp_path, [0, 1, 2]) == 3


def test_free_memory_is_what_is_available_within_the_cgroup(tmp_path: Path) -> None:
    files = {"proc/meminfo": "MemTotal: 16000 kB\nMemAvailable:    8000 kB"}
    assert memory.linux_free_memory(machine(tmp_path / "free", files)) == 8000 * 1024
    files |= {
        "proc/self/cgroup": "0::/app",
        "sys/fs/cgroup/app/memory.max": "4096000",
        "sys/fs/cgroup/app/memory.current": "1024000",
        "sys/fs/cgroup/app/memory.stat": "anon 5\ninactive_file 24000",
    }
    assert memory.linux_free_memory(machine(tmp_path / "boxed", files)) == 4096000 - 1024000 + 24000


def test_this_machine_has_cores_and_memory() -> None:
    assert hardware.physical_cores() >= 1
    assert hardware.free_memory_bytes() > 2**20


def test_needs_are_the_weights_the_cache_and_the_buffers(tmp_path: Path) -> None:
    header = read_header(toy.write_toy(tmp_path / "toy.gguf"))
    need = hardware.memory_needed(header, n_ctx=1000)
    assert need.n_ctx == 1024  # llama.cpp rounds up to 256
    assert need.weights_bytes == header.tensor_bytes
    assert need.kv_bytes == 1024 * 2 * 2 * (16 + 16) * 2  # tokens, layers, heads, key and value, bytes of F16
    assert hardware.memory_needed(header, n_ctx=1000, kv_type="F32").kv_bytes == 2 * need.kv_bytes
    assert hardware.memory_needed(header, n_ctx=1000, kv_type="Q8_0").kv_bytes == need.kv_bytes * 34 // 64
    assert need.repacked_bytes == 0
    copied = hardware.memory_needed(header, n_ctx=1000, repacked=frozenset(["F32"])).repacked_bytes
    embedding = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    norms = sum(tensor.nbytes for tensor in header.tensors if len(tensor.shape) == 1)
    assert copied == header.tensor_bytes - embedding.nbytes - norms


def test_what_llama_cpp_repacks_depends_on_the_processor() -> None:
    assert hardware.repacked_types("CPU : AVX2 = 1 | REPACK = 1 | ") == {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
    assert "Q2_K" in hardware.repacked_types("AVX2 = 1 | AVX512 = 1 | REPACK = 1")
    assert "Q8_0" in hardware.repacked_types("NEON = 1 | DOTPROD = 1 | REPACK = 1")
    assert not hardware.repacked_types("AVX2 = 1 | REPACK = 0")
    assert "Q5_K" in hardware.repacked_types("AVX2 = 1 | AVX512_VNNI = 1 | AMX_INT8 = 1")


def test_the_default_context_is_the_largest_that_fits(tmp_path: Path) -> None:
    small = read_header(toy.write_toy(tmp_path / "small.gguf", n_ctx_train=1024))
    large = read_header(toy.write_toy(tmp_path / "large.gguf", n_ctx_train=100_000))
    assert hardware.plan_memory(small, n_ctx=None, free_bytes=2**40).n_ctx == 1024  # what it was trained for
    assert hardware.plan_memory(large, n_ctx=None, free_bytes=2**40).n_ctx == 8192
    tight = hardware.memory_needed(large, n_ctx=3072).total_bytes
    assert hardware.plan_memory(large, n_ctx=None, free_bytes=tight).n_ctx == 3072
    assert hardware.plan_memory(large, n_ctx=None, free_bytes=tight - 1).n_ctx == 2816


def test_what_does_not_fit_says_the_numbers_and_what_would(tmp_path: Path) -> None:
    header = read_header(toy.write_toy(tmp_path / "toy.gguf", n_ctx_train=100_000))
    tight = hardware.memory_needed(header, n_ctx=3072).total_bytes
    with pytest.raises(OutOfMemoryError, match=r"toy.gguf needs .* GiB .* are free: n_ctx=3072 fits"):
        hardware.plan_memory(header, n_ctx=50_000, free_bytes=tight)
    with pytest.raises(OutOfMemoryError, match="convert it to a smaller type"):
        hardware.plan_memory(header, n_ctx=None, free_bytes=1000)
