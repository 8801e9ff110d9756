"""Builds llama-cpp-python with the compiler and flags that work on this machine, and keeps the wheels.

    $ python -m llamalite.native.building                   # what `make` runs: installs a wheel, compiled if need be
    command({"CMAKE_ARGS": "-DGGML_CUDA=on"})        # 'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall ...'

Compilers get llama.cpp's AMX code wrong in two ways; a probe tells whether the installed one does. GCC 11.3 and 12.2,
among others, believe that ldtilecfg reads 8 bytes instead of 64 (``_tile_loadconfig``, amxtileintrin.h) and drop the
stores of the rest (``ggml_tile_config_init``, ggml-cpu/amx/mmq.cpp): the process then crashes on any quantized model.
llama.cpp tests the macro ``__AMX_INT8__``, which clang 14 calls ``__AMXINT8__``: AMX is left out.

This module imports only the standard library, so that it can run before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from llamalite.errors import LlamaliteError
from llamalite.files.replacing import replacing
from llamalite.files.user_folders import cache_folder
from llamalite.native.processor import identity

_LOG = logging.getLogger(__name__)
_RECIPE = 1  # raise it when this file changes what is built, so that older wheels are not used
_N_KEPT = 4  # the newest wheels, of 5 to 500 MB each: for other compilers, settings, or machines that share a home
_STORES = "-fno-tree-dse -fno-dse"  # GCC: do not drop stores as dead; the first flag alone is not enough
_MACRO = "-D__AMX_INT8__=__AMXINT8__"  # clang: the name that llama.cpp tests; it has no effect without AMX
_WITHOUT_AMX = "-U__AMX_INT8__"
# If the assembly contains this name, AMX code was compiled, and the stores before ldtilecfg were kept.
_LOADED = "llamalite_rows"
_PROBE = """
#include <immintrin.h>
#if __AMX_INT8__
extern "C" unsigned char llamalite_rows;
struct alignas(64) Tiles { unsigned char palette, start, zero[14]; unsigned short columns[16]; unsigned char rows[16];
};
void load() { Tiles tiles = {}; tiles.palette = 1; tiles.rows[0] = llamalite_rows; _tile_loadconfig(&tiles); }
#endif
"""
# The environment variables that a build reads: of CMake, scikit-build-core, the compilers and the SDKs.
_SETTINGS = re.compile(
    r"(?!CMAKE_BUILD_PARALLEL_LEVEL$)(CMAKE|SKBUILD|MACOSX)_\w+|CC|CXX|C(PP|XX)?FLAGS|LDFLAGS|ARCHFLAGS|SDKROOT"
    r"|CUDA(CXX|ARCHS|FLAGS|HOSTCXX)|HIP(CXX|FLAGS)|ROCM_PATH|VULKAN_SDK|SOURCE_DATE_EPOCH"
)
_TOOLKITS = {"CUDA": ("nvcc --version", "nvidia-smi -L"), "HIP": ("hipcc --version",), "VULKAN": ("glslc --version",)}


def requirement() -> str:
    """Return the release that llamalite needs, as pip takes it, from pyproject.toml or the installed package."""
    text = ""
    with contextlib.suppress(OSError):
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8", errors="replace")
    if 'name = "llamalite"' not in text:  # not in a checkout
        with contextlib.suppress(metadata.PackageNotFoundError):
            text = "\n".join(metadata.requires("llamalite") or ())
    pin = re.search(r"llama-cpp-python==[\w.]+", text)
    return pin[0] if pin else "llama-cpp-python"


def command(settings: Mapping[str, str] | None = None, *, binary: str = "") -> str:
    """Return the command for this system's shell that compiles and installs llama-cpp-python so that it works here.

    `settings` are environment variables, such as CMAKE_ARGS, in addition to those that are set. With `binary`, the
    address of an index of wheels, the command installs a ready-made wheel instead.
    """
    pip = f"pip install --force-reinstall --no-cache-dir --no-deps {requirement()}"
    if binary:
        return f"{pip} --only-binary llama-cpp-python --extra-index-url {binary}"
    shown = {**(settings or {}), **environment({**os.environ, **(settings or {})}, identity())}
    pip += " --no-binary llama-cpp-python"
    if sys.platform == "win32":  # PowerShell
        return "".join(f"$env:{name}={_quoted(value)}; " for name, value in shown.items()) + pip
    return "".join(f"{name}={_quoted(value)} " for name, value in shown.items()) + pip


def _words(value: str) -> list[str]:
    """Split `value` as a shell does; at blanks if a quotation in it has no end, over which the build itself stops."""
    try:
        return shlex.split(value)
    except ValueError:
        return value.split()


def _quoted(value: str) -> str:
    if not re.search(r'["$`\\]', value):
        return f'"{value}"'
    return "'" + value.replace("'", "''") + "'" if sys.platform == "win32" else shlex.quote(value)


def environment(environ: Mapping[str, str], cpu: str) -> dict[str, str]:
    """Return the variables to set for the build, in addition to `environ`; `cpu` is the processor's `identity`.

    The user's own flags are kept, and ours follow them. CMake ignores CXXFLAGS if CMAKE_ARGS define CMAKE_CXX_FLAGS.
    """
    changes: dict[str, str] = {}
    for variable in ("CC", "CXX"):
        # scikit-build-core takes the compiler that Python was built with, even if only another one is installed.
        if variable not in environ:
            installed = _installed_compiler(variable, environ)
            if installed and installed != _python_compiler(variable):
                changes[variable] = shlex.join(installed)
    flags = amx_flags(environ, cpu) or ""
    macros = " ".join(flag for flag in flags.split() if flag[1] in "DU")
    for added, variable, define in ((macros, "CFLAGS", "CMAKE_C_FLAGS"), (flags, "CXXFLAGS", "CMAKE_CXX_FLAGS")):
        user_flags = _defined(define, environ)
        if added and user_flags is None:
            changes[variable] = f"{environ.get(variable, '')} {added}".strip()
        elif added:
            arguments = changes.get("CMAKE_ARGS", environ.get("CMAKE_ARGS", ""))
            changes["CMAKE_ARGS"] = f"{arguments} {shlex.quote(f'-D{define}={user_flags} {added}')}".strip()
    return changes


def amx_flags(environ: Mapping[str, str], cpu: str) -> str | None:
    """Return the flags with which the compiler gets AMX right ("" for none); None if no AMX code is compiled."""
    compiler = compiler_of("CXX", environ)
    native = _defined("GGML_NATIVE", environ) or ("OFF" if "SOURCE_DATE_EPOCH" in environ else "ON")
    if not compiler:
        return None
    user_flags = _words(environ.get("CXXFLAGS", ""))
    if native.upper() in ("ON", "1", "TRUE", "YES", "Y"):
        return fewest_flags(compiler, [*user_flags, "-march=native"]) if "amx_int8" in cpu.split() else None
    settings = " ".join(environ.get(name, "") for name in ("CMAKE_ARGS", "SKBUILD_CMAKE_ARGS", "CFLAGS", "CXXFLAGS"))
    if re.search("amx|all_variants|-march", settings, re.I):  # for other machines: AMX may be in one of the variants
        target = [*user_flags, "-mamx-tile", "-mamx-int8"]
        return _STORES if fewest_flags(compiler, target) == _STORES else ""
    return None


def fewest_flags(compiler: Sequence[str], target: Sequence[str]) -> str:
    """Return the fewest flags with which `compiler` gets llama.cpp's AMX code right, or the flag that leaves it out."""
    for flags in ("", _STORES, _MACRO, f"{_MACRO} {_STORES}"):
        if _LOADED in _assembly([*compiler, "-O3", *target, *flags.split()]):
            return flags
    return _WITHOUT_AMX


