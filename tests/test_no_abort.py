"""Nothing that a caller can pass ends the process: without a check, each of these makes llama.cpp abort.

Each case runs in a process of its own, which must print the library's answer and end normally.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy

import llamalite

HEAD = """
import numpy as np
from llamalite.errors import *
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel
from llamalite.model import Model

def load(**more): return Model(PATH, n_threads=1, **more)
def context(**more): return NativeContext(NativeModel(PATH), ContextOptions(**{"n_ctx": 512, "n_threads": 1, **more}))
"""

CASES = {
    "a batch over n_batch": (
        "c = context(n_batch=64)\nc.decode([5] * 65, range(65), 0, True)",
        "ValueError: a batch holds 1..64 tokens",
    ),
    "a token outside the vocabulary": (
        "c = context()\nc.decode([2**31 - 1], [0], 0, True)",
        "ValueError: token 2147483647 at place 0 is outside",
    ),
    "a sequence that does not exist": (
        "c = context()\nc.decode([5], [0], 300, True)",
        "ValueError: sequence 300 does not exist",
    ),
    "removing from a sequence that does not exist": (
        "context().seq_rm(999)",
        "ValueError: sequence 999 does not exist",
    ),
    "more sequences than outputs": (
        "context(n_batch=4, n_seq_max=9)",
        "ValueError: n_seq_max must be a whole number in 1..4",
    ),
    "a partial sequence copy": (
        "c = context(n_seq_max=2)\nc.decode([5] * 9, range(9), 0, True)\nc.seq_cp(0, 1, 0, 4)",
        "ValueError: positions 0..4 cannot be copied between separate caches",
    ),
    "a piece of no token": (
        "NativeModel(PATH).token_to_piece(10**9)",
        "ValueError: token 1000000000 at place 0 is outside",
    ),
    "too many threads": (
        "context(n_threads=100000)",
        "ValueError: n_threads must be a whole number in 1..512",
    ),
    "a bad grammar": (
        "load().generate('once', grammar='root ::= (')",
        "ValueError: llama.cpp cannot parse the grammar",
    ),
    "a grammar without a root": (
        "load().generate('once', grammar='top ::= \"a\"')",
        "ValueError: llama.cpp cannot parse the grammar: grammar does not contain a 'root' symbol",
    ),
    "a grammar that nests without end": (
        "load().generate('once', grammar='root ::= ' + '(' * 200000 + '\"a\"' + ')' * 200000)",
        "ValueError: the grammar nests brackets 200000 deep",
    ),
    "a token that the grammar forbids": (
        "print(load().generate('once', grammar='root ::= \"yes\"', logit_bias={i: 100.0 for i in range(3, 200)}).text)",
        "yes",
    ),
    "a grammar of which nothing is left": (
        "load().generate('once', grammar='root ::= \"é\"', logit_bias={i: float('-inf') for i in range(300)})",
        "LlamaliteError: no token may follow",
    ),
    "a grammar that goes on after its end": (
        "print(load().generate('once', grammar='root ::= \"a\"?', max_tokens=5).finish_reason)",
        "stop",
    ),
    "a state cut short": (
        "m = load()\nm.generate('once upon a time', max_tokens=4)\nm.save_session(PATH + '.session')\n"
        "raw = open(PATH + '.session', 'rb').read()\nopen(PATH + '.session', 'wb').write(raw[:-1000])\n"
        "m.load_session(PATH + '.session')",
        "LlamaliteError: ",
    ),
    "a context after its model": (
        "c = context()\nc.model.close()\nc.decode([5], [0], 0, True)",
        "ValueError: this context is closed",
    ),
    "a generation after its model": (
        "m = load()\ns = m.stream('once')\nnext(s)\nm.close()\nprint(len(list(s)))\nm.generate('once')",
        "ValueError: this model is closed",
    ),
    "text for a file without a tokenizer": (
        "NativeModel(PATH.replace('toy', 'mute')).tokenize('hi', add_special=True, parse_special=False)",
        "LlamaliteError: mute.gguf has no vocabulary",
    ),
    "a LoRA adapter that is none": (
        "load(lora=PATH)",
        "toy.gguf is not a LoRA adapter: its key general.type is missing, expected 'adapter'",
    ),
    "bytes that are no text": (
        "print(len(load().tokenize(bytes(range(256)) * 3)) > 0)",
        "True",
    ),
    "a lone surrogate": (
        "print(len(load().tokenize('\\ud800 a')) > 0)",
        "True",
    ),
    "closing in the middle": (
        "import threading\nm = load()\nthreading.Timer(0.3, m.close).start()\n"
        "try:\n    print([p.finish_reason for p in m.stream('once', logit_bias={2: -100.0, 354: -100.0})][-1])\n"
        "except ValueError as error:\n    print('closed' in str(error) and 'cancelled')",
        "cancelled",
    ),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("abort")
    toy.write_toy(folder / "mute.gguf", tokenizer="none")
    return toy.write_toy(folder / "toy.gguf", n_ctx_train=4096)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_the_process_lives_and_says_what_was_wrong(path: Path, case: str) -> None:
    body, message = CASES[case]
    script = HEAD + f"PATH = {str(path)!r}\n" + body
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(llamalite.__file__).parents[1]),
            "PYTHONUTF8": "1",
            "OMP_WAIT_POLICY": "passive",
        },
    )
    assert ran.returncode in (0, 1), f"ended with {ran.returncode}: {ran.stderr[-800:]}"
    assert message in ran.stdout + ran.stderr
