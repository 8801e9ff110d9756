"""Write docs/cli.md from ``--help``: ``make docs``. A test holds the page and the program alike."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from llamalite.cli import VERBS, cli

PAGE = Path(__file__).with_name("cli.md")
MODEL = """\
**MODEL**, in every command, is one of these:

- a path, if it has a `/` in it, or ends in `.gguf` and is there: of a GGUF file, or of a checkpoint's folder, converted
  once: `./my-llama`;
- else a name in the models folder, as `llamalite list` shows it, with or without its type: `my-llama` is
  `my-llama-Q4_K_M.gguf` there, the usual type first; only where there is none, a file or folder of that name here;
- `demo`, the model that ships with llamalite, and `demo-Q8_0` or any other type of it;
- `org/name` or `org/name:Q8_0`, a repository of the Hugging Face hub, unless a folder `org` stands here.

**SRC** and **CHECKPOINT** are paths; `convert` takes `org/name` too. What begins with a
dash comes last, after `--`.
"""


def page() -> str:
    """Return the page: the root's help, then each verb's, 100 columns wide."""
    root = click.Context(cli, info_name="llamalite", terminal_width=100, **cli.context_settings)
    parts = ["# Command line\n", MODEL, "What `--help` shows, written by `make docs`:\n", _block(cli.get_help(root))]
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
