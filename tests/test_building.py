"""llama-cpp-python is built with the flags that its AMX code needs; a kept wheel is used only for the same build."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llamalite.native import building

AMX, PLAIN = "x86_64 fpu avx2 amx_tile amx_int8", "x86_64 fpu avx2"
STORES, MACRO = "-fno-tree-dse -fno-dse", "-D__AMX_INT8__=__AMXINT8__"
# What a compiler makes of the probe with these flags: it names `llamalite_rows` where the store is kept.
COMPILERS = {
    "gcc 12": "'llamalite_rows' if {'-fno-tree-dse', '-fno-dse'} <= flags else 'ldtilecfg'",
    "gcc 14": "'llamalite_rows'",
    "clang 14": f"sys.exit('unknown') if '-fno-dse' in flags else 'llamalite_rows' if '{MACRO}' in flags else ''",
    "of no use": "''",
}

Compiler = Callable[..., str]


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    """Write a compiler that answers as COMPILERS say, and return its command."""

    def written(name: str, version: str = "1.0") -> str:
        path = tmp_path / f"{name}.py".replace(" ", "-")
        answer = f"'{name} {version}' if '--version' in flags else {COMPILERS[name]}"
        path.write_text(f"import sys\nflags = set(sys.argv[1:])\nprint({answer})\n")
        return shlex.join([sys.executable, "-S", "-E", str(path)])

    return written


@pytest.mark.parametrize(
    ("name", "flags"), [("gcc 12", STORES), ("gcc 14", ""), ("clang 14", MACRO), ("of no use", "-U__AMX_INT8__")]
)
def test_the_flags_are_the_fewest_that_this_compiler_needs_for_amx(compiler: Compiler, name: str, flags: str) -> None:
    assert building.amx_flags({"CXX": compiler(name)}, AMX) == flags
    assert building.amx_flags({"CXX": compiler(name)}, PLAIN) is None


def test_a_build_without_amx_sets_nothing(compiler: Compiler) -> None:
    own = {"CC": "cc", "CXX": compiler("gcc 12")}
    assert building.environment(own, PLAIN) == {}
    assert building.environment(own | {"CMAKE_ARGS": "-DGGML_NATIVE=OFF"}, AMX) == {}
    assert building.environment(own | {"SOURCE_DATE_EPOCH": "0"}, AMX) == {}  # ggml then builds for any processor


def test_a_build_for_other_machines_is_fixed_where_it_may_have_amx(compiler: Compiler) -> None:
    own = {"CC": "cc", "CXX": compiler("gcc 12"), "CMAKE_ARGS": "-DGGML_NATIVE=OFF -DGGML_CPU_ALL_VARIANTS=ON"}
    assert building.environment(own, PLAIN) == {"CXXFLAGS": STORES}
    assert building.environment(own | {"CXX": compiler("clang 14")}, PLAIN) == {}


def test_the_users_flags_stay_and_ours_follow(compiler: Compiler) -> None:
    own = {"CC": "cc", "CXX": compiler("gcc 12"), "CXXFLAGS": "-g -fdse", "CMAKE_ARGS": "-DGGML_CUDA=on"}
    assert building.environment(own, AMX) == {"CXXFLAGS": f"-g -fdse {STORES}"}
    own = {"CC": "cc", "CXX": compiler("clang 14"), "CFLAGS": "-g"}
    assert building.environment(own, AMX) == {"CFLAGS": f"-g {MACRO}", "CXXFLAGS": MACRO}


@pytest.mark.parametrize("form", ["-DCMAKE_CXX_FLAGS", "-DCMAKE_CXX_FLAGS:STRING", "-D CMAKE_CXX_FLAGS"])
def test_flags_in_cmake_args_are_added_to_there_since_cmake_then_reads_no_cxxflags(
    compiler: Compiler, form: str
) -> None:
    own = {"CC": "cc", "CXX": compiler("gcc 12"), "CMAKE_ARGS": f"-DGGML_CUDA=on '{form}=-g -DX=\"a b\"'"}
    own["CMAKE_ARGS"] = own["CMAKE_ARGS"].replace("'-D CMAKE_CXX", "-D 'CMAKE_CXX")
    added = building.environment(own, AMX)["CMAKE_ARGS"]
    assert added.startswith(own["CMAKE_ARGS"])
    assert shlex.split(added)[-1] == f'-DCMAKE_CXX_FLAGS=-g -DX="a b" {STORES}'


def test_flags_in_scikit_build_cores_arguments_count_too(compiler: Compiler) -> None:
    own = {"CC": "cc", "CXX": compiler("gcc 12"), "SKBUILD_CMAKE_ARGS": "-DGGML_CUDA=on;-DCMAKE_CXX_FLAGS=-O2"}
    assert shlex.split(building.environment(own, AMX)["CMAKE_ARGS"]) == [f"-DCMAKE_CXX_FLAGS=-O2 {STORES}"]


@pytest.mark.parametrize("variable", ["CMAKE_ARGS", "CXXFLAGS", "CXX"])
def test_settings_with_an_unclosed_quotation_still_give_a_command(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "-DA='x")
    assert "pip install" in building.command()


@pytest.mark.skipif(sys.platform == "win32", reason="CMake looks for Microsoft's compiler there")
def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nope/g++ -m64")
    with pytest.raises(FileNotFoundError, match="/nope/g"):
        building.install()


def test_the_release_is_known_beside_another_projects_pyproject(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = building.requirement()
    (tmp_path / "pyproject.toml").write_text('name = "other"\ndependencies = ["llama-cpp-python==0.0.1"]')
    monkeypatch.setattr(building, "__file__", str(tmp_path / "llamalite" / "native" / "building.py"))
    assert building.requirement() in (expected, "llama-cpp-python")


def test_the_compiler_in_cmake_args_is_the_one_that_is_probed(compiler: Compiler, tmp_path: Path) -> None:
    own = {"CXX": compiler("gcc 12"), "CMAKE_ARGS": f"-DCMAKE_CXX_COMPILER={tmp_path / 'clang++'}"}
    assert building.compiler_of("CXX", own) == [str(tmp_path / "clang++")]


@pytest.mark.skipif(sys.platform == "win32", reason="CMake looks for Microsoft's compiler there")
def test_a_compiler_is_named_if_the_one_that_built_python_is_not_installed(tmp_path: Path) -> None:
    for name in ("c++", "cc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    named = building.environment({"PATH": str(tmp_path)}, PLAIN)
    usual = {name: building._python_compiler(name)[:1] for name in ("CC", "CXX")}
    assert named == {name: there for name, there in (("CC", "cc"), ("CXX", "c++")) if usual[name] != [there]}


# ── the key ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_key_is_the_same_for_the_same_build_and_differs_for_any_other(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"CC": compiler("gcc 14"), "CXX": compiler("gcc 12"), "CMAKE_ARGS": "-DGGML_CUDA=on"}
    keys = [building.wheel_key(own, PLAIN)]
    assert building.wheel_key(own | {"HOME": "elsewhere", "CMAKE_BUILD_PARALLEL_LEVEL": "1"}, PLAIN) == keys[0]
    keys.append(building.wheel_key(own, AMX))
    keys += [building.wheel_key(own | {name: "-g"}, PLAIN) for name in ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS", "LDFLAGS")]
    keys.append(building.wheel_key(own | {"CXX": compiler("clang 14")}, PLAIN))
    compiler("gcc 12", version="1.1")  # upgraded in its place
    keys.append(building.wheel_key(own, PLAIN))
    for name, value in (("_RECIPE", -1), ("requirement", lambda: "llama-cpp-python==0.0.0")):
        monkeypatch.setattr(building, name, value)
        keys.append(building.wheel_key(own, PLAIN))
    assert len(set(keys)) == len(keys)
    assert all(key.isalnum() for key in keys)


def test_wheels_are_kept_complete_and_the_oldest_are_removed(tmp_path: Path) -> None:
    wheel = tmp_path / "llama_cpp_python.whl"
    wheel.write_bytes(b"wheel")
    for age in range(6):
        folder = tmp_path / "wheels" / str(age)
        building.keep_wheel(wheel, folder)
        os.utime(folder, (age, age))
    building.keep_wheel(wheel, tmp_path / "wheels" / "new")
    kept = sorted(path.name for path in (tmp_path / "wheels").iterdir())
    assert "new" in kept
    assert len(kept) == building._N_KEPT
    assert [path.name for path in (tmp_path / "wheels" / "new").iterdir()] == [wheel.name]


# ── the commands that are shown ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "environment", lambda environ, has: {})
    monkeypatch.setattr(building, "identity", lambda: "a processor without AMX")


def test_the_release_is_the_one_that_is_pinned(root: Path) -> None:
    assert building.requirement() in (root / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("platform_", ["linux", "win32"])
def test_the_command_is_one_line_for_the_shell_of_the_system(
    monkeypatch: pytest.MonkeyPatch, without_amx: None, platform_: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform_)
    pip = (
        f"pip install --force-reinstall --no-cache-dir --no-deps {building.requirement()} --no-binary llama-cpp-python"
    )
    assert building.command() == pip
    shown = building.command({"CMAKE_ARGS": "-DGGML_CUDA=on"})
    assert shown == ('$env:' if platform_ == "win32" else "") + 'CMAKE_ARGS="-DGGML_CUDA=on"' + (
        f"; {pip}" if platform_ == "win32" else f" {pip}"
    )  # fmt: skip
    assert building.command(binary="https://wheels").endswith(
        "--only-binary llama-cpp-python --extra-index-url https://wheels"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="the shell is sh")
def test_the_command_that_fixes_amx_passes_the_same_flags_as_the_build(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pip").write_text('#!/bin/sh\nprintf "%s|%s" "$CXXFLAGS" "$*"\n')
    (tmp_path / "pip").chmod(0o755)
    monkeypatch.setenv("CXX", compiler("gcc 12"))
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setenv("CXXFLAGS", """-DX='"a b"'""")
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(building, "identity", lambda: AMX)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    output = subprocess.run(building.command(), shell=True, env={"PATH": path}, capture_output=True, text=True).stdout
    assert output.partition("|")[0] == f"""-DX='"a b"' {STORES}"""
    assert building.requirement() in output


# ── the compilers at hand ───────────────────────────────────────────────────────────────────────────────────────────


def at_hand(name: str) -> str:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("AMX is of x86-64")
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    target = [name, "-mamx-tile", "-mamx-int8", "-fsyntax-only", "-x", "c++", "-"]
    if subprocess.run(target, input="", text=True, capture_output=True).returncode:
        pytest.skip(f"this {name} does not know AMX")
    return name


def not_stored(command: list[str]) -> list[str]:
    """Which of the 64 bytes that are loaded as tiles the compiler had not stored before."""
    names = [f"byte_{i:02}" for i in range(64)]
    source = (
        "#include <immintrin.h>\n#include <cstdint>\n#ifdef __AMX_INT8__\n"
        f'extern "C" uint8_t {", ".join(names)};\n'
        f"void load() {{ alignas(64) uint8_t tiles[64] = {{{', '.join(names)}}}; _tile_loadconfig(tiles); }}\n#endif\n"
    )
    done = subprocess.run([*command, "-std=c++17", "-O3", "-S", "-x", "c++", "-o", "-", "-"],
                          input=source, check=True, capture_output=True, text=True)  # fmt: skip
    before = done.stdout.partition("ldtilecfg")[0]
    return [one for one in names if one not in before]


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_all_64_bytes_are_stored_before_they_are_loaded_as_tiles(name: str) -> None:
    """The pattern of ``ggml_tile_config_init``: correct with the flags that were found, and wrong without them."""
    target = [at_hand(name), "-mamx-tile", "-mamx-int8"]
    flags = building.fewest_flags([name], target[1:])
    assert flags != "-U__AMX_INT8__"
    assert not_stored([*target, *flags.split()]) == []
    if flags:
        assert not_stored(target) != []
    assert building.fewest_flags([name], [*target[1:], "-g", "-flto"]) == flags  # the user's own do not hide the fault
