"""Conversations: what they keep, what they cost, what happens when they no longer fit, and how they are resumed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy

from llamalite.chat import ChatSession
from llamalite.errors import ContextOverflowError, LlamaliteError, TemplateError
from llamalite.model import Model

END = toy.vocabulary().index(("<|im_end|>", 0.0, toy.CONTROL))
ENDLESS = {toy.EOS: -float("inf"), END: -float("inf")}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("chat") / "chat.gguf", chat_template=toy.CHATML, n_ctx_train=2048)


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    with Model(path, n_ctx=1024, n_threads=1) as loaded:
        yield loaded


def session(model: Model, **options: object) -> ChatSession:
    return ChatSession(model, **{"max_tokens": 10, "temperature": 0, "logit_bias": ENDLESS, **options})  # type: ignore[arg-type]


def test_question_and_answer_become_the_history(model: Model) -> None:
    chat = session(model, system="tell me")
    answer = chat.ask("yes or no?")
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1]["content"] == answer.text
    assert chat.system == "tell me"


def test_the_tenth_turn_costs_its_own_tokens(model: Model) -> None:
    chat = session(model)
    fresh = []
    for _ in range(10):
        totals = chat.ask("once upon a time there was").totals
        fresh.append(totals.n_prompt - totals.n_cached)
    assert totals.n_prompt > 400
    assert max(fresh[1:]) < 70  # the last answer with its frame, and the new question


def test_undo_and_retry_and_reset(model: Model) -> None:
    chat = session(model, system="s")
    first = chat.ask("yes")
    chat.ask("no")
    assert chat.undo() == "no"
    assert len(chat.messages) == 3
    again = "".join(piece.text for piece in chat.retry())
    assert again == first.text
    assert len(chat.messages) == 3
    chat.reset()
    assert [message["role"] for message in chat.messages] == ["system"]
    assert chat.undo() is None
    with pytest.raises(ValueError, match="nothing to retry yet"):
        chat.retry()


def test_the_last_piece_adds_the_turn_to_the_history_even_if_nobody_asks_for_more(model: Model) -> None:
    chat = session(model)
    stream = chat.stream("tell me")
    while next(stream).totals is None:
        assert chat.messages == []
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert list(stream) == []
    assert len(chat.messages) == 2


def test_an_answer_closed_midway_stays_up_to_that_point(model: Model) -> None:
    chat = session(model)
    stream = chat.stream("tell me")
    shown = next(stream).text + next(stream).text
    stream.close()  # type: ignore[attr-defined]
    assert chat.messages[-1] == {"role": "assistant", "content": shown}
    assert chat.ask("and").finish_reason == "length"


def test_a_refused_question_leaves_no_trace(model: Model) -> None:
    chat = session(model)
    with pytest.raises(ContextOverflowError, match="too many"):
        chat.ask("story " * 1000)
    assert chat.messages == []


def test_the_oldest_turns_are_dropped_when_asked(model: Model) -> None:
    chat = session(model, system="tell me a story", overflow="drop")
    for i in range(12):
        chat.ask(f"once upon a time there was number {i} " + "and the story " * 10)
    assert chat.n_dropped > 0
    assert chat.messages[0] == {"role": "system", "content": "tell me a story"}
    assert chat.messages[1]["role"] == "user"
    assert "number 11" in chat.messages[-2]["content"]
    assert not any("number 0 " in message["content"] for message in chat.messages)
    with pytest.raises(ContextOverflowError, match="the last message alone has"):
        chat.ask("story " * 1000)


def test_without_being_asked_nothing_is_dropped(model: Model) -> None:
    chat = session(model)
    chat.ask("once upon a time there was " + "and the story " * 200)
    with pytest.raises(ContextOverflowError, match="too many"):
        chat.ask("once upon a time there was " + "and the story " * 200)
    assert chat.n_dropped == 0


def test_turns_work_in_asyncio_too(model: Model) -> None:
    chat = session(model)

    async def go() -> str:
        return "".join([piece.text async for piece in chat.astream("tell me")])

    assert chat.messages == []
    assert asyncio.run(go()) == chat.messages[-1]["content"]


def test_a_model_without_a_template_has_no_chat(tmp_path: Path) -> None:
    with (
        Model(toy.write_toy(tmp_path / "base.gguf"), n_threads=1) as base,
        pytest.raises(TemplateError, match="no chat template"),
    ):
        ChatSession(base)


def test_an_overflow_policy_that_does_not_exist_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="overflow must be 'error' or 'drop', found 'silently'"):
        session(model, overflow="silently")


def test_a_conversation_continues_in_another_process(model: Model, path: Path, tmp_path: Path) -> None:
    chat = session(model, system="tell me")
    for _ in range(4):
        chat.ask("once upon a time")
    chat.save(tmp_path / "talk.session")
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_chat import Model, session
with Model({str(path)!r}, n_ctx=1024, n_threads=1) as model:
    chat = session(model)
    chat.load({str(tmp_path / "talk.session")!r})
    totals = chat.ask("and then?").totals
    print(len(chat.messages), totals.n_prompt - totals.n_cached, chat.messages[0]["content"])
"""
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert other.returncode == 0, other.stderr
    n_messages, n_read, system = other.stdout.split(maxsplit=2)
    assert (int(n_messages), system.strip()) == (11, "tell me")
    assert int(n_read) < 40  # the question and its frame


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    session(model).ask("once upon a time")
    model.save_session(tmp_path / "a.session", extra={"n": 1})
    return tmp_path / "a.session"


