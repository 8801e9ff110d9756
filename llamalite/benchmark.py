"""Speed of a model as llama-bench defines it: pp512, tg128, each after a warm-up, repeated; and what it takes.

    for row in iter_bench("demo-Q4_K_M.gguf", Plan(n_prompt=512, n_generate=128)):
        print(f"{row.test}: {row.tok_per_s:.1f} ± {row.tok_per_s_sd:.1f} tokens/s")

A test of n tokens decodes random tokens (BOS first where the vocabulary adds one) from an empty cache: a prompt in
batches of n_batch, a generation one token at a time (``test_prompt`` and ``test_gen``, tools/llama-bench). Generation
reads every weight once a token, so its speed is held against the memory bandwidth that this process measures in the
same run, with as many threads.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from llamalite import store
from llamalite.gguf_check import Header, checked_header
from llamalite.hardware import physical_cores
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.memory import peak_resident_bytes
from llamalite.native.model import NativeModel

_BANDWIDTH_BYTES = 256 << 20  # more than a cache holds


@dataclass(frozen=True)
class Plan:
    """What is measured: every combination of the lists. 0 tokens leave a test out; the defaults are llama-bench's."""

    n_prompt: int = 512
    n_generate: int = 128
    repetitions: int = 5
    n_threads: Sequence[int] = ()  # none: the physical cores
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
class Row:
    """One test of one setting: mean and sample standard deviation of its speed, in tokens a second."""

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
    ttft_s: float | None = None  # pp: the whole prompt and the logits after it; generation: None
    bandwidth_bytes_per_s: float | None = None  # tg on the CPU: bytes of weights and cache read a second
    bandwidth_share: float | None = None  # of what this machine's memory gave in the same run
    load_s: float = 0.0
    peak_memory_bytes: int = 0  # of this process until here

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"samples_s": list(self.samples_s)}


def iter_bench(model: str | os.PathLike[str], plan: Plan | None = None) -> Generator[Row, None, None]:
    """Yield a row for each test and setting; the model is loaded once for each number of GPU layers.

    The peak of memory is this process's own: for several models, start one process for each. Raises what loading
    raises, ``ValueError`` for a setting that llama.cpp does not know.
    """
    plan = plan or Plan()
    path = store.resolve(model)
    header = checked_header(path)
    for n_gpu in plan.n_gpu_layers:
        start = time.perf_counter()
        with NativeModel(path, n_gpu_layers=n_gpu, device=plan.device if n_gpu else None, header=header) as native:
            load_s = time.perf_counter() - start
            settings = itertools.product(
                plan.n_threads or (physical_cores(),), plan.n_batch, plan.n_ubatch, plan.kv_types
            )
            for n_threads, n_batch, n_ubatch, kv_type in settings:
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
                        samples = native.thread.run(
                            functools.partial(_samples, context, n_prompt, n_generate, plan.repetitions), context.abort
                        )
                    yield _row(
                        header, context, n_prompt, n_generate, samples, n_gpu, load_s, bandwidth, n_batch, n_ubatch
                    )


def _samples(context: NativeContext, n_prompt: int, n_generate: int, repetitions: int) -> list[float]:
    """Return the seconds of each repetition, after a warm-up: a whole prompt, or one token, as llama-bench does."""
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
    n_gpu: int,
    load_s: float,
    bandwidth: float | None,
    n_batch: int,
    n_ubatch: int,
) -> Row:
    n = n_prompt or n_generate
    speeds = [n / seconds for seconds in samples]
    mean = statistics.fmean(speeds)
    read = None if n_prompt or bandwidth is None else mean * bytes_a_token(header)
    return Row(
        model=header.path.name,
        qtype=header.file_type,
        n_bytes=header.model_bytes,
        n_params=header.n_params,
        test=f"pp{n_prompt}" if n_prompt else f"tg{n_generate}",
        n_threads=context.n_threads,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        kv_type=context.options.kv_type,
        n_gpu_layers=n_gpu,
        tok_per_s=mean,
        tok_per_s_sd=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        samples_s=tuple(samples),
        ttft_s=statistics.fmean(samples) if n_prompt else None,
        bandwidth_bytes_per_s=read,
        bandwidth_share=read / bandwidth if read is not None and bandwidth else None,
        load_s=load_s,
        peak_memory_bytes=peak_resident_bytes(),
    )


def bytes_a_token(header: Header) -> int:
    """Return the bytes of weights that one generated token reads: all but the embedding, of which it reads one row.

    Where the embedding is the output matrix too (tied), all of it is read. The cache, small at a few hundred tokens, is
    left out.
    """
    names = {tensor.name for tensor in header.all_tensors}
    tied = "output.weight" not in names
    return sum(t.nbytes for t in header.all_tensors if tied or t.name != "token_embd.weight")


# For `python -c`, which looks for modules in the working directory first: it may be a stranger's model folder.
ONLY_INSTALLED = "import sys; sys.path[:] = filter(None, sys.path); "


def memory_bandwidth(n_threads: int) -> float:
    """Return the bytes a second that `n_threads` threads read from memory: the best of five passes over 256 MiB.

    It is measured in a process of its own, whose memory is not counted with the model's.
    """
    program = f"from llamalite.benchmark import read_memory; print(read_memory({int(n_threads)}))"
    done = subprocess.run([sys.executable, "-c", ONLY_INSTALLED + program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def read_memory(n_threads: int) -> float:
    """`memory_bandwidth`, in this process. NumPy's maximum over integers is bound by the memory and nothing else."""
    blocks = [np.ones(_BANDWIDTH_BYTES // 8 // n_threads, dtype=np.int64) for _ in range(n_threads)]
    best = 0.0
    for _ in range(5):
        threads = [threading.Thread(target=np.max, args=(block,)) for block in blocks]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(block.nbytes for block in blocks) / (time.perf_counter() - start))
    return best
