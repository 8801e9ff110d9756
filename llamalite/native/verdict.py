"""Whether the installed llama.cpp works on this processor, and what has to be turned off so that it does.

    verdict = current()
    verdict.extra_buffers        # False: weights stay as they are in the file, without AMX and without repacking
    verdict.refused("Q4_K")      # why weights of this type cannot be computed, None if they can
    verdict.require()            # ModelLoadError if no model can be computed

A library that was compiled for another processor, or by a faulty compiler, crashes the process during a decode, or
computes wrong numbers. So a build is tried on a processor before its first use, in a child process
(`llamalite.native.trial`), which takes half a second. The verdict is kept in the user's cache folder, under the
identity of the library's files and the processor. ``LLAMALITE_TRIAL=off`` skips the trial and turns nothing off.
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
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamalite.errors import LlamaliteError, ModelLoadError
from llamalite.files.replacing import replacing
from llamalite.files.user_folders import cache_folder
from llamalite.native import building, installed, processor
from llamalite.native.child import ONLY_INSTALLED
from llamalite.quant_types import WEIGHT_TYPES

_logger = logging.getLogger(__name__)

STARTS = {
    "features": "is loaded",
    "quantization": "quantizes",
    "start": "starts",
}
"""The steps before those of weight types, with the verb for what the library does in each."""

LARGEST_DISTANCE = 0.1
"""Of a type's logits from those of the same weights as float32 (`trial.distance`); a correct build is below 0.03."""

_TIMEOUT_S = 120
_SMALLEST_STACK_BYTES = 1 << 20  # of a stack that is large enough for a trial; 8 MiB are usual
_VERSION = 1  # of the steps and of the file's format: verdicts of another version are not used
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
    """The result of a trial. `features` are the instruction sets that the library was compiled to use, if known.

    If there was no trial, `untried` says why; extra buffers are then off if the library uses AMX, which is the most
    likely to crash.
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
        """Return how weights of this type fail without extra buffers; None if they do not."""
        return next((f.how for f in self.faults if f.step == tensor_type and not f.extra_buffers), None)

    def require(self, steps: tuple[str, ...] = tuple(STARTS)) -> None:
        """Raise ``ModelLoadError``, with the reason and the command that repairs it, if one of `steps` failed."""
        for fault in self.faults:
            if fault.step in steps:
                raise ModelLoadError(self._explained(fault))

    def _explained(self, fault: Fault) -> str:
        if fault.how != _ILLEGAL:
            return f"the installed llama-cpp-python crashes when it {STARTS[fault.step]} ({fault.how}): {repair()}"
        absent = processor.missing(list(self.features or ()))
        if absent:
            needs = f"it was compiled for processors with {' '.join(absent)}, which this one lacks"
        elif self.features is None and processor.all_missing():
            needs = f"it was compiled for a newer processor: this one has no {' '.join(processor.all_missing())}"
        else:
            needs = "it uses an instruction that this one lacks"
        return f"the installed llama-cpp-python cannot run on this processor ({_ILLEGAL}): {needs}. {repair()}"

    @property
    def uses_amx(self) -> bool:
        return "AMX_INT8" in (self.features or ())

    def lines(self) -> list[str]:
        """Return a line for each kind of failure: what happened, and with which weights."""
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
        """Return what is turned off, what that costs, and how to repair it; None if nothing is turned off."""
        if self.extra_buffers:
            return None
        if self.untried is not None:
            return (
                f"the installed llama-cpp-python uses AMX and could not be tried on this processor ({self.untried}): "
                "AMX and repacked weights are off. Prompts may be read more slowly. LLAMALITE_TRIAL=off turns them on"
            )
        return (
            f"the installed llama-cpp-python fails on this processor ({'; '.join(self.lines())}): {self.buffers} "
            f"are off. Answers are correct; prompts may be read more slowly. {repair()}"
        )

    @property
    def buffers(self) -> str:
        """What extra buffers are for, in words."""
        return "AMX and repacked weights" if self.uses_amx else "repacked weights"


def repair() -> str:
    """Return a sentence with the command that compiles llama-cpp-python for this machine."""
    return f"To repair it, compile it on this machine: {building.command()}"


# The child process imports from the same places as this one.
_CHILD = f"""{ONLY_INSTALLED}
import json
sys.path[:] = json.loads(sys.argv[1])
from llamalite.native import trial
trial.main(sys.argv[2])
"""

_lock = threading.Lock()


def _renew_lock() -> None:
    """Make a new lock in a forked process, in which no thread would ever release one that was held."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@functools.cache
def _cached_verdict() -> LibraryVerdict:
    if os.environ.get("LLAMALITE_TRIAL", "").strip().lower() in ("off", "0", "no", "false"):
        return LibraryVerdict()
    try:
        path = cache_folder() / "trials" / f"{_identity()}.json"
    except LlamaliteError:  # no home folder: the verdict counts for this process only
        return _run_trial(None)
    return _read(path) or _run_trial(path)


def current() -> LibraryVerdict:
    """Return the verdict on the installed library and this processor, after a trial if there was none before."""
    with _lock:
        return _cached_verdict()


def _identity() -> str:
    """Return a digest of the library's files, the processor, and the version of the trial."""
    folder = installed.library_folder()
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    stats = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    return hashlib.sha256(repr((_VERSION, str(folder), stats, processor.identity())).encode()).hexdigest()[:32]


