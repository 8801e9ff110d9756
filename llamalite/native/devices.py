"""The devices that llama.cpp can compute on: those of the backends that the installed library was built with.

    [device.name for device in devices()]        # ['CUDA0', 'CPU'], or ['CPU'] where it was built without a GPU
    offload("auto")                              # -1 (all layers) if there is a GPU, else 0
    offload(20, "CUDA0")                         # 20; ModelLoadError if there is no GPU of that name

The signatures are those of ggml-backend.h in llama-cpp-python 0.3.36, whose own bindings lack them.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llamalite.errors import ModelLoadError
from llamalite.native import building
from llamalite.native.library import ggml, llama

Layers = int | Literal["auto", "all"]
_KINDS = ("cpu", "gpu", "igpu", "accelerator", "meta")  # enum ggml_backend_dev_type (ggml-backend.h)
_WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"


@dataclass(frozen=True)
class Device:
    """A processor that a backend computes on. The memory is 0 bytes if the backend does not report it."""

    name: str  # as `--device` takes it: CUDA0, Metal, Vulkan1
    description: str
    kind: str  # cpu, gpu, igpu (integrated: in the machine's own memory), accelerator (helps the CPU)
    backend: str
    free_bytes: int
    total_bytes: int

    @property
    def is_gpu(self) -> bool:
        return self.kind in ("gpu", "igpu")


def devices() -> list[Device]:
    """Return the devices, in llama.cpp's order."""
    return [_device(pointer) for pointer in _pointers()]


def backends() -> list[str]:
    """Return the names of the backends, such as ``["CUDA", "CPU"]``."""
    return list(dict.fromkeys(device.backend for device in devices()))


def _pointers() -> list[int]:
    llama()  # registers the backends
    lib = _bound()
    return [lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count())]


def _bound() -> Any:
    """Return libggml, with the signatures of the functions used here (ggml-backend.h)."""
    lib = ggml()
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, arguments, result in (
        ("ggml_backend_dev_count", [], size),
        ("ggml_backend_dev_get", [size], pointer),
        ("ggml_backend_dev_name", [pointer], ctypes.c_char_p),
        ("ggml_backend_dev_description", [pointer], ctypes.c_char_p),
        ("ggml_backend_dev_type", [pointer], ctypes.c_int),
        ("ggml_backend_dev_memory", [pointer, ctypes.POINTER(size), ctypes.POINTER(size)], None),
        ("ggml_backend_dev_backend_reg", [pointer], pointer),
        ("ggml_backend_reg_name", [pointer], ctypes.c_char_p),
    ):
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, result
    return lib


def _device(pointer: int) -> Device:
    lib = _bound()
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    lib.ggml_backend_dev_memory(pointer, ctypes.byref(free), ctypes.byref(total))
    kind = lib.ggml_backend_dev_type(pointer)
    return Device(
        name=lib.ggml_backend_dev_name(pointer).decode(),
        description=lib.ggml_backend_dev_description(pointer).decode("utf-8", "replace"),
        kind=_KINDS[kind] if 0 <= kind < len(_KINDS) else "unknown",
        backend=lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(pointer)).decode(),
        free_bytes=free.value,
        total_bytes=total.value,
    )


def offload(layers: Layers, device: str | None = None) -> int:
    """Return how many layers a GPU should compute, -1 for all; `device` is a name, or several separated by commas.

    "auto" is all if the installed llama.cpp can use a GPU, else none. Raises ``ModelLoadError``, which says what to do,
    for layers or a device without a GPU backend, and for a device that does not exist.
    """
    if layers not in ("auto", "all") and (isinstance(layers, bool) or not isinstance(layers, int) or layers < -1):
        raise ValueError(f"n_gpu_layers must be 'auto', 'all' or a number of layers, found {layers!r}")
    has_gpu = llama().llama_supports_gpu_offload()
    if (device is not None or layers not in ("auto", 0)) and not has_gpu:
        request = f"device {device}" if device is not None else f"{'all' if layers in ('all', -1) else layers} layers"
        raise ModelLoadError(
            f"{request} on a GPU: the installed llama-cpp-python has no GPU backend (it has {', '.join(backends())}): "
            f"use no GPU, or install it with a GPU backend: {gpu_install_command()}"
        )
    if device is not None:
        device_array(device)
    if layers == "auto":
        return -1 if has_gpu else 0
    return -1 if layers == "all" else int(layers)


def device_array(names: str) -> Any:
    """Return the devices in `names` (separated by commas) as a C array of pointers that ends with NULL."""
    known = {device.name.casefold(): pointer for pointer in _pointers() if (device := _device(pointer)).kind != "cpu"}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name.casefold() not in known:
            others = ", ".join(device.name for device in devices() if device.kind != "cpu") or "none"
            raise ModelLoadError(f"there is no device {name!r} to run layers on: this machine has {others}")
    return (ctypes.c_void_p * (len(wanted) + 1))(*(known[name.casefold()] for name in wanted), None)


def has_gpu_driver() -> bool:
    """Tell whether a GPU's driver seems to be installed, whatever llama.cpp was built with."""
    return sys.platform == "darwin" or shutil.which("nvidia-smi") is not None or Path("/dev/kfd").exists()


def gpu_install_command() -> str:
    """Return the command for this system's shell that installs llama-cpp-python with a GPU backend."""
    if sys.platform == "darwin":
        flags, wheels = "-DGGML_METAL=on", "metal"
    elif shutil.which("nvidia-smi") or not Path("/dev/kfd").exists():
        flags, wheels = "-DGGML_CUDA=on", "cu124"
    else:  # AMD's driver is installed, and NVIDIA's is not
        flags, wheels = "-DGGML_HIP=on", "rocm72"
    compiled, ready_made = building.command({"CMAKE_ARGS": flags}), building.command(binary=f"{_WHEELS}/{wheels}")
    return f"{compiled} (ready-made: {ready_made}; other GPUs: docs/install.md)"
