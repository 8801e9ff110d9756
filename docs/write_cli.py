"""Write docs/cli.md from ``--help``: ``make docs``. A test holds the page and the program alike."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from llamalite.cli import VERBS, cli

PAGE = Path(__file__).with_name("cli.md")


def page() -> str:
    """Return the page: the root's help, then each verb's, 100 columns wide."""
    root = click.Context(cli, info_name="llamalite", max_content_width=100, terminal_width=100)
    parts = ["# Command line\n", "What `--help` shows, written by `make docs`.\n", _block(cli.get_help(root))]
    for verb in VERBS:
        importlib.import_module(VERBS[verb][0])
        command = cli.get_command(root, verb)
        assert command is not None
        context = click.Context(command, info_name=verb, parent=root, max_content_width=100, terminal_width=100)
        parts += [f"## llamalite {verb}\n", _block(command.get_help(context))]
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
