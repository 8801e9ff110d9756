"""The installed llama-cpp-python: where its files are, and which instructions they were compiled to use.

It calls only functions of llama.cpp that return a constant, so that it is safe on any processor.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

from llamalite.native import building
from llamalite.native.processor import ARM, X86


class _LazyPackage(types.ModuleType):
    """A package whose ``__init__`` runs when one of its names is first used."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = types.ModuleType  # type: ignore[assignment] # from here on an ordinary module
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def package() -> types.ModuleType:
    """Return the package ``llama_cpp`` without running its ``__init__``, which runs if other code uses its names.

    That ``__init__`` imports chat formats, Jinja and a high-level class, five times as much as the bindings that we
    use, and opens files that it never closes.
    """
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None:
            raise ModuleNotFoundError(f"llama-cpp-python is not installed: {building.command()}")
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _LazyPackage
        sys.modules["llama_cpp"] = module
    return sys.modules["llama_cpp"]


def library_folder() -> Path:
    """Return the folder of libllama and of ggml's libraries, as llama-cpp-python finds it."""
    elsewhere = os.environ.get("LLAMA_CPP_LIB_PATH")
    return Path(elsewhere) if elsewhere is not None else Path(str(package().__file__)).parent / "lib"


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """Load a library beside libllama, such as ``ggml-base``; ``FileNotFoundError`` if there is no such library."""
    folder = library_folder()
    for path in (folder / file for file in (f"lib{name}.so", f"lib{name}.dylib", f"{name}.dll", f"lib{name}.dll")):
        if path.exists():
            return ctypes.CDLL(str(path))
    present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise FileNotFoundError(f"no {name} library in {folder}, only {present}: reinstall llama-cpp-python")


def compiled_features() -> tuple[str, ...] | None:
    """Return what libggml-cpu was compiled to use, such as ``("AVX2", "FMA")``; None if the build does not say.

    ``ggml_cpu_has_avx2`` and similar functions (ggml-cpu.h) return constants, so they work even where others would
    crash.
    """
    try:
        cpu = library("ggml-cpu")
    except FileNotFoundError:  # a build that chooses one of several when it starts (GGML_BACKEND_DL)
        return None
    functions = {name: getattr(cpu, f"ggml_cpu_has_{name.lower()}", None) for name in (*X86, *ARM)}
    return tuple(name for name, has in functions.items() if has is not None and has())