def _read(path: Path) -> LibraryVerdict | None:
    """Return the verdict in `path`; None if there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        faults = tuple(Fault(str(f["step"]), bool(f["extra_buffers"]), str(f["how"])) for f in saved["faults"])
        features = None if saved["features"] is None else tuple(str(name) for name in saved["features"])
        return LibraryVerdict(features, faults, int(saved["n_types"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _save(verdict: LibraryVerdict, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
    except OSError as error:
        _logger.info("the verdict on llama.cpp cannot be saved for the next run: %s", error)


def _run_trial(path: Path | None) -> LibraryVerdict:
    """Try the library, and keep the verdict in `path`."""
    if (reason := _cannot_try()) is not None:
        return _untried_verdict(reason)
    try:
        verdict = judge(run_child)
    except (OSError, Undecided) as error:
        return _untried_verdict(str(error))
    # If memory is limited, a child may crash for lack of it, which says nothing about the library.
    if path is not None and not (verdict.faults and _is_memory_limited()):
        _save(verdict, path)
    return verdict


def _untried_verdict(reason: str) -> LibraryVerdict:
    _logger.info("llama.cpp was not tried on this processor: %s", reason)
    return LibraryVerdict(installed.compiled_features(), untried=reason)


def _cannot_try() -> str | None:
    """Return why no child process of Python can be started, None if it can."""
    if getattr(sys, "frozen", False):
        return "a frozen program has no Python to try it in"
    if not isinstance(sys.executable, str) or "python" not in Path(sys.executable).name.lower():
        return f"sys.executable is {sys.executable!r}, which is not Python"
    return None


def _is_memory_limited() -> bool:
    if sys.platform == "win32":
        return False
    import resource

    limits = {resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)}
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return limits != {resource.RLIM_INFINITY} or 0 <= stack < _SMALLEST_STACK_BYTES


class Undecided(Exception):  # noqa: N818 - not an error
    """A trial without a result: Python failed in it, or it was killed."""


@dataclass(frozen=True)
class Report:
    """The lines that a child printed, and how it crashed; None if it finished."""

    lines: list[dict[str, Any]]
    crash: str | None

    @property
    def features(self) -> tuple[str, ...] | None:
        names = next((line["features"] for line in self.lines if "features" in line), None)
        return None if names is None else tuple(names)

    @property
    def crashed_step(self) -> str | None:
        if self.crash is None:
            return None
        return next((str(line["step"]) for line in reversed(self.lines) if "step" in line), next(iter(STARTS)))

    @property
    def wrong_types(self) -> list[str]:
        """The types whose logits are NaN or too far from float32's."""
        measured = [(line["type"], line["distance"]) for line in self.lines if "distance" in line]
        return [name for name, distance in measured if not distance <= LARGEST_DISTANCE]


def run_child(extra_buffers: bool, types: list[str]) -> Report:
    """Run the trial in a child process. Raises ``Undecided`` if it neither finishes nor crashes in the library."""
    paths = json.dumps([place for place in sys.path if isinstance(place, str) and "\0" not in place])
    flags = {"-I": sys.flags.isolated, "-E": sys.flags.ignore_environment, "-B": sys.flags.dont_write_bytecode}
    command = [sys.executable, *(flag for flag, is_set in flags.items() if is_set), "-c", _CHILD, paths]
    # GPUs are hidden, because the trial is about the processor and GPU drivers start slowly.
    hidden = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"), "")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = json.dumps({"extra_buffers": extra_buffers, "types": types, "folder": folder})
        try:
            child = subprocess.run(
                [*command, settings],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                env=os.environ | hidden | {"LLAMALITE_TRIAL": "off"},
                timeout=_TIMEOUT_S,
                check=False,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except subprocess.TimeoutExpired:
            raise Undecided(f"the trial took longer than {_TIMEOUT_S} s") from None
    lines = list(_json_lines(child.stdout))
    if lines and "end" in lines[-1]:
        return Report(lines, None)
    errors = child.stderr.decode("utf-8", "replace").strip().splitlines()
    crash = _crash(child.returncode)
    if crash is None and child.returncode == 0 and lines:  # its exit code was lost: other code waits for all children
        crash = "crash"
    if crash is None or any("bad_alloc" in line or "failed to allocate" in line for line in errors):
        raise Undecided(
            f"the trial ended with code {child.returncode}: {errors[-1] if errors else 'it gave no reason'}"
        )
    return Report(lines, crash)


def _json_lines(output: bytes) -> Iterator[dict[str, Any]]:
    """Yield the objects in a child's output; a `sitecustomize` may print other lines."""
    for line in output.decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(fields := json.loads(line), dict):
                yield fields


def _crash(code: int) -> str | None:
    """Return the kind of crash that a child's exit code stands for; None if it does not stand for one."""
    if code in _WINDOWS_CRASHES:
        return _WINDOWS_CRASHES[code]
    with contextlib.suppress(ValueError):
        return _CRASHES.get(signal.Signals(-code if code < 0 else code - 128).name)  # 128 + n: from a shell
    return None


def judge(run: Any) -> LibraryVerdict:
    """Return the verdict on a library; ``run(extra_buffers, types)`` tries the types and returns a `Report`.

    The first run is with extra buffers. If a type crashes or computes wrong numbers, all types are tried again without
    them. A type that crashes there is refused, and the types after it are tried in another child.
    """
    faults: list[Fault] = []
    extra_buffers, types = True, list(WEIGHT_TYPES)
    while True:
        report = run(extra_buffers, types)
        faults += [Fault(name, extra_buffers, "wrong numbers") for name in report.wrong_types]
        crashed_step = report.crashed_step
        if crashed_step is not None:
            faults.append(Fault(crashed_step, extra_buffers, str(report.crash)))
        if crashed_step in STARTS:
            break
        if extra_buffers and faults:
            extra_buffers, types = False, list(WEIGHT_TYPES)
            continue
        if crashed_step is None:
            break
        types = types[types.index(crashed_step) + 1 :]
    return LibraryVerdict(report.features, tuple(faults), len(WEIGHT_TYPES))
