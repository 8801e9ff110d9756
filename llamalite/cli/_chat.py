"""The chat of ``llamalite run`` on a terminal, and its commands, which begin with a slash."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamalite import store
from llamalite.cli import _text, error_line, fail
from llamalite.cli._wrapping import StreamWrapper, print_wrapped, wrapped
from llamalite.errors import LlamaliteError

if TYPE_CHECKING:
    from llamalite.chat import ChatSession
    from llamalite.generation.completion import Piece, Totals
    from llamalite.model import Model

COMMANDS = {
    "/system TEXT": "set the system message (without TEXT: remove it)",
    "/reset": "start over with the same system message",
    "/undo": "remove the last question and its answer",
    "/retry": "answer the last question again",
    "/save FILE": "save the conversation, to continue it with /load or --session",
    "/load FILE": "continue a saved conversation",
    "/stats": "show counts and speeds of the last answer",
    "/help": "show this list",
}
KEYS = (
    "A line that ends with a backslash continues on the next one; three quotation marks begin and end a "
    "multi-line text.",
    "Ctrl-C stops an answer, or discards what you are typing; Ctrl-D or /exit ends the chat.",
)


def help_text(columns: int) -> str:
    """Return the text of /help, wrapped to `columns`."""
    # A terminal too narrow for two columns gets a small indentation instead.
    name_width = max(map(len, COMMANDS)) + 2 if columns >= 40 else 2
    lines = []
    for name, about in COMMANDS.items():
        lines += wrapped(about, columns, first_indent=f"{name:{name_width - 1}} ", indent=" " * name_width)
    for text in KEYS:
        lines += wrapped(text, columns)
    return "\n".join(lines)


def write(text: str) -> None:
    """Write `text` to standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_answer(pieces: Iterator[Piece], prompt: str = "") -> Totals | None:
    """Print an answer while it is generated, end its line, close the stream, and return its totals.

    On a terminal, `prompt` (the text that the answer continues) is shown first, and lines are wrapped between words.
    """
    wrapper = StreamWrapper() if sys.stdout.isatty() else None
    totals, last = None, ""
    try:
        if wrapper and prompt:
            write(wrapper.add(prompt))
        for piece in pieces:
            if piece.text:
                write(wrapper.add(piece.text) if wrapper else piece.text)
                last = piece.text
            totals = piece.totals
    finally:
        pieces.close()  # type: ignore[attr-defined] # a generator or a Stream: the model is then free for the next question
        if wrapper:
            write(wrapper.end())
        if not last.endswith("\n"):
            write("\n")
    return totals


def length_text(chat: ChatSession) -> str:
    """Return the turns and tokens of a conversation, in words."""
    n_turns = sum(message["role"] == "user" for message in chat.messages)
    return f"{_text.count(n_turns, 'turn')}, {_text.count(chat.n_tokens, 'token')}"


def stats_text(totals: Totals) -> str:
    """Return counts and speeds of an answer in one line."""
    cached = f" ({totals.n_cached} cached)" if totals.n_cached else ""
    guessed = f" ({totals.n_accepted} of {totals.n_drafted} guesses right)" if totals.n_drafted else ""
    return (
        f"prompt {_text.count(totals.n_prompt, 'token')}{cached}, {totals.prompt_tok_per_s:.1f} tok/s; "
        f"answer {_text.count(totals.n_generated, 'token')}{guessed}, {totals.tok_per_s:.1f} tok/s; "
        f"first token after {totals.ttft_s:.2f} s; seed {totals.seed}"
    )


