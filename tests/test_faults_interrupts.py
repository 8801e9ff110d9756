"""A signal may come between any two bytecodes: it never leaves a call running, or anyone waiting for its end."""

from __future__ import annotations

import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faults import environment, write_endless

from llamalite.generation.request import Stream
from llamalite.model import Model
from llamalite.native.decode_thread import DecodeThread

STORM = """
import faulthandler, sys, threading
faulthandler.dump_traceback_later(60, exit=True)  # a wait in vain
sys.path.insert(0, {tests!r})
from test_faults_interrupts import storm
print(storm(400))
"""


def storm(n_calls: int) -> str:
    """Interrupt `n_calls` calls at random moments, by SIGALRM; ``AssertionError`` if one keeps running."""
    thread, rng, running = DecodeThread(), random.Random(0), threading.Lock()
    stopped = threading.Event()
    interrupted = finished = 0

    def call() -> None:
        assert running.acquire(blocking=False), "two calls at once"
        stopped.wait(rng.choice([0, 0.0001, 0.0003]))
        running.release()

    def ring(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, ring)
    for number in range(n_calls):
        stopped.clear()
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.00001, 0.0005))
                thread.run(call, stopped.set)
                finished += 1
                time.sleep(0.001)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        assert not running.locked(), f"call {number} still runs"
    return f"{interrupted > n_calls // 10} {finished > n_calls // 10}"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on Windows")
def test_a_signal_at_any_moment_ends_the_call_and_nothing_waits_in_vain() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STORM.format(tests=str(Path(__file__).parent))],
        capture_output=True, text=True, env=environment(), timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "True True\n"


def test_a_prompt_of_4000_tokens_is_cancelled_within_200_ms(tmp_path: Path) -> None:
    """The median of seven, each at another moment of the reading, in processor time.

    On a machine that does other things too, the clock on the wall shows what those take; it may be five times as much.
    """
    path = write_endless(tmp_path / "toy.gguf", n_layer=2)
    rng, took, wall = random.Random(0), [], []
    with Model(path, n_ctx=4096, n_threads=1) as model:
        prompt = [5 + i % 300 for i in range(4000)]
        began = time.perf_counter()
        model.generate(prompt, max_tokens=1)
        lasts_s = time.perf_counter() - began
        for _ in range(7):
            model.clear()
            stream = model.stream(prompt, max_tokens=5)
            called: list[float] = []

            def cancel(stream: Stream = stream, called: list[float] = called) -> None:
                called.extend((time.process_time(), time.perf_counter()))
                stream.cancel()

            timer = threading.Timer(rng.uniform(0.1, 0.8) * lasts_s, cancel)
            timer.start()
            last = list(stream)[-1]
            took.append(time.process_time() - called[0])
            wall.append(time.perf_counter() - called[1])
            timer.join()
            assert last.finish_reason == "cancelled"
            assert model.n_held < len(prompt)
        assert model.generate(prompt[:9], max_tokens=2).finish_reason == "length"
    sys.stdout.write(f"reading takes {lasts_s:.2f} s; cancelled within {sorted(took)}, {sorted(wall)} on the wall\n")
    assert statistics.median(took) < 0.2, sorted(took)
    assert statistics.median(wall) < 1, sorted(wall)
