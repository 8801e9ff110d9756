"""Closing a model: computations in other threads end or are waited for, and then everything is freed."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import toy
import toy_checkpoint
from faults import write_endless
from test_model_ends import in_a_thread, run_script, wait_for

from llamalite.converters import convert
from llamalite.errors import GenerationCancelled
from llamalite.evaluation.comparison import compare
from llamalite.evaluation.imatrix import collect_imatrix
from llamalite.evaluation.likelihoods import LikelihoodScorer, Request
from llamalite.evaluation.perplexity import iter_perplexity, perplexity
from llamalite.evaluation.protocol import EvalProtocol
from llamalite.evaluation.verification import verify
from llamalite.model import Model
from llamalite.native.context import NativeContext
from llamalite.native.decode_thread import DecodeThread
from llamalite.native.lifetime import Lifetime
from llamalite.performance.benchmark import BenchPlan, iter_bench

PERPLEXITY = "perplexity(model, TOKENS, n_ctx=256, n_batch=1024, n_threads=1)"
LIKELIHOODS = "LikelihoodScorer(model.native, n_threads=1).score(REQUESTS)"
COMPARE = "compare(PATH, [PATH], TOKENS, n_ctx=256, n_batch=1024, n_threads=1)"
CALLS = [
    PERPLEXITY,
    LIKELIHOODS,
    "collect_imatrix(model, TOKENS, n_ctx=256, n_threads=1)",
    "[model.save_session('kept.session') for _ in range(100_000)]",
    "[model.tokenize('once upon a time ' * 100) for _ in range(1_000_000)]",
    "[model.native.detokenize(range(3, 300)) for _ in range(1_000_000)]",
    "[NativeContext(model.native, ContextOptions(n_ctx=256)).close() for _ in range(100_000)]",
    "[model.generate_batch(['once upon'] * 8, max_tokens=100) for _ in range(10_000)]",
    "[model.generate('once', max_tokens=9, grammar='root ::= [a-z ]+') for _ in range(100_000)]",
]
CLOSING = """
import os, sys, threading, time
import numpy as np
from llamalite.errors import GenerationCancelled
from llamalite.evaluation.comparison import compare
from llamalite.evaluation.imatrix import collect_imatrix
from llamalite.evaluation.likelihoods import LikelihoodScorer, Request
from llamalite.evaluation.perplexity import perplexity
from llamalite.model import Model
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions

os.chdir(os.path.dirname(PATH))
TOKENS = np.arange(400_000) % 300 + 3
REQUESTS = [Request(tuple(range(3, 203)), (3 + i, 8, 9)) for i in range(200_000)]
ends = []


def compute(model):
    try:
        {call}
    except (GenerationCancelled, ValueError) as error:
        ends.append(str(error))


for after_s in (0.003, 0.03, 0.15, 0.4):
    model = Model(PATH, n_threads=1, n_ctx=512)
    model.generate("once", max_tokens=3)
    thread = threading.Thread(target=compute, args=(model,))
    thread.start()
    time.sleep(after_s)
    model.close()
    thread.join(60)
    assert not thread.is_alive()
print({{end for end in ends if "clos" not in end}}, len(ends))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_endless(tmp_path / "toy.gguf", n_layer=2)


