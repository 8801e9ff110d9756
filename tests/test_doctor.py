"""doctor: what the system says about the processor, what follows for models, and measured thread counts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import toy
from conftest import Run
from test_hardware import machine as files
from test_hardware import threads as topology

from llamalite import hardware
from llamalite.cli import doctor
from llamalite.hardware import cores, memory
from llamalite.native import devices, features, processor, verdict
from llamalite.performance import benchmark, forecast
from llamalite.performance.benchmark import BenchRow
from llamalite.performance.machine import Machine, examine

TOLD = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | FMA = 1 | LLAMAFILE = 1 | REPACK = 1 | "


def made(**changes: object) -> Machine:
    """A machine as a test wants it."""
    machine = Machine(
        processor="test", n_cores=4, n_usable=4, n_hardware_threads=8, features=(), total_bytes=16 * 10**9,
        free_bytes=8 * 10**9, bandwidth_bytes_per_s=20e9, devices=(), supports_gpu=False,
        verdict=verdict.LibraryVerdict(), versions={},
    )  # fmt: skip
    return dataclasses.replace(machine, **changes)  # type: ignore[arg-type]


# ── the processor ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_instructions_are_used_missed_or_not_there() -> None:
    has = processor.cpuinfo_checker("processor : 0\nflags\t\t: fpu pni avx avx2 fma avx512f avx512_vnni\n")
    flags = {feature.name: (feature.used, feature.present) for feature in features.known_features(TOLD, "x86_64", has)}
    assert flags["AVX2"] == (True, True)
    assert flags["AVX512"] == (False, True)
    assert flags["AVX512_VNNI"] == (False, True)
    assert "AMX_INT8" not in flags  # neither there nor used
    assert made(features=tuple(features.known_features(TOLD, "x86_64", has))).missed == ["AVX512", "AVX512_VNNI"]


def test_facts_that_a_system_does_not_report_are_unknown() -> None:
    hidden = made(features=tuple(features.known_features(TOLD, "x86_64", processor.cpuinfo_checker(""))))
    assert hidden.missed == []
    assert "AVX512" in hidden.unknown
    assert "AVX2" not in hidden.unknown  # llama.cpp uses it, or would not run
    mac = processor.sysctl_checker(
        "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\nhw.optional.neon: 1\n"
    )
    there = {feature.name: feature.present for feature in features.known_features("NEON = 1", "arm64", mac)}
    assert (there["DOTPROD"], there["NEON"], there["SVE"]) == (True, True, None)
    assert "MATMUL_INT8" not in there
    assert features.known_features(TOLD, "riscv64", mac) == []


def test_this_build_uses_nothing_that_this_processor_lacks() -> None:
    assert features.processor_name()
    assert all(feature.present in (True, None) for feature in features.cpu_features() if feature.used)


def test_the_machines_cores_are_all_of_them(tmp_path: Path) -> None:
    names = topology({0: 0, 1: 1, 2: 0, 3: 1}) | {"sys/devices/system/cpu/online": "0-3"}
    assert cores.linux_machine_cores(files(tmp_path / "smt", names)) == 2
    assert cores.linux_machine_cores(tmp_path / "nothing") is None
    limited = {"proc/meminfo": "MemTotal: 16000 kB", "sys/fs/cgroup/memory.max": "4096000"}
    assert memory.linux_total_memory(files(tmp_path / "boxed", limited)) == 4096000
    assert memory.linux_total_memory(tmp_path / "nothing") is None
    assert (hardware.machine_cores() or 1) * 8 >= hardware.physical_cores()
    assert (hardware.total_memory_bytes() or 2**60) >= hardware.free_memory_bytes() // 2


# ── what follows ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "n_params", "bits"),  # what the published models have; TinyLlama's file is 4.85 bits a weight
    [("TinyLlama 1.1B", 1_100_000_000, 4.85), ("Llama 3.1 8B", 8_030_000_000, 4.89)],
)
def test_a_shape_has_the_weights_and_the_size_of_the_published_model(name: str, n_params: int, bits: float) -> None:
    shape = next(model for model in forecast.PUBLISHED if model.name == name)
    header = forecast.header_of(shape, "Q4_K_M")
    assert header.n_params == pytest.approx(n_params, rel=0.005)
    assert header.bits_per_weight == pytest.approx(bits, abs=0.02)


def test_the_largest_type_that_fits_is_named_and_its_speed_is_bandwidth_by_bytes() -> None:
    expected = {model.name: model for model in forecast.largest_that_fit(made(), n_ctx=4096)}
    assert expected["TinyLlama 1.1B"].qtype == "BF16"
    eight = expected["Llama 3.1 8B"]
    assert eight.fits
    assert eight.needed_bytes <= 8e9
    larger = forecast.TYPES[forecast.TYPES.index(eight.qtype or "") - 1]
    shape = next(model for model in forecast.PUBLISHED if model.name == eight.name)
    header = forecast.header_of(shape, larger)
    assert not forecast.forecast(header, made(), n_ctx=4096).fits
    assert forecast.forecast(header, made(), n_ctx=4096).tok_per_s == 20e9 / forecast.bytes_per_token(header)
    assert (expected["Llama 3.3 70B"].fits, expected["Llama 3.3 70B"].qtype) == (False, "Q2_K")


def row(n_threads: int, speed: float, sd: float) -> BenchRow:
    return BenchRow("m", "F32", 1, 1, "tg32", n_threads, 1, 1, "F16", 0, speed, sd, ())


def test_the_best_number_of_threads_is_the_smallest_that_is_as_fast_as_any() -> None:
    assert benchmark.best_threads([row(8, 20.0, 0.2), row(4, 19.9, 0.1), row(1, 6, 0.1)]).n_threads == 4
    assert benchmark.best_threads([row(1, 6, 0.1), row(2, 12, 0.1), row(4, 9, 0.1)]).n_threads == 2
    assert benchmark.thread_counts(made(n_usable=6, n_hardware_threads=12)) == [1, 2, 4, 6, 8, 12]
    assert benchmark.thread_counts(made(n_usable=1, n_hardware_threads=1)) == [1]


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_doctor_describes_the_machine_and_what_it_can_run(llamalite_command: Run) -> None:
    ran = llamalite_command("doctor", "--ctx", "2048")
    assert (ran.returncode, ran.stderr) == (0, "")
    for part in ("processor", "cores", "GB/s measured with", "backends    CPU", "llama-cpp-python 0.3.36", "threads",
                 "TinyLlama 1.1B", "Q4_K_M NEEDS", "TOKENS/S"):  # fmt: skip
        assert part in ran.stdout, part
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_doctor_as_json_says_the_same(llamalite_command: Run, tmp_path: Path) -> None:
    path = toy.write_toy(tmp_path / "toy.gguf")
    document = json.loads(llamalite_command("doctor", path, "--json").stdout)
    assert document["n_usable"] == hardware.physical_cores() == document["threads"]
    assert document["bandwidth_bytes_per_s"] > 1e8
    assert document["backends"] == devices.backends()
    assert document["model"]["fits"] is True
    assert document["model"]["tok_per_s"] == pytest.approx(
        document["bandwidth_bytes_per_s"] / (document["model"]["n_bytes"] - 355 * 64 * 4)
    )
    assert [model["name"] for model in document["largest"]] == [model.name for model in forecast.PUBLISHED]
    assert document["measured"] == []


def test_doctor_measures_threads_on_a_model(llamalite_command: Run, models_folder: Path) -> None:
    models_folder.mkdir()
    toy.write_toy(models_folder / "toy-F32.gguf")
    ran = llamalite_command("doctor", "--threads")
    assert ran.returncode == 0, ran.stderr
    assert "toy-F32.gguf is small and stays in the processor" in ran.stderr
    table = ran.stdout[ran.stdout.index("Threads, measured on toy-F32.gguf") :].splitlines()
    assert table[1].split()[:3] == ["THREADS", "PROMPT", "TOKENS/S"]
    assert sum(line.endswith("best") for line in table) == 1
    assert table[-1].startswith("Next: llamalite run --threads ")
    document = json.loads(llamalite_command("doctor", "toy", "--threads", "--json").stdout)
    assert {row["n_threads"] for row in document["measured"]} == set(benchmark.thread_counts(examine()))
    assert document["threads"] in {row["n_threads"] for row in document["measured"]}


def test_models_that_do_not_fit_are_named_and_no_context_is_longer_than_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = made(free_bytes=10**9)
    largest, usual = (what(tiny, n_ctx=8192) for what in (forecast.largest_that_fit, forecast.as_q4_k_m))
    assert {model.name: model.n_ctx for model in largest} == {model.name: model.n_ctx for model in usual}
    assert {model.name: model.n_ctx for model in largest}["Llama 2 13B"] == 4096
    assert {model.name: model.n_ctx for model in largest}["Llama 3.1 8B"] == 8192
    assert {model.n_ctx for model in forecast.as_q4_k_m(tiny, n_ctx=1024)} == {1024}
    doctor._print_models(largest, usual)
    shown = capsys.readouterr().out.splitlines()
    assert next(line for line in shown if line.startswith("Llama 3.1 8B")).split()[3:8] == [
        "8,192",
        "none",
        "fits",
        "-",
        "-",
    ]
    assert not any("Q2_K" in line and "large" in line for line in shown)