class ChatLoop:
    """Reads lines from a terminal, and answers each or carries out its command.

    With `chat`, the lines are messages of a conversation; without it, texts that a base model continues.
    """

    def __init__(
        self, model: Model, chat: ChatSession | None, options: dict[str, Any], *, stats: bool, quiet: bool
    ) -> None:
        self._model, self._chat, self._options = model, chat, options
        self._stats, self._quiet = stats, quiet
        self._last_totals: Totals | None = None
        self._last_text: str | None = None

    def run(self) -> None:
        """Read and answer until the input ends."""
        with contextlib.suppress(ImportError):  # Windows has line editing of its own
            import readline  # noqa: F401 - gives input() line editing and a history

        if not self._quiet:
            n_ctx = self._model.n_ctx
            name = self._model.path.name
            print_wrapped(f"{name}, {n_ctx} tokens of context; /help lists commands, Ctrl-D ends the chat", err=True)
        while True:
            try:
                text = self._read()
            except EOFError:
                write("\n")
                return
            except KeyboardInterrupt:
                click.echo("\nCtrl-D ends the chat", err=True)
                continue
            if not text.strip():
                continue
            if text.strip() in ("/exit", "/quit", "/bye"):
                return
            try:
                if text.startswith("/"):
                    self._command(*text.split(None, 1))
                else:
                    self._answer(text)
            except KeyboardInterrupt:
                click.echo("(stopped)", err=True)
            except (LlamaliteError, ValueError, OSError) as error:
                fail(error_line(error), 1)

    def _read(self) -> str:
        """Return the next input, one line or several; an empty one if Ctrl-C discards it."""
        line = input("> ")
        try:
            return self._read_rest(line)
        except KeyboardInterrupt:
            click.echo("\n(discarded)", err=True)
            return ""

    @staticmethod
    def _read_rest(line: str) -> str:
        """Read the rest of the input that begins with `line`, and return all of it."""
        if line.startswith('"""'):
            lines = [line[3:]]
            while not lines[-1].rstrip().endswith('"""'):
                lines.append(input("… "))
            lines[-1] = lines[-1].rstrip().removesuffix('"""')
            return "\n".join(lines).strip("\n")
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("… "))
        return "\n".join(lines)

    def _answer(self, text: str) -> None:
        self._last_text = text
        self._print_answer(self._chat.stream(text) if self._chat else self._model.stream(text, **self._options))

    def _print_answer(self, pieces: Iterator[Piece]) -> None:
        self._last_totals = None  # in case the answer is stopped
        self._last_totals = print_answer(pieces)
        if self._stats and self._last_totals:
            click.echo(stats_text(self._last_totals), err=True)

    def _command(self, name: str, argument: str = "") -> None:
        commands: dict[str, Callable[[str], None]] = {
            "/system": self._system, "/reset": self._reset, "/undo": self._undo, "/retry": self._retry,
            "/save": self._save, "/load": self._load, "/stats": self._show_stats, "/help": self._help,
        }  # fmt: skip
        if name not in commands:
            raise ValueError(f"there is no command {name}; /help lists all commands")
        commands[name](argument.strip())

    def _conversation(self) -> ChatSession:
        if self._chat is None:
            raise ValueError("there is no conversation: the model has no chat template, or --raw ignores it")
        return self._chat

    def _system(self, argument: str) -> None:
        self._conversation().system = argument or None
        self._confirm("system message set" if argument else "system message removed")

    def _reset(self, _argument: str) -> None:
        chat = self._conversation()
        self._confirm(f"forgotten: {_text.count(len(chat.messages), 'message')}")
        chat.reset()

    def _undo(self, _argument: str) -> None:
        removed = self._conversation().undo()
        if removed is None:
            raise ValueError("there is nothing to undo")
        question = _text.short(_text.clean(" ".join(removed.split())), max(20, _text.width() - 30))
        self._confirm(f'removed: "{question}" and its answer')

    def _retry(self, _argument: str) -> None:
        if self._chat:
            self._print_answer(self._chat.retry())
        elif self._last_text is not None:
            self._answer(self._last_text)
        else:
            raise ValueError("there is nothing to retry yet")

    def _save(self, argument: str) -> None:
        from llamalite.generation import session_file

        chat, path = self._conversation(), _path(argument)
        session_file.check_place(path)
        over = ", replacing the session that was there" if path.exists() else ""
        chat.save(path)
        click.echo(f"saved{over}: /load {argument}", err=True)

    def _load(self, argument: str) -> None:
        chat = self._conversation()
        chat.load(_path(argument))
        click.echo(f"loaded {length_text(chat)}", err=True)

    def _show_stats(self, _argument: str) -> None:
        if self._last_totals is None:
            raise ValueError("no answer is complete yet")
        context = f"context {self._conversation().n_tokens} of {self._model.n_ctx} tokens"
        click.echo(f"{stats_text(self._last_totals)}; {context}", err=True)

    @staticmethod
    def _help(_argument: str) -> None:
        click.echo(help_text(_text.width()), err=True)

    def _confirm(self, message: str) -> None:
        if not self._quiet:
            click.echo(message, err=True)


def _path(argument: str) -> Path:
    if not argument:
        raise ValueError("name a file, as in /save talk.session")
    return store.expanded(argument)  # no shell has expanded a ~
