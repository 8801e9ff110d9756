"""Speed of a model, measured as llama-bench does: pp512 and tg128, repeated after a warm-up, with load time and memory.

    for row in iter_bench("demo-Q4_K_M.gguf", BenchPlan(n_prompt=512, n_generate=128)):
        print(f"{row.test}: {row.tok_per_s:.1f} ± {row.tok_per_s_sd:.1f} tokens/s")

Each test starts with an empty cache and decodes random tokens (BOS first if the vocabulary adds it): a prompt in
batches of n_batch, or a generation one token at a time (``test_prompt`` and ``test_gen``, tools/llama-bench).
Generating a token reads every weight once, so the bytes read per second are compared with the memory's bandwidth,
measured in the same run with the same number of threads.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from llamalite import store
from llamalite.gguf_check import Header, checked_header
from llamalite.hardware import physical_cores
from llamalite.hardware.process_memory import peak_resident_bytes
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel
from llamalite.performance.bandwidth import memory_bandwidth
from llamalite.performance.forecast import bytes_per_token
from llamalite.performance.machine import Machine


@dataclass(frozen=True)
class BenchPlan:
    """What to measure: every combination of the lists. 0 tokens skip a test; the defaults are llama-bench's."""

    n_prompt: int = 512
    n_generate: int = 128
    repetitions: int = 5
    n_threads: Sequence[int] = ()  # empty: the physical cores
    n_batch: Sequence[int] = (2048,)
    n_ubatch: Sequence[int] = (512,)
    kv_types: Sequence[str] = ("F16",)
    n_gpu_layers: Sequence[int] = (0,)
    device: str | None = None

    def __post_init__(self) -> None:
        if min(self.n_prompt, self.n_generate) < 0 or not self.n_prompt + self.n_generate:
            raise ValueError(f"a test needs tokens: found prompt {self.n_prompt}, generation {self.n_generate}")
        if self.repetitions < 1:
            raise ValueError(f"repetitions must be 1 or more, found {self.repetitions}")


@dataclass(frozen=True)
class BenchRow:
    """One test with one setting: the mean and the sample standard deviation of its speed, in tokens per second."""

    model: str
    qtype: str | None
    n_bytes: int
    n_params: int
    test: str  # pp512, tg128
    n_threads: int
    n_batch: int
    n_ubatch: int
    kv_type: str
    n_gpu_layers: int
    tok_per_s: float
    tok_per_s_sd: float
    samples_s: tuple[float, ...] = field(repr=False)
    ttft_s: float | None = None  # pp only: seconds for the whole prompt and the logits after it
    bandwidth_bytes_per_s: float | None = None  # tg on the CPU only: bytes of weights read per second
    bandwidth_share: float | None = None  # the same as a share of the bandwidth measured in this run
    load_s: float = 0.0
    peak_memory_bytes: int = 0  # of this process so far

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"samples_s": list(self.samples_s)}


def iter_bench(model: str | os.PathLike[str], plan: BenchPlan | None = None) -> Generator[BenchRow, None, None]:
    """Yield a row for each test and setting. The model is loaded once for each number of GPU layers.

    The peak memory is that of this process: to compare models, start one process for each. Raises what loading a model
    raises, and ``ValueError`` for a setting that llama.cpp does not know.
    """
    plan = plan or BenchPlan()
    path = store.resolve(model)
    header = checked_header(path)
    for n_gpu in plan.n_gpu_layers:
        start = time.perf_counter()
        with NativeModel(path, n_gpu_layers=n_gpu, device=plan.device if n_gpu else None, header=header) as native:
            loaded = functools.partial(_row, header, n_gpu_layers=n_gpu, load_s=time.perf_counter() - start)
            for n_threads, n_batch, n_ubatch, kv_type in itertools.product(
                plan.n_threads or (physical_cores(),), plan.n_batch, plan.n_ubatch, plan.kv_types
            ):
                bandwidth = memory_bandwidth(n_threads) if plan.n_generate and n_gpu == 0 else None
                for n_prompt, n_generate in ((plan.n_prompt, 0), (0, plan.n_generate)):
                    if not n_prompt + n_generate:
                        continue
                    options = ContextOptions(
                        n_ctx=n_prompt + n_generate,
                        n_batch=n_batch,
                        n_ubatch=n_ubatch,
                        n_threads=n_threads,
                        kv_type=kv_type,
                    )
                    with NativeContext(native, options) as context:
                        test = functools.partial(_samples, context, n_prompt, n_generate, plan.repetitions)
                        samples = native.thread.run(test, context.abort)
                    yield loaded(context, n_prompt, n_generate, samples, bandwidth, n_batch=n_batch, n_ubatch=n_ubatch)


