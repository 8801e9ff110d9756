"""`llamalite run` on a terminal, driven through a real pseudo-terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy

import llamalite
from llamalite.cli import _terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of POSIX")

PROMPT = "> "


class Terminal:
    """A program on a pseudo-terminal: type, and wait for what it shows."""

    def __init__(self, *args: str | Path, cwd: Path) -> None:
        import pty

        self.fd, theirs = pty.openpty()
        package = str(Path(llamalite.__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": package, "PYTHONUTF8": "1", "TERM": "dumb"}
        # The first terminal that a session's leader opens becomes its own: Ctrl-C typed there is a signal.
        take = "import os, sys; os.open(os.ttyname(0), 2); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", take, "-m", "llamalite", *map(str, args)],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def until(self, pattern: str) -> str:
        """Return what was shown since the last call, up to and with `pattern`."""
        import select

        end = time.monotonic() + 90
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < end, f"waited in vain for {pattern!r} after {self.shown!r}"
            if select.select([self.fd], [], [], 0.5)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:  # Linux: the other side is closed
                    data = b""
                assert data, f"it ended before {pattern!r}: {self.shown!r}"
                self.shown += data.decode("utf-8", "replace").replace("\r\n", "\n")
        seen, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def ask(self, text: str) -> str:
        """Type a line and return what comes before the next prompt."""
        self.type(text + "\n")
        self.until(re.escape(text.splitlines()[-1]) + "\n")
        return self.until(r"\n> |^> ").removesuffix(PROMPT)

    def end(self) -> int:
        self.type("\x04")
        return self.process.wait(60)


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("chat") / "chat.gguf", chat_template=toy.CHATML, n_ctx_train=4096)


@pytest.fixture
def terminal(instruct: Path, tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal("run", instruct, "-n", "8", "--temp", "0", "--threads", "1", cwd=tmp_path)
    assert "chat.gguf, 4096 tokens of context; /help lists commands" in made.until(PROMPT)
    yield made
    if made.process.poll() is None:
        made.process.kill()
    made.process.wait()
    os.close(made.fd)


def test_a_chat_answers_and_obeys_its_commands(terminal: Terminal, tmp_path: Path) -> None:
    first = terminal.ask("tell me")
    assert first.strip()
    assert "tok/s" in terminal.ask("/stats")
    assert terminal.ask("/retry") == first
    assert "/system TEXT" in terminal.ask("/help")
    assert "there is no command /nothing" in terminal.ask("/nothing")
    assert "saved: /load talk.session" in terminal.ask("/save talk.session")
    assert (tmp_path / "talk.session").exists()
    terminal.ask("and the story")
    assert 'taken back: "and the story" and its answer' in terminal.ask("/undo")
    assert "2 messages" in terminal.ask("/load talk.session")
    assert "system message set" in terminal.ask("/system yes")
    assert "no system message any more" in terminal.ask("/system")
    assert "forgotten: 2 messages" in terminal.ask("/reset")
    assert "nothing to take back" in terminal.ask("/undo")
    assert "error: " in terminal.ask("/load nowhere")
    terminal.type('"""once\nupon"""\n')
    terminal.until('upon"""\n')
    assert terminal.until(r"\n> ").strip()
    assert terminal.end() == 0


def test_exit_ends_the_chat_too(terminal: Terminal) -> None:
    terminal.type("/exit\n")
    assert terminal.process.wait(60) == 0


@pytest.mark.parametrize("columns", [24, 40, 80, 200])
def test_help_is_never_broken_inside_a_word(columns: int) -> None:
    text = _terminal.help_text(columns)
    assert max(map(len, text.splitlines())) <= columns
    words = " ".join([*(f"{name} {about}" for name, about in _terminal.COMMANDS.items()), *_terminal.KEYS])
    assert text.split() == words.split()


def test_a_full_context_leaves_the_oldest_turns_out_and_says_so(instruct: Path, tmp_path: Path) -> None:
    terminal = Terminal("run", instruct, "-n", "8", "--temp", "0", "--threads", "1", "--ctx", "256", cwd=tmp_path)
    try:
        terminal.until(PROMPT)
        # Short lines: beyond the terminal's width readline scrolls, and does not show what was typed as it was.
        shown = [terminal.ask("once upon a time there was a story of me and you") for _ in range(6)]
        assert "turns of the chat were dropped" in "".join(shown)
        assert terminal.end() == 0
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.fd)


def test_ctrl_c_stops_the_answer_and_not_the_program(instruct: Path, tmp_path: Path) -> None:
    terminal = Terminal("run", instruct, "--temp", "2", "--top-k", "0", "--threads", "1", "--raw", cwd=tmp_path)
    try:
        terminal.until(PROMPT)
        terminal.type("once upon a time " * 300 + "\n")
        terminal.until("time \n")
        time.sleep(0.5)
        terminal.type("\x03")
        terminal.until(r"(\(stopped\)|Ctrl-D ends the chat)[^>]*> ")
        terminal.type("\x03")
        assert "Ctrl-D ends the chat" in terminal.until(r"chat\n> ")
        assert terminal.process.poll() is None
        assert terminal.end() == 0
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.fd)
