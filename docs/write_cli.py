"""Write docs/cli.md from ``--help``: ``make docs``. A test compares the page with the program."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from llamalite.cli import VERBS, cli

PAGE = Path(__file__).with_name("cli.md")
MODEL = """\
**MODEL**, in every command, is one of these:

- the path of a GGUF file, or of a checkpoint's folder, which is converted once (`./my-llama`): if it contains a `/`, or
  ends in `.gguf` and exists;
- otherwise a name in the models folder, as `llamalite list` shows it, with or without its type: `my-llama` means
  `my-llama-Q4_K_M.gguf`, or else another type; if there is none, a file or folder of that name in the current folder;
- `demo`, the model that comes with llamalite, or `demo-Q8_0` or any other type of it;
- `org/name` or `org/name:Q8_0`, a repository on the Hugging Face hub, unless there is a folder `org`.

**SRC** and **CHECKPOINT** are paths; `convert` also takes `org/name`. An argument that begins with a dash comes last,
after `--`.
"""


def page() -> str:
    """Return the page: the root's help, then each verb's, 100 columns wide."""
    root = click.Context(cli, info_name="llamalite", terminal_width=100, **cli.context_settings)
    parts = [
        "# Command line\n",
        MODEL,
        "The rest of this page is what `--help` shows (`make docs` writes it):\n",
        _block(cli.get_help(root)),
    ]
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
