"""How a model ends: closed, dropped, forked, with the interpreter; and what happens to running and waiting calls."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import toy

import llamalite
from llamalite.generation.completion import Completion
from llamalite.model import Model
from llamalite.sampling import SamplingParams

ENDLESS = SamplingParams(max_tokens=900, temperature=0, logit_bias={2: float("-inf")})  # 2 is the end of a text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy.write_toy(tmp_path / "toy.gguf", n_ctx_train=4096)


def in_a_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def decode_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "llamalite-decode"}


def run_script(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", f"PATH = {str(path)!r}\n{script}"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_model_that_nobody_closes_gives_everything_back(path: Path) -> None:
    before = decode_threads()
    model = Model(path, n_threads=1)
    model.generate("once", max_tokens=2)
    gone = weakref.ref(model)
    mine = decode_threads() - before  # those of other tests may still be ending
    assert len(mine) == 1
    del model
    gc.collect()
    assert gone() is None
    wait_for(lambda: not mine & decode_threads())


def test_a_stream_that_is_dropped_gives_its_turn_back(path: Path) -> None:
    with Model(path, n_threads=1) as model:
        stream = model.stream("once", ENDLESS, temperature=0)
        next(stream)
        del stream
        plain = model.generate("once", max_tokens=4, temperature=0)
        for _piece in model.stream("once", ENDLESS, temperature=0):
            break
        answers: list[Completion] = []
        thread = in_a_thread(lambda: answers.append(model.generate("once", max_tokens=4, temperature=0)))
        thread.join(60)
        assert answers[0].tokens == plain.tokens


def test_close_ends_running_and_waiting_generations(path: Path) -> None:
    answers: list[Completion] = []
    model = Model(path, n_threads=1, n_ctx=2048)
    threads = [in_a_thread(lambda: answers.append(model.generate("once", ENDLESS))) for _ in range(6)]
    wait_for(lambda: model.n_running + model.n_waiting == 6 and model.n_held > 3)
    model.close()
    for thread in threads:
        thread.join(60)
    assert [answer.finish_reason for answer in answers] == ["cancelled"] * 6
    assert any(answer.tokens for answer in answers)
    for call in (lambda: model.generate("once"), lambda: model.save_session("x"), model.clear):
        with pytest.raises(ValueError, match="this model is closed"):
            call()


def test_a_stream_of_a_closed_model_says_so_and_starts_nothing(path: Path) -> None:
    model, before = Model(path, n_threads=1), decode_threads()
    begun, not_begun = model.stream("once", ENDLESS), model.stream("once", ENDLESS)
    next(begun)
    model.close()
    assert [piece.finish_reason for piece in begun][-1] == "cancelled"
    with pytest.raises(ValueError, match="this model is closed"):
        next(not_begun)
    wait_for(lambda: not decode_threads() - before)


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_model_can_be_closed_in_a_batchs_callback(reproducible: bool, path: Path) -> None:
    model = Model(path, n_threads=1)
    params = [
        ENDLESS.replace(max_tokens=4, reproducible=reproducible),
        *[ENDLESS.replace(reproducible=reproducible)] * 3,
    ]
    found = model.generate_batch(["once"] * 4, params, on_completion=lambda _number, _completion: model.close())
    assert [completion.finish_reason for completion in found] == ["length", "cancelled", "cancelled", "cancelled"]
    with pytest.raises(ValueError, match="this model is closed"):
        model.generate("once")


def test_a_reproducible_batch_is_cancelled_as_a_whole(path: Path) -> None:
    with Model(path, n_threads=1, n_ctx=2048) as model:
        found: list[Completion] = []
        thread = in_a_thread(lambda: found.extend(model.generate_batch(["once"] * 20, ENDLESS, reproducible=True)))
        wait_for(lambda: model.n_held > 3)
        model.cancel()
        thread.join(60)
        assert [completion.finish_reason for completion in found] == ["cancelled"] * 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("used", "expected"), [
    ("", "length"), ("model.generate('once', max_tokens=2)", "this process was forked from one in which the model had"),
])  # fmt: skip
def test_a_forked_process_computes_or_is_told_why_not(used: str, expected: str, path: Path) -> None:
    done = run_script(
        "import os, warnings\nwarnings.simplefilter('ignore')\nfrom llamalite.model import Model\n"
        f"model = Model(PATH, n_threads=1)\n{used}\n"
        "if child := os.fork():\n    os.waitpid(child, 0)\nelse:\n"
        "    try:\n        print(model.generate('once', max_tokens=2).finish_reason)\n"
        "    except Exception as error:\n        print(error)\n",
        path,
    )
    assert done.stdout.startswith(expected), done.stdout + done.stderr


@pytest.mark.parametrize("call", ["generate('once', ENDLESS)", "generate_batch(['once'] * 4, ENDLESS)"])
def test_the_interpreter_ends_while_a_thread_generates(call: str, path: Path) -> None:
    for _ in range(3):
        done = run_script(
            "import threading, time\nfrom llamalite.model import Model\nfrom llamalite.sampling import SamplingParams\n"
            "ENDLESS = SamplingParams(max_tokens=900, temperature=0, logit_bias={2: float('-inf')})\n"
            "model = Model(PATH, n_threads=2, n_ctx=4096)\n"
            f"threading.Thread(target=lambda: model.{call}, daemon=True).start()\n"
            "while not threading.active_count() > 2: time.sleep(0.001)\n"
            "time.sleep(0.05)\n",
            path,
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_stream_that_was_begun_before_a_fork_says_so_in_the_child(path: Path) -> None:
    done = run_script(
        "import os, warnings\nwarnings.simplefilter('ignore')\nfrom llamalite.model import Model\n"
        "model = Model(PATH, n_threads=1)\n"
        "stream = model.stream('once', max_tokens=900, temperature=0, logit_bias={2: float('-inf')})\nnext(stream)\n"
        "if child := os.fork():\n    os.waitpid(child, 0)\nelse:\n"
        "    try:\n        for _piece in stream: pass\n"
        "    except Exception as error:\n        print(error)\n",
        path,
    )
    assert done.stdout.startswith("this process was forked from one in which the model had"), done.stdout + done.stderr
