"""``llamalite completion``: prints the script that makes a shell complete verbs, options and types."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL, which the shell should evaluate when it starts.

    \b
    Examples:
      echo 'eval "$(llamalite completion bash)"' >> ~/.bashrc
      echo 'eval "$(llamalite completion zsh)"' >> ~/.zshrc
      llamalite completion fish > ~/.config/fish/completions/llamalite.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"this version of click cannot complete for {shell}: pip install -U click")
    click.echo(kind(ctx.find_root().command, {}, "llamalite", "_LLAMALITE_COMPLETE").source())
