"""The command line: one file for each verb, with arguments and printing but no logic.

A verb's module is imported only when that verb runs, so that ``llamalite --help`` loads neither numpy nor llama.cpp.
Exit codes: 0 done, 1 bad input or failure, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM. A failure prints one line on
stderr, with ``-vv`` the traceback. A verb gets ``{"verbose": int, "quiet": bool}`` as its context's ``obj``.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from llamalite._version import __version__
from llamalite.errors import LlamaliteError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _ParamType = click.ParamType[str]
else:
    _ParamType = click.ParamType  # generic only since click 8.4

# verb → (module, its line in `llamalite --help`, which must not import the module)
VERBS = {
    "convert": ("llamalite.cli.convert", "Convert a LLaMA checkpoint to a quantized GGUF file."),
    "verify": ("llamalite.cli.verify", "Check a GGUF file against the checkpoint that it was made from."),
    "run": ("llamalite.cli.run", "Let a model answer a prompt, or chat with it."),
    "list": ("llamalite.cli.models", "List the models in the models folder."),
    "inspect": ("llamalite.cli.inspect", "Show what a GGUF file contains and needs, without loading it."),
    "remove": ("llamalite.cli.remove", "Delete models from the models folder."),
    "serve": ("llamalite.cli.serve", "Serve models over HTTP, to OpenAI's and Anthropic's clients."),
    "batch": ("llamalite.cli.batch", "Answer a file of prompts, many at a time."),
    "perplexity": ("llamalite.cli.perplexity", "Measure how well a model predicts a text."),
    "compare": ("llamalite.cli.compare", "Measure what each quantization of a model costs."),
    "imatrix": ("llamalite.cli.imatrix", "Collect an importance matrix, for better quantization."),
    "eval": ("llamalite.cli.eval", "Evaluate a model on standard tasks."),
    "bench": ("llamalite.cli.bench", "Measure how fast a model reads and generates here."),
    "doctor": ("llamalite.cli.doctor", "Show this machine, which models fit, and how fast they can be."),
    "demo": ("llamalite.cli.demo", "Convert, ask and measure the model that comes with llamalite."),
    "completion": ("llamalite.cli.completion", "Print the completion script for bash, zsh or fish."),
}


def _set_verbosity(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Store -v or -q, which may be given before the verb, after it, or both."""
    settings = ctx.ensure_object(dict)
    if param.name == "quiet":
        settings["quiet"] = bool(value) or settings.get("quiet", False)
    else:
        settings["verbose"] = int(value) + settings.get("verbose", 0)
    if "logging" in sys.modules:
        _set_levels(settings)


def _set_levels(settings: dict[str, Any]) -> None:
    """Set the library's log level from -v and -q. Called only before a verb runs, as `logging` is slow to import."""
    import logging

    from llamalite.cli import _text

    class OneLine(logging.Formatter):
        def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the standard library's name
            record.level = record.levelname.lower()
            return _text.clean(super().formatMessage(record))

    verbose = settings.get("verbose", 0)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(name)s: %(message)s" if verbose else "%(level)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    level = logging.ERROR if settings.get("quiet") else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.getLogger("llamalite").setLevel(level)
    # llama.cpp's errors become the messages of exceptions: logged too, they would be shown twice.
    logging.getLogger("llamalite.llama_cpp").setLevel(logging.DEBUG if verbose > 1 else logging.CRITICAL)


def _verbosity_options() -> list[click.Option]:
    return [
        click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=_set_verbosity,
                     help="Log what happens; -vv adds llama.cpp's log, and tracebacks."),
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_set_verbosity,
                     help="Show only results and errors."),
    ]  # fmt: skip


class _ModelName(_ParamType):
    """The type of every MODEL argument: a shell completes it to files and to names in the models folder."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from llamalite import store

        try:
            names = [name for path in store.list_models() if (name := store.shortest_name(path)).startswith(incomplete)]
        except LlamaliteError:  # the folder cannot be read: the verb will say so, completion should not
            names = []
        return [CompletionItem(incomplete, type="file"), *map(CompletionItem, names)]


class _LazyGroup(click.Group):
    """A group that lists its commands from `VERBS`, and imports one only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(VERBS[name][0]).command
        _set_levels(ctx.ensure_object(dict))
        if not any(param.callback is _set_verbosity for param in command.params):
            command.params += _verbosity_options()
        for param in command.params:
            if isinstance(param, click.Argument) and param.name in ("model", "models", "reference", "names"):
                param.type = _ModelName()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"there is no command {args[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=about) for name, (_, about) in VERBS.items() if name.startswith(incomplete)]

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
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
              help="Show the versions of llamalite and llama.cpp.")  # fmt: skip
def cli() -> None:
    """Convert LLaMA checkpoints to quantized GGUF, run them on a laptop, and measure what quantization cost.

    \b
    Examples:
      llamalite demo
      llamalite convert ./TinyLlama-1.1B -t Q4_K_M
      llamalite run TinyLlama-1.1B "Once upon a time"
    """


cli.params[:0] = _verbosity_options()


def main(args: list[str] | None = None) -> None:
    """Run the command line with `args` (default: ``sys.argv[1:]``) and exit with its code."""
    signal.signal(signal.SIGTERM, _terminated)
    # Python sets a stream to None if it was closed before the start (`>&-`).
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        # A model may write any character, and a Windows code page lacks most.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    sys.exit(_run(sys.argv[1:] if args is None else args))


def _run(arguments: list[str]) -> int:
    settings = {"verbose": 0, "quiet": False}
    if instruction := os.environ.get("_LLAMALITE_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "llamalite", "_LLAMALITE_COMPLETE", instruction)
    try:
        # Not cli.main(): with it, click would exit with 1 on a closed pipe.
        colour = False if os.environ.get("NO_COLOR") else None
        with cli.make_context("llamalite", list(arguments), obj=settings, color=colour) as ctx:
            cli.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt, EOFError):
        click.echo(err=True)  # so that the shell's prompt begins a new line
        return 130
    except BrokenPipeError:
        # `llamalite ... | head` has read enough. Without this, Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "llamalite"
        message = error.format_message()
        end = "" if message.endswith((".", "?")) else "."
        return fail(f"{message}{end} See {path} --help", error.exit_code)
    except click.ClickException as error:
        return fail(error.format_message(), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the outermost handler: any error becomes one line and a code
        if settings["verbose"] > 1:
            import traceback

            traceback.print_exc()
            return 1
        return fail(error_line(error), 1)
    return 0


# How Python and the dynamic linker report that a limit is reached → what to show instead.
_LIMITS = {
    "can't start new thread": "no thread can be started: free memory, or raise the limit on processes "
    "(ulimit -u) or on memory (ulimit -v)",
    "failed to map segment": "out of memory: a library cannot be loaded; free some, or raise the limit (ulimit -v)",
}


def error_line(error: Exception) -> str:
    """Return the line that describes `error`; for a bug in llamalite, it says how to report it."""
    for words, explanation in _LIMITS.items():
        if words in str(error):
            return explanation
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (LlamaliteError, OSError, ValueError)) and str(error):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"a bug in llamalite, {type(error).__name__}: {error} (add -vv to see where, and report it)"


_LONGEST_LINE = 2000  # characters


def fail(text: str, code: int) -> int:
    """Print `text` as an error in one line, and return the exit `code`."""
    from llamalite.cli import _text

    colour = False if os.environ.get("NO_COLOR") else None
    click.secho("error: ", fg="red", bold=True, err=True, nl=False, color=colour)
    line = _text.clean(" ".join(text.split()))
    click.echo(line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ...", err=True)
    return code


def _terminated(*_: Any) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    main()
