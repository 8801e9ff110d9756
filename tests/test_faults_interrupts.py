"""A signal may come between any two bytecodes: none of them leaves a call running, or its end to wait for in vain."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faults import environment

STORM = """
import faulthandler, sys, threading
faulthandler.dump_traceback_later(60, exit=True)  # a wait in vain
sys.path.insert(0, {tests!r})
from test_faults_interrupts import storm
print(storm(400))
"""


def storm(n_calls: int) -> str:
    """Interrupt `n_calls` calls of a worker at random moments, by SIGALRM; ``AssertionError`` where one still runs."""
    from llamalite.reading import Worker

    worker, rng, running = Worker(), random.Random(0), threading.Lock()
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
                worker.run(call, stopped.set)
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
