"""`llamalite run` on a terminal, driven through a real pseudo-terminal."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import toy

import llamalite
from llamalite.cli import _chat

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of POSIX")

PROMPT = "> "


class Terminal:
    """A program on a pseudo-terminal: type, and wait for what it shows."""

    def __init__(
        self, *args: str | Path, cwd: Path, columns: int = 80, program: Sequence[str] = ("-m", "llamalite")
    ) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self.fd, theirs = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        package = str(Path(llamalite.__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": package, "PYTHONUTF8": "1", "TERM": "dumb", "NO_COLOR": "1"}
        # The first terminal that a session's leader opens becomes its own: Ctrl-C typed there is a signal.
        take = "import os, sys; os.open(os.ttyname(0), 2); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", take, *program, *map(str, args)],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in two pieces

    def until(self, pattern: str, patience_s: float = 90) -> str:
        """Return what was shown since the last call, up to and with `pattern`."""
        import select

        end = time.monotonic() + patience_s
        while not (match := re.search(pattern, self.shown)):
            assert time.monotonic() < end, f"waited in vain for {pattern!r} after {self.shown!r}"
            if select.select([self.fd], [], [], 0.5)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:  # Linux: the other side is closed
                    data = b""
                assert data, f"it ended before {pattern!r}: {self.shown!r}"
                self.shown += self._decoder.decode(data).replace("\r\n", "\n")
        seen, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def interrupt(self, pattern: str) -> str:
        """Type Ctrl-C, and return what `until` does; a Ctrl-C just before readline waits has no effect, so try
        again."""
        for _ in range(12):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.until(pattern, 8)
        raise AssertionError(f"no {pattern!r} after Ctrl-C: {self.shown!r}")

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
    assert "saved, replacing the session that was there: /load talk.session" in terminal.ask("/save talk.session")
    (tmp_path / "notes.txt").write_text("mine")
    refused = terminal.ask("/save notes.txt")
    assert refused == "error: notes.txt is not a llamalite session: name another file\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert "error: no/where cannot be saved: there is no folder no\n" in terminal.ask("/save no/where")
    assert (tmp_path / "talk.session").exists()
    terminal.ask("and the story")
    assert 'removed: "and the story" and its answer' in terminal.ask("/undo")
    assert "loaded 1 turn, " in terminal.ask("/load talk.session")
    assert "system message set" in terminal.ask("/system yes")
    assert "system message removed" in terminal.ask("/system")
    assert "forgotten: 2 messages" in terminal.ask("/reset")
    assert "nothing to undo" in terminal.ask("/undo")
    assert terminal.ask("/load nowhere") == "error: nowhere: No such file or directory\n"
    terminal.type('"""once\nupon"""\n')
    terminal.until('upon"""\n')
    assert terminal.until(r"\n> ").strip()
    assert terminal.end() == 0


def test_exit_ends_the_chat_too(terminal: Terminal) -> None:
    terminal.type("/exit\n")
    assert terminal.process.wait(60) == 0


@pytest.mark.parametrize("columns", [24, 40, 80, 200])
def test_help_is_never_broken_inside_a_word(columns: int) -> None:
    text = _chat.help_text(columns)
    assert max(map(len, text.splitlines())) <= columns
    words = " ".join([*(f"{name} {about}" for name, about in _chat.COMMANDS.items()), *_chat.KEYS])
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
        terminal.interrupt(r"(\(stopped\)|Ctrl-D ends the chat)[^>]*> ")
        assert "Ctrl-D ends the chat" in terminal.interrupt(r"chat\n> ")
        assert terminal.process.poll() is None
        assert terminal.end() == 0
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.fd)


def test_ctrl_c_drops_a_text_of_many_lines_and_goes_back_to_the_prompt(terminal: Terminal) -> None:
    for opened in ('"""once', "once upon\\"):
        terminal.type(opened + "\n")
        terminal.until("… ")
        terminal.type("a time")
        terminal.until("a time")
        assert terminal.interrupt(r"\n> ").endswith("\n(discarded)\n> ")
    assert "nothing to undo" in terminal.ask("/undo")  # none of it was asked


def test_an_answer_is_broken_between_words(instruct: Path, tmp_path: Path) -> None:
    (tmp_path / "g.gbnf").write_text('root ::= ("once" | "upon" | "story") (" " ("once" | "upon" | "story"))*')
    asked = ("tell me", "-n", "60", "--seed", "3", "--temp", "2", "--grammar", "g.gbnf", "--threads", "1")
    shown = []
    for columns in (500, 30):
        terminal = Terminal("run", instruct, *asked, cwd=tmp_path, columns=columns)
        shown.append(terminal.until(r"\n"))
        with contextlib.suppress(AssertionError):  # it ends
            terminal.until("nothing that comes")
        shown[-1] += terminal.shown
        terminal.process.wait(60)
        os.close(terminal.fd)
    wide, narrow = (line.strip() for line in shown)
    assert narrow != wide
    assert narrow.split() == wide.split()
    assert max(map(len, narrow.splitlines())) < 30


def test_loading_is_shown_only_where_it_takes_long_and_is_gone_then(instruct: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time\nfrom llamalite import model\nreal = model.Model.__init__\n"
        "def init(self, *args, **more):\n    time.sleep(1.5)\n    real(self, *args, **more)\n"
        "model.Model.__init__ = init\nfrom llamalite.cli import main\nmain(sys.argv[1:])\n"
    )
    asked = ("run", instruct, "-n", "2", "--threads", "1")
    for program, options, is_shown in ((str(slow), (), True), (str(slow), ("-q",), False), ("-m", (), False)):
        head = (program,) if program != "-m" else ("-m", "llamalite")
        terminal = Terminal(*asked, *options, cwd=tmp_path, program=head)
        before = terminal.until(PROMPT)
        assert before.startswith(f"Loading chat.gguf …\r{' ' * 19}\rchat.gguf") == is_shown, before
        assert ("Loading" in before) == is_shown
        assert terminal.end() == 0
        os.close(terminal.fd)