@pytest.mark.parametrize("call", CALLS)
def test_whoever_computes_ends_before_anything_is_freed(call: str, path: Path) -> None:
    done = run_script(CLOSING.format(call=call), path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "set() 4\n"


def test_a_long_decode_is_not_waited_for(tmp_path: Path) -> None:
    path = write_endless(tmp_path / "toy.gguf", n_layer=8)
    model = Model(path, n_threads=1, n_ctx=512)
    ends: list[BaseException] = []

    def measure() -> None:
        try:
            perplexity(model, [5] * 8192, n_ctx=4096, n_batch=4096, n_threads=1)
        except GenerationCancelled as error:
            ends.append(error)

    thread = in_a_thread(measure)
    wait_for(lambda: model.native.thread._tasks)
    time.sleep(0.1)
    began = time.perf_counter()
    model.close()
    assert time.perf_counter() - began < 1  # the decode takes many seconds
    thread.join(60)
    assert [str(end) for end in ends] == ["the model is being closed"]


def test_a_measurement_that_stands_between_two_steps_ends_at_the_next(path: Path) -> None:
    model = Model(path, n_threads=1, n_ctx=512)
    run = iter_perplexity(model.native, [5] * 4096, EvalProtocol(n_ctx=256, n_batch=256, n_threads=1))
    next(run)
    model.close()
    with pytest.raises(GenerationCancelled, match="the model is being closed"):
        next(run)
    scorer_of_a_closed_model: Callable[[], object] = lambda: LikelihoodScorer(model.native)  # noqa: E731
    for call in (scorer_of_a_closed_model, lambda: perplexity(model, [5] * 4096), lambda: collect_imatrix(model, [5])):
        with pytest.raises(ValueError, match="this model is closed"):
            call()


def test_generation_and_measurements_share_one_thread(path: Path) -> None:
    draft = toy.write_toy(path.with_name("draft.gguf"), chat_template=toy.CHATML, n_ctx_train=8192)
    seen: set[str] = set()
    real = NativeContext._decode

    def noting(self: NativeContext, n: int) -> None:
        seen.add(f"{threading.current_thread().name} {threading.get_ident()}")
        real(self, n)

    with pytest.MonkeyPatch.context() as patch, Model(path, n_threads=1, n_ctx=512, draft=draft) as model:
        patch.setattr(NativeContext, "_decode", noting)
        model.generate("once upon a time", max_tokens=20)
        model.generate_batch(["once", "upon"], max_tokens=3)
        perplexity(model, [5] * 512, n_ctx=256, n_threads=1)
        collect_imatrix(model, [5] * 512, n_ctx=256, n_threads=1)
        with LikelihoodScorer(model.native, n_threads=1) as scorer:
            scorer.score([Request((5,), (6, 7))])
    assert len(seen) == 1
    assert next(iter(seen)).startswith("llamalite-decode ")


def test_no_thread_but_the_models_own_has_a_team_of_openmp_after_loading(path: Path) -> None:
    """Loading may compute: where it ran, a team of threads would stay and slow every decode down."""
    loaded_in: list[threading.Thread] = []
    with Model(path, n_threads=1, progress=lambda _fraction: loaded_in.append(threading.current_thread())) as model:
        assert threading.main_thread() not in loaded_in
        wait_for(lambda: not any(thread.is_alive() for thread in loaded_in))
        assert model.generate("once", max_tokens=2).finish_reason == "length"


def test_whatever_opens_models_itself_decodes_in_one_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    real = NativeContext._decode

    def noting(self: NativeContext, n: int) -> None:
        seen.add(f"{threading.current_thread().name} {threading.get_ident()}")
        real(self, n)

    monkeypatch.setattr(NativeContext, "_decode", noting)
    checkpoint = toy_checkpoint.write_checkpoint(path.with_name("checkpoint"))
    made = convert(checkpoint, path.with_name("made.gguf"), qtype="F32").path
    calls: list[Callable[[], object]] = [
        lambda: compare(path, [path, path], [5] * 512, n_ctx=256, n_threads=1),
        lambda: verify(made, checkpoint, n_threads=1),
        lambda: list(iter_bench(path, BenchPlan(n_prompt=8, n_generate=2, repetitions=1, n_threads=(1,)))),
    ]
    for call in calls:
        seen.clear()
        call()
        assert len(seen) == 1
        assert next(iter(seen)).startswith("llamalite-decode ")


@pytest.mark.parametrize("call", [PERPLEXITY, LIKELIHOODS, COMPARE])
@pytest.mark.parametrize("is_daemon", [True, False])
def test_the_interpreter_ends_while_a_thread_measures(call: str, is_daemon: bool, path: Path) -> None:
    script = CLOSING.format(call=call).partition("for after_s")[0].replace("400_000", "4000").replace("200_000", "200")
    if is_daemon:
        script = script.replace("4000", "4_000_000")
    done = run_script(
        f"{script}\nmodel = Model(PATH, n_threads=1, n_ctx=512)\n"
        f"threading.Thread(target=compute, args=(model,), daemon={is_daemon}).start()\ntime.sleep(0.2)\n",
        path,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ── the decode thread and the lifetime, without a model ─────────────────────────────────────────────────────────────


def test_a_waiting_call_is_withdrawn_when_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamalite.native import decode_thread

    thread, release, ran = DecodeThread(), threading.Event(), []
    first = in_a_thread(lambda: thread.run(lambda: ran.append(1) if release.wait(60) else None, lambda: None))
    wait_for(lambda: thread._tasks and thread._tasks[0]._has_begun)

    def interrupted(_task: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(decode_thread._Task, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):  # at once: nobody waits for the call before it
        thread.run(lambda: ran.append(2), lambda: None)
    monkeypatch.undo()
    release.set()
    first.join(60)
    thread.run(lambda: ran.append(3), lambda: None)
    assert ran == [1, 3]
    thread.close()


def test_the_end_waits_for_all_holders_and_admits_no_new_ones() -> None:
    rng = random.Random(0)
    for _ in range(20):
        lifetime, is_freed = Lifetime(), threading.Event()
        wrong: list[str] = []

        def use(lifetime: Lifetime = lifetime, is_freed: threading.Event = is_freed, wrong: list[str] = wrong) -> None:
            stopped = threading.Event()
            with contextlib.suppress(GenerationCancelled):
                while True:
                    with lifetime.hold(stopped.set):
                        if is_freed.is_set():
                            wrong.append("used after it was freed")
                        with lifetime.hold():  # who is in may hold again
                            stopped.wait(rng.uniform(0, 0.01))
                        if is_freed.is_set():
                            wrong.append("freed while it was used")

        threads = [in_a_thread(use) for _ in range(6)]
        time.sleep(rng.uniform(0, 0.02))
        lifetime.end()
        is_freed.set()
        for thread in threads:
            thread.join(60)
        assert not wrong


def test_an_interrupted_end_admits_holders_again() -> None:
    lifetime, inside = Lifetime(), threading.Event()
    leave = threading.Event()

    def use() -> None:
        with lifetime.hold(lambda: (_ for _ in ()).throw(KeyboardInterrupt)):
            inside.set()
            leave.wait(60)

    thread = in_a_thread(use)
    inside.wait(60)
    with pytest.raises(KeyboardInterrupt):
        lifetime.end()
    with lifetime.hold():
        pass
    leave.set()
    thread.join(60)
