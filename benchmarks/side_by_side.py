"""The method of every benchmark here: two sides take turns on one machine, and the ratio of each pair counts.

    mine, theirs = in_turns(5, lambda: run_ours(), lambda: run_theirs())
    figure = Figure("convert to Q4_K_M", "llama.cpp's two steps", "s", mine, theirs)
    print(figure)          # convert to Q4_K_M: 0.200 of llama.cpp's two steps (0.191 to 0.208 of 5), 9.2 and 46 s

A machine's speed drifts with its temperature and its load. Both halves of a pair, at most minutes apart, share that
drift, so their ratio is reliable even if a time is not. The side that goes first alternates.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOWER_IS_BETTER = {"s", "s of CPU", "MiB", "ns a weight", "tokens"}


@dataclass(frozen=True)
class Figure:
    """llamalite against `peer`: the values of each pair, in `unit`. `ratio` is the median of ours over theirs.

    `target` is the promised ratio: an upper bound if less is better (time, memory), else a lower bound.
    """

    name: str
    peer: str
    unit: str
    ours: list[float]
    theirs: list[float]
    target: float | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def lower_is_better(self) -> bool:
        return self.unit in LOWER_IS_BETTER

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.ratio <= self.target if self.lower_is_better else self.ratio >= self.target

    def __str__(self) -> str:
        mine, other = statistics.median(self.ours), statistics.median(self.theirs)
        aim = "" if self.target is None else f"; target {self.target:g}, {'met' if self.holds else 'NOT MET'}"
        return (
            f"{self.name}: {self.ratio:.3f} of {self.peer} ({min(self.ratios):.3f} to {max(self.ratios):.3f} of "
            f"{len(self.ours)}), {mine:.4g} and {other:.4g} {self.unit}{aim}{'; ' + self.note if self.note else ''}"
        )

    def row(self) -> str:
        """Return the figure as a line of a Markdown table, under `TABLE_HEAD`."""
        mine, other = statistics.median(self.ours), statistics.median(self.theirs)
        aim = "" if self.target is None else f"{'≤' if self.lower_is_better else '≥'} {self.target:g}"
        spread = f"{min(self.ratios):.2f} to {max(self.ratios):.2f}" if len(self.ours) > 1 else "one pair"
        return (
            f"| {self.name} | {self.peer} | {_short(mine)} {self.unit} | {_short(other)} {self.unit} | "
            f"**{self.ratio:.2f}** | {spread} | {aim} |"
        )


TABLE_HEAD = """| what | compared with | llamalite | the other | ratio | spread | target |
| --- | --- | ---: | ---: | ---: | --- | --- |"""


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(figures: Iterable[Figure]) -> str:
    return "\n".join([TABLE_HEAD, *(figure.row() for figure in figures)])


def short_table(figures: Iterable[Figure]) -> str:
    """Return a table of the ratios alone, without their spread."""
    lines = ["| | llamalite | the other | ratio | compared with |", "| --- | ---: | ---: | ---: | --- |"]
    for figure in figures:
        mine, other = _short(statistics.median(figure.ours)), _short(statistics.median(figure.theirs))
        cells = [figure.name, f"{mine} {figure.unit}", f"{other} {figure.unit}", f"{figure.ratio:.2f}", figure.peer]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def in_a_thread(call: Callable[[], float]) -> float:
    """Return the result of `call`, made in a new thread, so that llama.cpp's OpenMP threads end with it.

    While another side's OpenMP threads exist, GCC's OpenMP lets all of them sleep at barriers instead of spinning.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def in_turns(
    n: int, ours: Callable[[], float], theirs: Callable[[], float], name: str = ""
) -> tuple[list[float], list[float]]:
    """Call both sides `n` times in turn and return their results; with a `name`, print each pair on standard error."""
    mine, other = [], []
    for i in range(n):
        if i % 2:
            a, b = ours(), theirs()
        else:
            b, a = theirs(), ours()
        mine.append(a)
        other.append(b)
        if name:
            print(f"  {name}, pair {i + 1} of {n}: {a:.4g} / {b:.4g} = {a / b:.3f}", file=sys.stderr, flush=True)
    return mine, other


