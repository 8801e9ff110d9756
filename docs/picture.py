"""Run commands in a real terminal (tmux) and write what it shows as an SVG, for the README.

    python docs/picture.py docs/terminal.svg "llamalite demo"
    python docs/picture.py docs/session.svg --newcomer

The commands run one by one in the current folder, in a bash without the user's settings. --newcomer is a first
session (convert, run, list, inspect, doctor) in an empty folder with the demo's checkpoint as ``my-llama``. The SVG is
tmux's screen, character by character, with its colours. Needs Linux or macOS, and tmux.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

COLUMNS = 96
CHAR, LINE, SIZE, PAD, BAR = 8.4, 19, 14, 18, 34  # pixels: cell, font, margin, title bar
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
BACKGROUND, FOREGROUND = "#16181d", "#d6d9e0"
PALETTE = ("#16181d", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d6d9e0")
NO_BREAK_SPACE = "\u00a0"  # of several plain spaces a browser draws one
SOCKET = "llamalite-picture"
NEWCOMER = (
    "llamalite convert my-llama",
    "llamalite run my-llama 'What is the capital of France?'",
    "llamalite list",
    "llamalite inspect my-llama | head -n 26",  # without the keys
    "llamalite doctor",
)


def tmux(*args: str) -> str:
    return subprocess.run(["tmux", "-L", SOCKET, *args], check=True, capture_output=True, text=True).stdout


def record(commands: list[str], rows: int) -> list[str]:
    """Type each command into a fresh shell, wait for its end, and return the screen's lines with escape sequences."""
    shell = "env PS1='$ ' PROMPT_COMMAND= HISTFILE= TERM=xterm-256color bash --norc --noprofile"
    tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(rows), shell)
    try:
        for command in commands:
            wait_for_prompt()
            tmux("send-keys", "-l", command)
            tmux("send-keys", "Enter")
            time.sleep(0.5)
        wait_for_prompt()
        lines = tmux("capture-pane", "-e", "-p").rstrip("\n").split("\n")
    finally:
        tmux("kill-server")
    while lines and plain(lines[-1]).strip() in {"", "$"}:
        lines.pop()
    return lines


@contextlib.contextmanager
def first_folder() -> Iterator[None]:
    """Work in an empty folder with a checkpoint ``my-llama``; ``llamalite`` is this checkout, its models are beside."""
    root, before = Path(__file__).resolve().parent.parent, Path.cwd()
    with tempfile.TemporaryDirectory(prefix="llamalite-") as name:
        os.chdir(name)
        shutil.copytree(root / "models" / "demo", "my-llama")
        Path("bin").mkdir()
        program = Path("bin/llamalite")
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} exec {shlex.quote(sys.executable)} -m llamalite "$@"\n'
        )
        program.chmod(0o755)
        os.environ |= {"PATH": f"{name}/bin{os.pathsep}{os.environ['PATH']}", "LLAMALITE_MODELS": "models"}
        try:
            yield
        finally:
            os.chdir(before)


def wait_for_prompt(seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        shown = [line for line in tmux("capture-pane", "-p").split("\n") if line.strip()]
        if shown and shown[-1].strip() == "$" and tmux("display", "-p", "#{pane_current_command}").strip() == "bash":
            return
        time.sleep(0.1)
    raise TimeoutError(f"no prompt after {seconds:.0f} s")


def plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


def runs(line: str, style: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Split a line at its colour changes; `style` goes on from line to line, as it does in the terminal."""
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        if part.startswith("\x1b["):
            restyle(part[2:-1], style)
        elif part:
            yield part, dict(style)


def restyle(codes: str, style: dict[str, str]) -> None:
    numbers = [int(code or 0) for code in codes.split(";")]
    while numbers:
        code = numbers.pop(0)
        if code == 0:
            style.clear()
        elif code == 1:
            style["font-weight"] = "bold"
        elif code == 2:
            style["opacity"] = "0.6"
        elif code == 22:
            style.pop("font-weight", None)
            style.pop("opacity", None)
        elif code == 39:
            style.pop("fill", None)
        elif code == 38 and numbers[0] == 2:
            style["fill"] = "#{:02x}{:02x}{:02x}".format(*numbers[1:4])
            del numbers[:4]
        elif 30 <= code <= 37 or 90 <= code <= 97:
            style["fill"] = PALETTE[code % 10]


def draw(lines: list[str]) -> str:
    width, height = COLUMNS * CHAR + 2 * PAD, len(lines) * LINE + BAR + PAD
    dots = "".join(f'<circle cx="{PAD + 20 * n}" cy="17" r="6" fill="{PALETTE[c]}"/>' for n, c in enumerate((1, 3, 2)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" role="img" aria-label="A terminal session with llamalite">',
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>{dots}',
        f'<g font-family="{FONT}" font-size="{SIZE}" fill="{FOREGROUND}">',
    ]
    style: dict[str, str] = {}
    for n, line in enumerate(lines):
        y, column = BAR + LINE * n + 13, 0
        if plain(line).startswith("$ "):  # what was typed stands out
            line = f"\x1b[32m$\x1b[0m \x1b[1m{plain(line)[2:]}\x1b[0m"
        for text, look in runs(line, style):
            looks = "".join(f' {name}="{value}"' for name, value in look.items())
            # Each run is pinned to its cells, whatever width the reader's font has.
            parts.append(
                f'<text x="{PAD + CHAR * column:.1f}" y="{y}" textLength="{CHAR * len(text):.1f}"{looks}>'
                f"{html.escape(text).replace(' ', NO_BREAK_SPACE)}</text>"
            )
            column += len(text)
    return "\n".join([*parts, "</g>", "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("commands", nargs="*", metavar="COMMAND")
    parser.add_argument("--newcomer", action="store_true", help="a first session, in a folder of its own")
    parser.add_argument("--rows", type=int, default=100, help="the terminal's height")
    options = parser.parse_args()
    if shutil.which("tmux") is None:
        parser.error("tmux is not installed")
    if bool(options.commands) == options.newcomer:
        parser.error("name commands, or --newcomer")
    with first_folder() if options.newcomer else contextlib.nullcontext():
        lines = record(list(NEWCOMER) if options.newcomer else options.commands, options.rows)
    options.output.write_text(draw(lines), encoding="utf-8")
    print(f"{options.output}: {len(lines)} lines")


if __name__ == "__main__":
    main()