@pytest.mark.parametrize("keep", [0, 10, 25, 300, 0.5, -40, -1])
def test_a_session_cut_short_is_refused(model: Model, saved: Path, keep: float) -> None:
    raw = saved.read_bytes()
    saved.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(LlamaliteError, match="is not a llamalite session|is truncated or damaged"):
        model.load_session(saved)
    assert model.generate("once", max_tokens=1).finish_reason in ("length", "stop")


def test_a_session_with_one_bit_changed_is_refused(model: Model, saved: Path) -> None:
    raw = bytearray(saved.read_bytes())
    for place in (len(raw) // 3, len(raw) - 5, len(raw) // 2):
        changed = bytearray(raw)
        changed[place] ^= 1
        saved.write_bytes(changed)
        with pytest.raises(LlamaliteError, match="is truncated or damaged"):
            model.load_session(saved)


def test_a_session_of_another_model_or_cache_is_refused(model: Model, saved: Path, path: Path, tmp_path: Path) -> None:
    other = toy.write_toy(tmp_path / "other.gguf", seed=5, chat_template=toy.CHATML, n_ctx_train=2048)
    with Model(other, n_threads=1) as model_2, pytest.raises(LlamaliteError, match="saved with another model"):
        model_2.load_session(saved)
    with Model(path, n_threads=1, exact=True) as exact, pytest.raises(LlamaliteError, match="another cache type"):
        exact.load_session(saved)


def test_a_session_larger_than_the_context_is_refused(model: Model, path: Path, tmp_path: Path) -> None:
    model.generate([5] * 600, max_tokens=0)
    model.save_session(tmp_path / "long.session")
    with Model(path, n_ctx=512, n_threads=1) as small, pytest.raises(ContextOverflowError, match="holds 600 tokens"):
        small.load_session(tmp_path / "long.session")


def test_a_session_holds_its_extra_and_its_tokens(model: Model, saved: Path) -> None:
    held = model.n_held
    model.clear()
    assert model.load_session(saved) == {"n": 1}
    assert model.n_held == held > 0
    with pytest.raises(LlamaliteError, match="without a conversation"):
        session(model).load(saved)


def test_an_empty_context_can_be_saved(model: Model, tmp_path: Path) -> None:
    model.save_session(tmp_path / "empty.session")
    assert model.load_session(tmp_path / "empty.session") == {}
    assert model.n_held == 0