class Ran(NamedTuple):
    """A process that succeeded: its time from start to exit, its CPU time, its peak memory, its output."""

    seconds: float
    cpu_s: float
    peak_mib: float
    output: str


_LAUNCH = """
import json, os, sys, time
began = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    measured = time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss
    json.dump([*measured, os.waitstatus_to_exitcode(status)], file)
"""


def process(command: Sequence[object], environment: dict[str, str] | None = None) -> Ran:
    """Run `command` to its end; if it fails, exit with its output.

    A small process starts and measures it: Linux counts the parent's memory at the start as the child's peak memory
    (``exec_mmap``, fs/exec.c), and this process may hold a model. Earlier writes are flushed to the disk first, so that
    no run pays for another.
    """
    os.sync()
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        measured, output = Path(folder) / "measured", Path(folder) / "output"
        with output.open("wb") as file:
            launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(measured), *words]
            environment = {**os.environ, **(environment or {})}
            subprocess.run(launcher, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
        text = output.read_text(errors="replace")
        seconds, cpu_s, peak, code = json.loads(measured.read_text()) if measured.exists() else (0.0, 0.0, 0, "none")
    if code != 0:
        raise SystemExit(f"{' '.join(words)}: exit code {code}\n{text[-3000:]}")
    return Ran(seconds, cpu_s, peak / (1024 if sys.platform == "linux" else 1 << 20), text)


def llamalite(*args: object) -> list[object]:
    return [sys.executable, "-m", "llamalite", *args]


@dataclass(frozen=True)
class Peers:
    """llama.cpp as in the sdist of the pinned llama-cpp-python: its sources, and the programs built from them.

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36 && tar xf llama_cpp_python-*.tar.gz
    cd llama_cpp_python-*/vendor/llama.cpp && cmake -B build
    cmake --build build --target llama-quantize llama-bench llama-completion llama-perplexity llama-server
    """

    source: Path
    programs: Path

    def program(self, name: str) -> Path:
        path = self.programs / name
        if not path.is_file():
            raise SystemExit(f"{path} does not exist: build it as the docstring of Peers in {__file__} says")
        return path

    @classmethod
    def given(cls, options: argparse.Namespace) -> Peers:
        return cls(options.llama_cpp, options.programs or options.llama_cpp / "build" / "bin")


def arguments(doc: str | None, *, pairs: int, peers: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=pairs, help=f"pairs in turns (default: {pairs})")
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    if peers:
        parser.add_argument(
            "--llama-cpp", type=Path, required=True, metavar="FOLDER", help="llama.cpp's sources (vendor/llama.cpp)"
        )
        parser.add_argument("--programs", type=Path, metavar="FOLDER", help="default: build/bin of the sources")
    return parser


def threads(options: argparse.Namespace) -> int:
    from llamalite.hardware import physical_cores

    return int(options.threads or physical_cores())


def report(figures: Iterable[Figure], to: Path | None) -> None:
    """Print each figure as it comes, then a table of all; write all and the machine's description to the file `to`."""
    measured = []
    for figure in figures:
        print(figure, flush=True)
        measured.append(figure)
    print(f"\n{table(measured)}")
    if to:
        write_json(to, {"machine": machine(), "figures": [asdict(figure) for figure in measured]})


def write_json(path: Path, document: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


@dataclass(frozen=True)
class Machine:
    """The machine and versions that figures were measured with."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    commit: str
    date: str
    versions: dict[str, str] = field(default_factory=dict)


def machine() -> dict[str, Any]:
    from llamalite.hardware import physical_cores

    cpu, memory = platform.processor() or platform.machine(), 0.0
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    wanted = {"llama-cpp-python", "llama_cpp_python", "numpy", "numba", "torch", "transformers"}
    installed = {package.metadata["Name"]: package.version for package in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in sorted(wanted & set(installed))}
    description = Machine(
        cpu,
        physical_cores(),
        round(memory, 1),
        platform.platform(),
        platform.python_version(),
        git.stdout.strip(),
        time.strftime("%Y-%m-%d", time.gmtime()),
        versions,
    )
    return asdict(description)
