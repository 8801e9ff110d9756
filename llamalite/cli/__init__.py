"""The command line: one file a verb, arguments and printing, no logic.

A verb's module is imported only when that verb runs, so that ``llamalite --help`` loads neither numpy nor llama.cpp.
Exit codes: 0 done, 1 bad input or failure, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM. A failure is one line on stderr;
the traceback comes only with ``-vv``.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from typing import Any

import click

from llamalite import __version__
from llamalite.errors import LlamaliteError

# verb → (module, one line for `llamalite --help`, which must not import the module)
VERBS = {
    "convert": ("llamalite.cli.convert", "Convert a LLaMA checkpoint to a quantized GGUF file."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are named, and listed from `VERBS` until then."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(VERBS[name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in VERBS.items()])


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from llamalite.native import library

    click.echo(f"llamalite {__version__} ({library.version()})")
    ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("-v", "--verbose", count=True, help="Show what happens; -vv also llama.cpp's log and tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but results and errors.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
              help="Show the versions of llamalite and llama.cpp.")  # fmt: skip
@click.pass_context
def cli(ctx: click.Context, verbose: int, quiet: bool) -> None:
    """Convert LLaMA checkpoints to quantized GGUF, run them on a laptop, and measure what it cost.

    \b
    Examples:
      llamalite convert ./TinyLlama-1.1B -t Q4_K_M
      llamalite run TinyLlama-1.1B-Q4_K_M "Once upon a time"
    """
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
    # What llama.cpp reports as an error is raised, in its words: logged too it would be told twice.
    logging.getLogger("llamalite.llama_cpp").setLevel(logging.DEBUG if verbose > 1 else logging.CRITICAL)
    ctx.obj = {"verbose": verbose, "quiet": quiet}


def _fail(error: BaseException) -> None:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    click.secho("error: ", fg="red", bold=True, err=True, nl=False, color=None if _colours() else False)
    click.echo(" ".join(text.split("\n")), err=True)


def _colours() -> bool:
    return "NO_COLOR" not in os.environ


def _terminated(*_: Any) -> None:
    raise SystemExit(143)


def main(args: list[str] | None = None) -> None:
    """Run the command line with `args` (default: ``sys.argv[1:]``) and exit with its code."""
    signal.signal(signal.SIGTERM, _terminated)
    arguments = sys.argv[1:] if args is None else args
    loud = "-vv" in arguments or arguments.count("-v") > 1 or arguments.count("--verbose") > 1
    try:
        code = cli.main(arguments, prog_name="llamalite", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # `llamalite ... | head`: whoever reads has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (LlamaliteError, OSError, ValueError) as error:
        if loud:
            raise
        _fail(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