def _assembly(compiler: Sequence[str]) -> str:
    """Return the assembly that `compiler` (with its flags) makes of the probe, "" if it fails.

    Debug information and LTO are off, because with them the assembly would always contain `_LOADED`.
    """
    try:
        done = subprocess.run(
            [*compiler, "-std=c++17", "-g0", "-fno-lto", "-S", "-x", "c++", "-o", "-", "-"],
            input=_PROBE, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def compiler_of(variable: str, environ: Mapping[str, str]) -> list[str]:
    """Return the command of the C (CC) or C++ (CXX) compiler; it is empty if CMake will look for Microsoft's."""
    define = _defined({"CC": "CMAKE_C_COMPILER", "CXX": "CMAKE_CXX_COMPILER"}[variable], environ)
    return [define] if define else _installed_compiler(variable, environ)


def _installed_compiler(variable: str, environ: Mapping[str, str]) -> list[str]:
    if variable in environ or sys.platform == "win32":
        value = environ.get(variable, "")
        return shlex.split(value, posix=False) if sys.platform == "win32" else _words(value)
    names = {"CC": ("cc", "gcc", "clang"), "CXX": ("c++", "g++", "clang++")}[variable]
    for words in (_python_compiler(variable), *([name] for name in names)):
        if words and shutil.which(words[0], path=environ.get("PATH")):
            return words
    return []


def _python_compiler(variable: str) -> list[str]:
    """Return the compiler that Python was built with, without its flags: scikit-build-core's default."""
    words = _words(sysconfig.get_config_var(variable) or "")
    flags = (at for at, word in enumerate(words) if word.startswith("-"))
    return words[: next(flags, len(words))]


def _defined(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the value that the build gives to `name` from the environment; as for CMake, the last one counts."""
    value = None
    for word in (*environ.get("SKBUILD_CMAKE_ARGS", "").split(";"), *_words(environ.get("CMAKE_ARGS", ""))):
        if match := re.fullmatch(rf"(?:-D)?{name}(?::\w+)?=(.*)", word, re.S):
            value = match[1]
    return value


def _output(words: Sequence[str]) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", check=False).stdout.strip()
    except OSError:
        return ""


def build_inputs(environ: Mapping[str, str], cpu: str) -> dict[str, object]:
    """Return everything that decides what is compiled. Python's version does not: the wheel is tagged py3-none."""
    toolkits = [line for name, lines in _TOOLKITS.items() if name in environ.get("CMAKE_ARGS", "") for line in lines]
    return {
        "recipe": _RECIPE,
        "package": requirement(),
        "platform": [sysconfig.get_platform(), *platform.libc_ver()],
        "processor": cpu,
        "compilers": [_output([*words, "--version"]) for v in ("CC", "CXX") if (words := compiler_of(v, environ))],
        "toolkits": [_output(line.split()) for line in toolkits],
        "settings": {name: value for name, value in sorted(environ.items()) if _SETTINGS.fullmatch(name)},
    }


def wheel_key(environ: Mapping[str, str] | None = None, cpu: str | None = None) -> str:
    """Return the name under which a wheel is kept: a digest of everything that decides what is compiled."""
    parts = build_inputs(os.environ if environ is None else environ, identity() if cpu is None else cpu)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def wheels_folder() -> Path:
    """Return the folder of the wheels built on this machine, each of them in a folder named by its key."""
    return cache_folder() / "wheels"


def install() -> str:
    """Install llama-cpp-python into this Python's environment, compiling it if there is no wheel.

    Returns a line that says what was done. pip's own cache is not used: it does not know which compiler, flags and
    processor a wheel was built with. Raises ``FileNotFoundError`` if there is no such compiler, and
    ``subprocess.CalledProcessError`` when pip fails, after pip has printed why.
    """
    if (compiler := compiler_of("CXX", os.environ)) and shutil.which(compiler[0]) is None:
        raise FileNotFoundError(f"{compiler[0]} was not found: correct CXX, or install that compiler")
    cpu, began = identity(), time.monotonic()
    folder = wheels_folder() / wheel_key(cpu=cpu)
    wheel = next(folder.glob("*.whl"), None)
    if wheel is not None:
        os.utime(folder)
        _pip("install", "--quiet", "--no-deps", "--force-reinstall", str(wheel))
        return f"{_described(cpu)}; an earlier wheel, in {folder}"
    _LOG.info("Compiling llama.cpp with %s: three to ten minutes, the first time only.", _compiler_name())
    with tempfile.TemporaryDirectory() as made:
        _pip("wheel", "--no-cache-dir", "--no-deps", "--no-binary", "llama-cpp-python", "--progress-bar", "off",
             "--wheel-dir", made, requirement(), settings=environment(os.environ, cpu))  # fmt: skip
        wheel = next(Path(made).glob("*.whl"))
        _pip("install", "--quiet", "--no-deps", "--force-reinstall", str(wheel))
        try:
            keep_wheel(wheel, folder)
        except OSError as error:  # a full or read-only home; the next environment has to compile again
            _LOG.warning("The wheel could not be kept in %s: %s", folder, error)
    return f"{_described(cpu)}; built in {(time.monotonic() - began) / 60:.1f} minutes"


def keep_wheel(wheel: Path, folder: Path) -> None:
    """Copy `wheel` into `folder`, whole or not at all, and remove the oldest folders beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / wheel.name) as part:
        shutil.copyfile(wheel, part)
    for old in sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-_N_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _pip(*arguments: str, settings: Mapping[str, str] | None = None) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        env={**os.environ, **(settings or {})},
        check=True,
    )


def _described(cpu: str) -> str:
    flags = amx_flags(os.environ, cpu)
    if flags is None:
        amx = "not compiled in" if "amx_int8" in cpu.split() else "none on this processor"
    elif flags == _WITHOUT_AMX:
        amx = "left out, because this compiler gets it wrong"
    else:
        amx = f"in use ({flags})" if flags else "in use"
    return f"{requirement().replace('==', ' ')}: {_compiler_name()}; AMX: {amx}"


def _compiler_name() -> str:
    words = compiler_of("CXX", os.environ)
    return (_output([*words, "--version"]).partition("\n")[0] if words else "") or "the compiler that CMake finds"


if __name__ == "__main__":
    argparse.ArgumentParser(description="Compile llama-cpp-python for this machine, and install it.").parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _LOG.info("%s", install())
    except (LlamaliteError, OSError) as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        _LOG.error("llama-cpp-python could not be installed: docs/install.md, When it fails, says what to do")
        sys.exit(error.returncode)
