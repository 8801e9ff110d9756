"""Whether the installed llama.cpp works on this processor, and what has to be left off so that it does.

    verdict = current()
    verdict.extra_buffers        # False: weights stay as they are in the file, without AMX and without repacking
    verdict.refused("Q4_K")      # why weights of a type cannot be computed, None where they can
    verdict.require()            # ModelLoadError where nothing can

A library that was compiled for another processor, or by a compiler with a fault, ends the process in the middle of a
decode, or computes something else. So the first use of a build on a processor is tried in a child process
(`llamalite.native.trial`), which takes half a second. The verdict is kept in the user's cache folder under the identity
of the library's files and of the processor. ``LLAMALITE_TRIAL=off`` tries nothing, and leaves nothing off.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamalite.errors import ModelLoadError
from llamalite.files.user_folders import cache_folder
from llamalite.native import building, installed, processor
from llamalite.quant_types import WEIGHT_TYPES

_logger = logging.getLogger(__name__)

STARTS = {
    "features": "is loaded",
    "quantization": "quantizes",
    "start": "starts",
}
"""The steps before any weight type, and what llama.cpp does in them."""

LARGEST_DISTANCE = 0.1
"""Between the logits of a type's weights and those of the same weights as float32; a right build stays below 0.03."""

_TIMEOUT_S = 120
_VERSION = 1  # of the steps and of what is kept: another one is tried anew
_ILLEGAL = "illegal instruction"
_CRASHES = {
    "SIGILL": _ILLEGAL, "SIGSEGV": "segmentation fault", "SIGBUS": "bus error", "SIGFPE": "arithmetic error",
    "SIGABRT": "abort", "SIGTRAP": "trap", "SIGSYS": "forbidden system call",
}  # fmt: skip
_WINDOWS_CRASHES = {
    0xC000001D: _ILLEGAL, 0xC0000005: "access violation", 0xC0000094: "arithmetic error", 0xC0000096: _ILLEGAL,
    0xC00000FD: "stack overflow", 0xC0000409: "abort",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A step in which the library failed: one of `STARTS`, or a weight type, with or without extra buffers."""

    step: str
    extra_buffers: bool
    how: str


@dataclass(frozen=True)
class LibraryVerdict:
    """What a trial has shown. `features` are the sets of instructions that the library was compiled to use, if known.

    `untried` says why there was no trial; what is known to crash elsewhere is then left off unseen.
    """

    features: tuple[str, ...] | None = None
    faults: tuple[Fault, ...] = ()
    n_types: int = 0
    untried: str | None = None

    @property
    def extra_buffers(self) -> bool:
        """Whether llama.cpp may copy weights into an order made for the processor (``use_extra_bufts``, llama.h)."""
        if self.untried is not None:
            return "AMX_INT8" not in (self.features or ())
        return not any(fault.extra_buffers and fault.step not in STARTS for fault in self.faults)

    def refused(self, tensor_type: str) -> str | None:
        """Return what happens with weights of this type even without extra buffers, None where they are right."""
        return next((f.how for f in self.faults if f.step == tensor_type and not f.extra_buffers), None)

    def require(self, steps: tuple[str, ...] = tuple(STARTS)) -> None:
        """Raise ``ModelLoadError`` with the reason and the command that mends it if one of `steps` failed."""
        for fault in self.faults:
            if fault.step in steps:
                raise ModelLoadError(self._explained(fault))

    def _explained(self, fault: Fault) -> str:
        if fault.how != _ILLEGAL:
            return f"the installed llama-cpp-python dies when it {STARTS[fault.step]} ({fault.how}): {mend()}"
        absent = processor.missing(list(self.features or ()))
        if absent:
            needs = f"it was compiled for processors with {' '.join(absent)}, which this one lacks"
        elif self.features is None and processor.lacking():
            needs = f"it was compiled for a newer processor: this one has no {' '.join(processor.lacking())}"
        else:
            needs = "it uses an instruction that this one lacks"
        return f"the installed llama-cpp-python cannot run on this processor ({_ILLEGAL}): {needs}. {mend()}"

    @property
    def uses_amx(self) -> bool:
        return "AMX_INT8" in (self.features or ())

    def lines(self) -> list[str]:
        """Return one line for each way in which the library failed: what happened, and with which weights."""
        grouped: dict[tuple[bool, str], list[str]] = {}
        for fault in self.faults:
            grouped.setdefault((fault.extra_buffers, fault.how), []).append(fault.step)
        lines = []
        for (extra_buffers, how), steps in grouped.items():
            if steps[0] in STARTS:
                lines.append(f"{how} when it {STARTS[steps[0]]}")
            else:
                others = f" and {len(steps) - 4} others" if len(steps) > 4 else ""
                where = f"when {self.buffers} are on" if extra_buffers else "always"
                lines.append(f"{how} with {' '.join(steps[:4])}{others}, {where}")
        return lines

    def warning(self) -> str | None:
        """Return what is left off, what that costs, and the command that mends it; None where nothing is."""
        if self.extra_buffers:
            return None
        if self.untried is not None:
            return (
                f"the installed llama-cpp-python uses AMX and could not be tried on this processor ({self.untried}): "
                "AMX and repacked weights are off. Prompts are read more slowly. LLAMALITE_TRIAL=off turns them on"
            )
        return (
            f"the installed llama-cpp-python fails on this processor ({'; '.join(self.lines())}): {self.buffers} "
            f"are off. Answers are right, and prompts are read more slowly. {mend()}"
        )

    @property
    def buffers(self) -> str:
        """What extra buffers hold, in words."""
        return "AMX and repacked weights" if self.uses_amx else "repacked weights"


def mend() -> str:
    """Return the sentence with the command that installs a llama-cpp-python made for this machine."""
    return f"To mend it, compile it on this machine: {building.command()}"


# The child imports what this process would, from wherever that comes.
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from llamalite.native import trial
trial.main(sys.argv[2])
"""

_lock = threading.Lock()


@functools.cache
def _judged() -> LibraryVerdict:
    if os.environ.get("LLAMALITE_TRIAL", "").lower() in ("off", "0", "no"):
        return LibraryVerdict()
    path = cache_folder() / "trials" / f"{_identity()}.json"
    return _read(path) or _tried(path)


def current() -> LibraryVerdict:
    """Return the verdict on the installed library and this processor, tried now if nobody has before."""
    with _lock:
        return _judged()


def _identity() -> str:
    """A digest of the library's files, of the processor, and of how it is tried."""
    folder = installed.library_folder()
    stats = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in sorted(folder.iterdir())]
    return hashlib.sha256(repr((_VERSION, str(folder), stats, processor.identity())).encode()).hexdigest()[:32]