def _samples(context: NativeContext, n_prompt: int, n_generate: int, repetitions: int) -> list[float]:
    """Return the seconds of each repetition. As in llama-bench, the warm-up is a whole prompt, or one token."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(repetitions + 1):
        context.clear()
        start = time.perf_counter()
        if n_prompt:
            _prompt(context, rng, n_prompt)
        else:
            _generate(context, rng, n_generate if i else 1)
        if i:
            samples.append(time.perf_counter() - start)
    return samples


def _prompt(context: NativeContext, rng: np.random.Generator, n: int) -> None:
    model = context.model
    tokens = rng.integers(0, model.n_vocab, n).astype(np.int32)
    if model.add_bos:
        tokens[0] = model.bos
    for start in range(0, n, context.n_batch):
        end = min(start + context.n_batch, n)
        wanted = np.zeros(end - start, dtype=np.bool_)
        wanted[-1] = True
        context.decode(tokens[start:end], np.arange(start, end), 0, wanted)
    context.logits()  # waits for a GPU


def _generate(context: NativeContext, rng: np.random.Generator, n: int) -> None:
    model = context.model
    token = model.bos if model.add_bos else int(rng.integers(model.n_vocab))
    for position in range(n):
        context.decode_next(token, position)
        context.logits()
        token = int(rng.integers(model.n_vocab))


def _row(
    header: Header,
    context: NativeContext,
    n_prompt: int,
    n_generate: int,
    samples: list[float],
    bandwidth: float | None,
    **setting: Any,
) -> BenchRow:
    n = n_prompt or n_generate
    speeds = [n / seconds for seconds in samples]
    mean = statistics.fmean(speeds)
    read = None if n_prompt or bandwidth is None else mean * bytes_per_token(header)
    return BenchRow(
        model=header.path.name,
        qtype=header.file_type,
        n_bytes=header.model_bytes,
        n_params=header.n_params,
        test=f"pp{n_prompt}" if n_prompt else f"tg{n_generate}",
        n_threads=context.n_threads,
        kv_type=context.options.kv_type,
        tok_per_s=mean,
        tok_per_s_sd=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        samples_s=tuple(samples),
        ttft_s=statistics.fmean(samples) if n_prompt else None,
        bandwidth_bytes_per_s=read,
        bandwidth_share=read / bandwidth if read is not None and bandwidth else None,
        peak_memory_bytes=peak_resident_bytes(),
        **setting,
    )


def thread_counts(machine: Machine) -> list[int]:
    """Return the numbers of threads worth measuring: powers of two, the usable cores, all hardware threads."""
    most = machine.n_hardware_threads
    powers = [2**i for i in range(10) if 2**i <= most]
    return sorted({*powers, machine.n_usable, most})


def best_threads(rows: Iterable[BenchRow]) -> BenchRow:
    """Return the row of the fewest threads that generates as fast as any, within the standard deviations of both."""
    measured = sorted(rows, key=lambda row: row.n_threads)
    fastest = max(measured, key=lambda row: row.tok_per_s)
    least = fastest.tok_per_s - fastest.tok_per_s_sd
    return next(row for row in measured if row.tok_per_s + row.tok_per_s_sd >= least)
