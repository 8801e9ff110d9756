"""The chat of ``llamalite run`` on a terminal: lines in, answers out, and commands that begin with a slash."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamalite import store
from llamalite.cli import _text, _wrapping, fail, message
from llamalite.errors import LlamaliteError

if TYPE_CHECKING:
    from llamalite.answers import Piece, Totals
    from llamalite.chat import ChatSession
    from llamalite.model import Model

COMMANDS = {
    "/system TEXT": "set the system message (without TEXT: take it away)",
    "/reset": "begin anew, the system message stays",
    "/undo": "take the last question and its answer back",
    "/retry": "answer the last question again",
    "/save FILE": "write the conversation, to be taken up by /load or --session",
    "/load FILE": "take up a conversation",
    "/stats": "counts and speeds of the last answer",
    "/help": "this list",
}
KEYS = (
    "A line that ends with a backslash goes on in the next one; three quotation marks begin and end a text of many "
    "lines.",
    "Ctrl-C stops an answer, or drops what is being typed; Ctrl-D or /exit ends the chat.",
)


def help_text(columns: int) -> str:
    """Return what /help shows, in lines of at most `columns`, broken between words."""
    room = max(map(len, COMMANDS)) + 2 if columns >= 40 else 2  # on a very narrow terminal nothing stands in columns
    lines = []
    for name, about in COMMANDS.items():
        first = f"{name:{room - 1}} "
        lines += textwrap.wrap(about, columns, initial_indent=first, subsequent_indent=" " * room)
    for text in KEYS:
        lines += textwrap.wrap(text, columns)
    return "\n".join(lines)


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def show(pieces: Iterator[Piece], prompt: str = "") -> Totals | None:
    """Print a stream as it comes, with a line's end after it, and return its totals; the stream is closed then.

    On a terminal lines end between words, and `prompt` comes first, the text that the stream continues.
    """
    wrapping = _wrapping.Wrapping() if sys.stdout.isatty() else None
    totals, last = None, ""
    try:
        if wrapping and prompt:
            write(wrapping.add(prompt))
        for piece in pieces:
            if piece.text:
                write(wrapping.add(piece.text) if wrapping else piece.text)
                last = piece.text
            totals = piece.totals
    finally:
        pieces.close()  # type: ignore[attr-defined] # a generator, or a Stream: whoever goes on may ask the model again
        if wrapping:
            write(wrapping.end())
        if not last.endswith("\n"):
            write("\n")
    return totals


def held(chat: ChatSession) -> str:
    """Return how long a conversation is."""
    n_turns = sum(one["role"] == "user" for one in chat.messages)
    return f"{_text.count(n_turns, 'turn')}, {_text.count(chat.model.n_held, 'token')}"


def told(totals: Totals) -> str:
    """Return one line of counts and speeds."""
    cached = f" ({totals.n_cached} held already)" if totals.n_cached else ""
    guessed = f" ({totals.n_accepted} of {totals.n_drafted} guesses right)" if totals.n_drafted else ""
    return (
        f"prompt {_text.count(totals.n_prompt, 'token')}{cached}, {totals.prompt_tok_per_s:.1f} tok/s; "
        f"answer {_text.count(totals.n_generated, 'token')}{guessed}, {totals.tok_per_s:.1f} tok/s; "
        f"first token after {totals.ttft_s:.2f} s; seed {totals.seed}"
    )


class Terminal:
    """One chat: with `chat` a conversation in the model's template, without it texts that a base model continues."""

    def __init__(
        self, model: Model, chat: ChatSession | None, options: dict[str, Any], *, stats: bool, quiet: bool
    ) -> None:
        self._model, self._chat, self._options = model, chat, options
        self._stats, self._quiet = stats, quiet
        self._last: Totals | None = None
        self._asked: str | None = None

    def run(self) -> None:
        """Read, answer, repeat, until the input ends."""
        with contextlib.suppress(ImportError):  # Windows has its own line editing
            import readline  # noqa: F401 - input() edits lines and keeps a history from here on

        if not self._quiet:
            n_ctx = self._model.n_ctx
            told = f"{_text.clean(self._model.path.name)}, {n_ctx} tokens of context; /help lists commands, Ctrl-D ends"
            click.echo(textwrap.fill(told, _text.width()), err=True)
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
                fail(message(error), 1)

    def _read(self) -> str:
        """Return a line, or the lines that belong together; nothing where Ctrl-C drops them."""
        line = input("> ")
        try:
            return self._whole(line)
        except KeyboardInterrupt:
            click.echo("\n(dropped)", err=True)
            return ""

    @staticmethod
    def _whole(line: str) -> str:
        """Return `line` with those that belong to it."""
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
        self._asked = text
        self._say(self._chat.stream(text) if self._chat else self._model.stream(text, **self._options))

    def _say(self, pieces: Iterator[Piece]) -> None:
        self._last = None
        self._last = show(pieces)
        if self._stats and self._last:
            click.echo(told(self._last), err=True)

    def _command(self, name: str, rest: str = "") -> None:
        commands: dict[str, Callable[[str], None]] = {
            "/system": self._system, "/reset": self._reset, "/undo": self._undo, "/retry": self._retry,
            "/save": self._save, "/load": self._load, "/stats": self._show_stats, "/help": self._help,
        }  # fmt: skip
        if name not in commands:
            raise ValueError(f"there is no command {name}; /help lists those that there are")
        commands[name](rest.strip())

    def _conversation(self) -> ChatSession:
        if self._chat is None:
            raise ValueError("this model continues texts and has no conversation: it lacks a chat template, or --raw")
        return self._chat

    def _system(self, rest: str) -> None:
        self._conversation().system = rest or None
        self._say_done("system message set" if rest else "no system message any more")

    def _reset(self, _rest: str) -> None:
        chat = self._conversation()
        self._say_done(f"forgotten: {_text.count(len(chat.messages), 'message')}")
        chat.reset()

    def _undo(self, _rest: str) -> None:
        taken = self._conversation().undo()
        if taken is None:
            raise ValueError("there is nothing to take back")
        shown = _text.short(_text.clean(" ".join(taken.split())), max(20, _text.width() - 30))
        self._say_done(f'taken back: "{shown}" and its answer')

    def _retry(self, _rest: str) -> None:
        if self._chat:
            self._say(self._chat.retry())
        elif self._asked is not None:
            self._answer(self._asked)
        else:
            raise ValueError("there is nothing to retry yet")

    def _save(self, rest: str) -> None:
        from llamalite import session

        chat, path = self._conversation(), _path(rest)
        session.check_place(path)
        over = " over the session that was there" if path.exists() else ""
        chat.save(path)
        click.echo(f"saved{over}: /load {rest}", err=True)

    def _load(self, rest: str) -> None:
        chat = self._conversation()
        chat.load(_path(rest))
        click.echo(f"took up {held(chat)}", err=True)

    def _show_stats(self, _rest: str) -> None:
        if self._last is None:
            raise ValueError("nothing was answered to its end yet")
        click.echo(f"{told(self._last)}; context {self._model.n_held} of {self._model.n_ctx} tokens", err=True)

    @staticmethod
    def _help(_rest: str) -> None:
        click.echo(help_text(_text.width()), err=True)

    def _say_done(self, what: str) -> None:
        if not self._quiet:
            click.echo(what, err=True)


def _path(rest: str) -> Path:
    if not rest:
        raise ValueError("name a file, as in /save talk.session")
    return store.expanded(rest)  # no shell has seen it
