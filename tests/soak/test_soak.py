"""Short forms of the long runs in soak.py: no wrong answer, no deadlock, and no leak that so few steps could show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import soak
from faults import environment, write_endless
from judge import Judge

from llamalite.model import Model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a thread that hangs ends the process by a signal")


@pytest.mark.parametrize("name", soak.RUNS)
def test_a_hundredth_of_a_long_run_is_right_and_ends(name: str) -> None:
    """In a process of its own, whose memory is that run's alone."""
    program = f"import soak; found = soak.run({name!r}, 0.005); print(found); print(found.end_bytes - found.warm_bytes)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(soak.__file__).parent, capture_output=True, text=True,
        env=environment(), timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # The warm-up of a run this short ends before every thread has filled its share of malloc's arenas, so the bound is
    # loose; `make soak` allows the full runs 5 %.
    assert int(done.stdout.splitlines()[-1]) < 40 << 20, done.stdout


def test_the_judge_sees_a_wrong_answer(tmp_path: Path) -> None:
    with Model(write_endless(tmp_path / "toy.gguf", n_layer=2, n_embd=64), n_ctx=256, n_threads=1) as model:
        judge, prompt = Judge(model), model.tokenize("once upon a time")
        answer = list(model.generate(prompt, max_tokens=8, temperature=0).tokens)
        judge.check(prompt, answer)
        answer[4] = (answer[4] + 1) % 300
        with pytest.raises(AssertionError, match="token [4-7] of 8 is"):
            judge.check(prompt, answer)
