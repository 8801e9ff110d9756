"""A session file that is cut short, foreign or forged is refused in one line, and the model continues without it."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import session_load
import toy
from faults import assert_one_line, command, environment

from llamalite.chat import ChatSession
from llamalite.errors import LlamaliteError
from llamalite.generation import session_file
from llamalite.generation.session_file import SavedSession
from llamalite.model import Model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("session") / "toy.gguf", chat_template=toy.CHATML)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model(path, n_ctx=256, n_threads=1) as loaded:
        yield loaded


@pytest.fixture
def held(model: Model, tmp_path: Path) -> SavedSession:
    """What an honest session of 12 tokens or so holds."""
    model.clear()
    model.generate("once upon a time", max_tokens=8, temperature=0)
    model.save_session(tmp_path / "honest.session")
    return session_file.read(tmp_path / "honest.session", {})


def word(state: bytearray, place: int, value: int) -> None:
    struct.pack_into("<I", state, 4 * place, value)


def cut_the_end(state: bytearray) -> None:
    del state[-20:]


# In words of four bytes: magic, sequence, streams, cells; then position, one, sequence of each cell.
FORGED: dict[str, Callable[[bytearray], object]] = {
    "another magic": lambda state: word(state, 0, 0),
    "two streams": lambda state: word(state, 2, 2),
    "no cells": lambda state: word(state, 3, 0),
    "more cells than the cache has": lambda state: word(state, 3, 100_000),
    "four billion cells": lambda state: word(state, 3, 0xFFFFFFFF),
    "a position below zero": lambda state: word(state, 4, 0xFFFFFFF0),
    "a position far away": lambda state: word(state, 4, 0x7FFFFFFF),
    "a cell of many sequences": lambda state: word(state, 5, 0xFFFFFFFF),
    "cut in the cache": cut_the_end,
    "bytes too many": lambda state: state.extend(bytes(100)),
    "nothing": lambda state: state.clear(),
    "noise": lambda state: state.__setitem__(slice(None), np.random.default_rng(0).bytes(len(state))),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_state_with_a_correct_digest_is_refused_and_nothing_of_it_remains(
    case: str, model: Model, held: SavedSession, tmp_path: Path
) -> None:
    before = model.generate("tell me the story", max_tokens=6, temperature=0).text
    state = bytearray(held.state.tobytes())
    FORGED[case](state)
    session_file.write(tmp_path / "a.session", SavedSession(held.facts, held.tokens, np.frombuffer(state, np.uint8)))
    with pytest.raises(LlamaliteError, match=r"a\.session does not hold the state of its \d+ tokens"):
        model.load_session(tmp_path / "a.session")
    assert model.n_held == 0
    assert model.generate("tell me the story", max_tokens=6, temperature=0).text == before


@pytest.mark.parametrize("tokens", [[], [1], [2**31 - 1] * 12, [-1] * 12], ids=["none", "one", "large", "negative"])
def test_tokens_that_are_not_those_of_the_state_are_refused(
    tokens: list[int], model: Model, held: SavedSession, tmp_path: Path
) -> None:
    session_file.write(tmp_path / "a.session", SavedSession(held.facts, tokens, held.state))
    if not tokens:  # an empty conversation is one: its state is not looked at
        model.clear()
        assert model.load_session(tmp_path / "a.session") == {}
        assert model.n_held == 0
        return
    with pytest.raises(LlamaliteError, match=r"a\.session does not hold the state of its"):
        model.load_session(tmp_path / "a.session")
    assert model.n_held == 0
    assert model.generate("once", max_tokens=1).finish_reason in ("length", "stop")


def test_a_cache_of_nan_is_reported_and_gone_when_cleared(model: Model, held: SavedSession, tmp_path: Path) -> None:
    """What a forger can do: the cache's numbers are believed."""
    state = bytearray(held.state.tobytes())
    start = session_load.structure_bytes(len(held.tokens))
    for at in range(start, start + 128, 2):
        state[at : at + 2] = b"\x00\x7e"  # float16's NaN
    session_file.write(tmp_path / "a.session", SavedSession(held.facts, held.tokens, np.frombuffer(state, np.uint8)))
    model.load_session(tmp_path / "a.session")
    with pytest.raises(LlamaliteError, match="not numbers"):
        model.generate([*held.tokens, 5], max_tokens=2)
    model.clear()
    assert model.generate([*held.tokens, 5], max_tokens=2).finish_reason in ("length", "stop")


@pytest.mark.parametrize("extra", [
    {"messages": [7]},
    {"messages": [{"role": 3, "content": "x"}]},
    {"messages": [{"role": "user"}]},
    {"messages": [], "n_dropped": "many"},
    {"messages": {"role": "user"}},
    7,
])  # fmt: skip
def test_a_forged_conversation_is_refused(extra: object, model: Model, held: SavedSession, tmp_path: Path) -> None:
    session_file.write(tmp_path / "a.session", SavedSession(held.facts | {"extra": extra}, held.tokens, held.state))
    with pytest.raises(LlamaliteError, match="does not hold a llamalite conversation|without a conversation"):
        ChatSession(model).load(tmp_path / "a.session")


FOREIGN = {
    "a state file of llama.cpp": b"ggsq\x02\0\0\0" + bytes(200),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "an empty file": b"",
    "only the magic": b"LLAMALITE-SESSION 1\n",
    "facts of a terabyte": b"LLAMALITE-SESSION 1\n" + (1 << 40).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_one_line_for_the_command(name: str, path: Path, tmp_path: Path) -> None:
    (tmp_path / "talk.session").write_bytes(FOREIGN[name])
    done = command(["run", path, "hi", "-n", "1", "--threads", "1", "--session", tmp_path / "talk.session"])
    assert_one_line(done, "talk.session")
    assert re.search("is not a llamalite session: name another file|is truncated or damaged: begin a new", done.stderr)
    assert (tmp_path / "talk.session").read_bytes() == FOREIGN[name]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_session_that_cannot_be_written_leaves_the_old_one(path: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk.session"
    assert command(["run", path, "hi", "-n", "1", "--threads", "1", "--session", talk]).returncode == 0
    before = talk.read_bytes()
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)}, {len(before)}))"
    done = command(["run", path, "more", "-q", "-n", "9", "--threads", "1", "--session", talk], prelude=limit)
    assert_one_line(done, "talk.session: File too large")
    assert talk.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["talk.session"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a dead child is told by its signal")
def test_llama_cpp_survives_forged_states() -> None:
    done = subprocess.run(
        [sys.executable, session_load.__file__, "--files", "150"],
        capture_output=True, text=True, env=environment(), timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0  faults" in done.stdout


def test_what_a_session_cannot_say_is_refused(model: Model, tmp_path: Path) -> None:
    model.clear()
    with pytest.raises(LlamaliteError, match="the context holds nothing of these tokens"):
        model.save_session(tmp_path / "a.session", tokens=[5, 6, 7])
    model.generate("once", max_tokens=2)
    model._engine.cache.most_recent().adapters = (0.5,)
    with pytest.raises(LlamaliteError, match="read with lora_scales of its own"):
        model.save_session(tmp_path / "a.session")
    assert not (tmp_path / "a.session").exists()
    model.clear()