def _read(path: Path) -> LibraryVerdict | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        faults = tuple(Fault(**fault) for fault in kept["faults"])
        features = tuple(kept["features"]) if kept["features"] is not None else None
        return LibraryVerdict(features, faults, int(kept["n_types"]))
    except (OSError, ValueError, TypeError, KeyError):  # never tried, or a file that was cut off: it is tried again
        return None


def _keep(verdict: LibraryVerdict, path: Path) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        _logger.info("the trial of llama.cpp is not kept for the next run: %s", error)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _tried(path: Path) -> LibraryVerdict:
    if (reason := _cannot_try()) is not None:
        return _untried(reason)
    try:
        verdict = judge(run_child)
    except (OSError, subprocess.TimeoutExpired, Undecided) as error:
        return _untried(str(error))
    # A process with little memory may die of that, and says nothing of the library.
    if not (verdict.faults and _is_memory_limited()):
        _keep(verdict, path)
    return verdict


def _untried(reason: str) -> LibraryVerdict:
    _logger.info("llama.cpp is not tried on this processor: %s", reason)
    return LibraryVerdict(installed.compiled_features(), untried=reason)


def _cannot_try() -> str | None:
    """Why no Python can be started as a child, None where it can."""
    if getattr(sys, "frozen", False):
        return "a frozen program has no Python to try it in"
    if "python" not in Path(sys.executable or "").name.lower():
        return f"sys.executable is {sys.executable!r}, which is no Python"
    return None


def _is_memory_limited() -> bool:
    if sys.platform == "win32":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


class Undecided(Exception):  # noqa: N818 - no fault of anybody's
    """A trial that ended without a finding: Python failed in it, or somebody ended it."""


@dataclass(frozen=True)
class Report:
    """What a child printed, and how it ended: None, or in words."""

    lines: list[dict[str, Any]]
    crash: str | None

    @property
    def features(self) -> tuple[str, ...] | None:
        names = next((line["features"] for line in self.lines if "features" in line), None)
        return None if names is None else tuple(names)

    @property
    def died_in(self) -> str | None:
        if self.crash is None:
            return None
        return next((str(line["step"]) for line in reversed(self.lines) if "step" in line), next(iter(STARTS)))

    @property
    def wrong(self) -> list[str]:
        """The types whose logits are too far from float32's; NaN is."""
        measured = [(line["type"], line["distance"]) for line in self.lines if "distance" in line]
        return [name for name, distance in measured if not distance <= LARGEST_DISTANCE]


def run_child(extra_buffers: bool, types: list[str]) -> Report:
    """Run the trial in a process of its own. Raises ``Undecided`` if it neither finishes nor dies of the library."""
    settings = json.dumps({"extra_buffers": extra_buffers, "types": types})
    # No GPU: the trial is of the processor, and GPU drivers start slowly.
    hidden = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"), "")
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(sys.path), settings],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | hidden | {"LLAMALITE_TRIAL": "off"},
        timeout=_TIMEOUT_S,
        check=False,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    lines = [json.loads(line) for line in ran.stdout.decode("utf-8", "replace").splitlines() if line.startswith("{")]
    if lines and "end" in lines[-1]:
        return Report(lines, None)
    errors = ran.stderr.decode("utf-8", "replace").strip().splitlines()
    crash = _crash(ran.returncode)
    if crash is None or any("bad_alloc" in line or "failed to allocate" in line for line in errors):
        raise Undecided(f"the trial ended with code {ran.returncode}: {errors[-1] if errors else 'it gave no reason'}")
    return Report(lines, crash)


def _crash(code: int) -> str | None:
    """What the exit code of a child says it died of, None if it did not die of what it computed."""
    if code >= 0:
        return _WINDOWS_CRASHES.get(code)
    with contextlib.suppress(ValueError):
        return _CRASHES.get(signal.Signals(-code).name)
    return None


def judge(run: Any) -> LibraryVerdict:
    """Return the verdict on a library, of which ``run(extra_buffers, types)`` tries the types and returns a `Report`.

    First with extra buffers; if a type dies or computes something else, all types without. There a type that dies is
    refused, and the next ones are tried in another child.
    """
    faults: list[Fault] = []
    extra_buffers, types = True, list(WEIGHT_TYPES)
    while True:
        report = run(extra_buffers, types)
        faults += [Fault(name, extra_buffers, "wrong numbers") for name in report.wrong]
        died_in = report.died_in
        if died_in is not None:
            faults.append(Fault(died_in, extra_buffers, str(report.crash)))
        if died_in in STARTS:
            break
        if extra_buffers and faults:
            extra_buffers, types = False, list(WEIGHT_TYPES)
            continue
        if died_in is None:
            break
        types = types[types.index(died_in) + 1 :]
    return LibraryVerdict(report.features, tuple(faults), len(WEIGHT_TYPES))
