"""Options that several verbs share, so that their names, bounds and error messages are the same.

A value that is never valid is wrong usage (exit code 2, click's message). A value that this model or this machine
cannot use is an error of the library (exit code 1).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

MOST_THREADS = 512  # GGML_MAX_N_THREADS (ggml.h)


class Count(click.IntRange):
    """A whole number from `least` up that fits into C's int."""

    def __init__(self, least: int) -> None:
        super().__init__(min=least)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number: int = super().convert(value, param, ctx)
        if number >= 2**31:
            self.fail(f"{number} is larger than llama.cpp allows.", param, ctx)
        return number


class Number(click.FloatRange):
    """A finite number within bounds; click's own type accepts NaN and, without bounds, infinity."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


COUNT, COUNT_OR_NONE = Count(1), Count(0)
SEED = click.IntRange(0, 2**32 - 2)
THREADS = click.IntRange(1, MOST_THREADS)
TEMPERATURE = Number(0, 100)
KV_TYPE = click.Choice(["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"], case_sensitive=False)
PROBABILITY = Number(0, 1)
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty")


def threads(name: str = "threads") -> Callable[[F], F]:
    return click.option(
        "--threads", name, type=THREADS, metavar="N", help="Number of threads. Default: the physical cores usable here."
    )


def sampling(command: F) -> F:
    """Add the options of `SAMPLING`. What is not given is the file's, or the default of `llamalite.SamplingParams`."""
    for option in (
        click.option("--repeat-penalty", type=Number(0.01, 100), metavar="R", help="Default: the file's, else 1: off."),
        click.option("--min-p", type=PROBABILITY, metavar="P", help="Default: the file's, else 0.05; 0 is off."),
        click.option("--top-k", type=COUNT_OR_NONE, metavar="K", help="Default: the file's, else 40; 0 is off."),
        click.option("--top-p", type=PROBABILITY, metavar="P", help="Default: the file's, else 0.95; 1 is off."),
        click.option(
            "--temp", "temperature", type=TEMPERATURE, metavar="T",
            help="0 always picks the likeliest token. Default: the file's, else 0.8.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def gpu(default: str = "auto") -> Callable[[F], F]:
    """Add ``--gpu-layers`` and ``--device``, whose values `offload` checks."""

    def add(command: F) -> F:
        command = click.option("--device", metavar="NAME", help="The GPU to use, by its name in llamalite doctor.")(
            command
        )
        return click.option(
            "--gpu-layers", default=default, show_default=True, metavar="auto|all|N", callback=_layers,
            help="Layers on the GPU. auto: all of them if there is a GPU.",
        )(command)  # fmt: skip

    return add


def layers(value: str) -> int | str:
    """Return ``auto``, ``all`` or the number typed; raise ``click.BadParameter`` for anything else."""
    if value in ("auto", "all"):
        return value
    if value.isascii() and value.isdigit() and int(value) < 2**31:
        return int(value)
    raise click.BadParameter(f"{value!r} is neither 'auto', 'all' nor a number of layers")


def _layers(_ctx: click.Context, _param: click.Parameter, value: str) -> int | str:
    return layers(value)


def offload(options: dict[str, Any]) -> dict[str, Any]:
    """Remove ``gpu_layers`` and ``device`` from `options`, and return them as the library's arguments.

    If the installed llama.cpp cannot offload, raises an error before anything is downloaded, converted or read.
    """
    wanted, device = options.pop("gpu_layers"), options.pop("device")
    if wanted == 0 and device is None:
        return {"n_gpu_layers": 0, "device": None}
    from llamalite.native import devices

    return {"n_gpu_layers": devices.offload(wanted, device), "device": device}


def adapters(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, float]]:
    """Return what ``--lora FILE[=SCALE]`` names, as (file, scale)."""
    found = []
    for value in values:
        path, equals, scale = value.rpartition("=")
        try:
            weight = float(scale) if equals else 1.0
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise click.BadParameter(f"{value!r} is not FILE or FILE=SCALE")
        found.append((path if equals else value, weight))
    return found


def loading(command: F) -> F:
    """Add the options with which a model is loaded, whose values `loaded_with` returns, and ``--draft``."""
    for option in (
        click.option("--draft", metavar="MODEL", help="Speculate with a small model of the same vocabulary."),
        click.option(
            "--exact", is_flag=True, help="F32 cache, no flash attention: results that agree across machines."
        ),
        click.option(
            "--flash-attn", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
            help="Attention in one pass over the cache: faster, with K and V rounded to F16.",
        ),
        click.option(
            "--kv-type", type=KV_TYPE, default="F16", show_default=True, metavar="TYPE",
            help="Type of the KV cache; Q8_0 takes half the memory of F16.",
        ),
        click.option(
            "--lora", multiple=True, metavar="FILE[=SCALE]", callback=adapters,
            help="A LoRA adapter in GGUF format; repeatable.",
        ),
        gpu(),
        threads(),
        click.option(
            "--ctx", "n_ctx", type=COUNT, metavar="N",
            help="Tokens of context. Default: 8192, or less if the model or the free memory requires it.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def loaded_with(options: dict[str, Any]) -> dict[str, Any]:
    """Return what `loading` has chosen as fields of `llamalite.ModelOptions`, without the draft model."""
    from llamalite.native.lora import LoraAdapter

    return {
        **offload(options),
        "n_ctx": options["n_ctx"],
        "n_threads": options["threads"],
        "kv_type": options["kv_type"],
        "flash_attn": {"auto": "auto", "on": True, "off": False}[options["flash_attn"]],
        "lora": [LoraAdapter(file, scale) for file, scale in options["lora"]],
        "exact": options["exact"],
    }


def check_writable(path: Path) -> None:
    """Raise ``OSError`` if `path` cannot be written: before hours of work, not after them."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise PermissionError(f"{path} cannot be written: its permissions do not allow it")
