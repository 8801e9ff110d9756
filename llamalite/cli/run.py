"""``llamalite run``: lets a model answer a prompt, or chat on a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamalite.cli import _options, _text

if TYPE_CHECKING:
    from llamalite.chat import ChatSession
    from llamalite.generation.completion import Completion
    from llamalite.model import Model

_SAMPLING = ("max_tokens", *_options.SAMPLING, "seed")
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(name="run")
@click.argument("model", metavar="MODEL")
@click.argument("prompt", metavar="[PROMPT]", required=False)
@click.option("-f", "--file", "prompt_file", type=_FILE, metavar="FILE", help="Read the prompt from FILE.")
@click.option(
    "-n",
    "--max-tokens",
    type=_options.COUNT_OR_NONE,
    metavar="N",
    help="Maximum tokens. Default: until the model ends or the context is full.",
)
@_options.sampling
@click.option("--seed", type=_options.SEED, metavar="N", help="The same seed gives the same tokens.")
@click.option(
    "--stop",
    multiple=True,
    metavar="TEXT",
    help="Stop before TEXT, a control token such as <|im_end|> too; repeatable.",
)
@click.option(
    "--stop-token",
    type=click.IntRange(0, 2**31 - 1),
    multiple=True,
    metavar="ID",
    help="Stop before the token ID; repeatable.",
)
@click.option("--schema", type=_FILE, metavar="FILE", help="Answer with JSON that is valid for this JSON Schema.")
@click.option("--grammar", type=_FILE, metavar="FILE", help="Answer with text that follows this grammar (GBNF).")
@click.option("--system", metavar="TEXT", help="The system message of a chat.")
@click.option("--system-file", type=_FILE, metavar="FILE", help="Read the system message from FILE.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@click.option(
    "--session",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Continue the conversation in FILE if it exists, and save it there at the end.",
)
@_options.loading
@click.option(
    "--lookup",
    is_flag=True,
    help="Speculate that repeated tokens continue as before: faster if an answer repeats its input.",
)
@click.option("--stats", is_flag=True, help="Show counts and speeds on standard error.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object: the answer, why it ended, counts and times."
)
@click.pass_context
def command(ctx: click.Context, /, model: str, prompt: str | None, **options: Any) -> None:
    """Let MODEL answer PROMPT, or chat with it.

    MODEL is a GGUF file, a name in the models folder, demo (the model that comes with llamalite), the folder of a
    checkpoint, or org/name[:TYPE], a repository on the Hugging Face hub. A checkpoint is converted once and kept in the
    models folder. An instruct model gets PROMPT as a user message in its chat template; a base model continues the
    text. Without PROMPT, the text comes from standard input, or a chat begins on a terminal; /help lists its commands.
    In a pipe only the answer is printed.

    \b
    Examples:
      llamalite run demo "Once upon a time"
      llamalite run TinyLlama-1.1B-Q4_K_M.gguf
      llamalite run ./TinyLlama-1.1B
      llamalite run bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M
      cat question.txt | llamalite run demo -n 200 --temp 0 --stats
      llamalite run demo -f letter.txt --schema letter.schema.json --json
    """
    from llamalite.cli import _model
    from llamalite.generation.session_file import check_place

    if options["session"]:
        check_place(options["session"])
    prompt = _prompt(prompt, options["prompt_file"])
    system = options["system"]
    if options["system_file"]:
        if system is not None:
            raise click.UsageError("give --system or --system-file, not both")
        system = _text.read(options["system_file"]).strip()
    sampling = _sampling(options)
    if prompt is None and options["as_json"]:
        raise click.UsageError("--json is for one answer: give a PROMPT, -f FILE or standard input")
    loading = _options.loaded_with(options)
    path = _model.obtain(ctx, model)
    draft = _model.obtain(ctx, options["draft"]) if options["draft"] else None
    with _model.load(
        ctx,
        path,
        **loading,
        draft=draft,
        n_parallel=1,
    ) as loaded:
        as_chat = loaded.has_chat_template and not options["raw"]
        if not as_chat and (system or options["session"]):
            raise click.UsageError("--system and --session need a model with a chat template, and no --raw")
        _answer_or_chat(ctx, loaded, prompt, as_chat, system, sampling, options)


def _prompt(prompt: str | None, file: Path | None) -> str | None:
    """Return the prompt; None for a chat."""
    if file is not None:
        if prompt is not None:
            raise click.UsageError("give a PROMPT or -f FILE, not both")
        prompt = _text.read(file).removesuffix("\n")
    elif prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n")
    if prompt == "":
        raise ValueError("the prompt is empty: give a question, or some text to continue")
    return prompt


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    chosen = {name: options[name] for name in _SAMPLING if options[name] is not None}
    if options["lookup"] and options["draft"]:
        raise click.UsageError("give --lookup or --draft, not both")
    if options["lookup"]:
        chosen["speculate"] = "lookup"
    if stops := [*options["stop"], *options["stop_token"]]:
        chosen["stop"] = stops
    if options["grammar"]:
        chosen["grammar"] = _text.read(options["grammar"])
    if options["schema"]:
        schema = _text.read(options["schema"])
        try:
            chosen["json_schema"] = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{options['schema']} is not JSON: {error}") from None
        if chosen["json_schema"] is None:  # None would mean: no schema
            raise ValueError(f"{options['schema']}, at #: a schema is an object or true, found null")
    return chosen


def _answer_or_chat(
    ctx: click.Context, model: Model, prompt: str | None, as_chat: bool, system: str | None,
    sampling: dict[str, Any], options: dict[str, Any],
) -> None:  # fmt: skip
    from llamalite.cli import _chat
    from llamalite.generation.completion import Completion

    chat = None
    if as_chat:
        from llamalite.chat import ChatSession

        # When the context is full, a chat drops its oldest turns and says so; a single prompt is refused.
        chat = ChatSession(model, system=system, overflow="drop" if prompt is None else "error", **sampling)
        if options["session"] and options["session"].exists():
            chat.load(options["session"])
            chat.system = system or chat.system
            if not ctx.obj["quiet"]:
                click.echo(f"Loaded {_chat.length_text(chat)} from {_text.clean(str(options['session']))}", err=True)
    with _saved_at_end(ctx, chat, options["session"]):
        if prompt is None:
            _chat.ChatLoop(model, chat, sampling, stats=options["stats"], quiet=ctx.obj["quiet"]).run()
            return
        # Invalid input is refused here, before anything is printed.
        pieces = chat.stream(prompt) if chat else model.stream(prompt, **sampling)
        if options["as_json"]:
            with contextlib.closing(pieces):  # type: ignore[type-var] # a generator, or a Stream
                click.echo(json.dumps(_answer_json(Completion.of(pieces), model), ensure_ascii=False))
        else:
            totals = _chat.print_answer(pieces, "" if chat else prompt)
            if options["stats"] and totals:
                click.echo(_chat.stats_text(totals), err=True)


@contextlib.contextmanager
def _saved_at_end(ctx: click.Context, chat: ChatSession | None, path: Path | None) -> Iterator[None]:
    """Save the conversation when the block ends, even if a signal or a closed pipe ends it."""
    from llamalite.cli import _chat

    def save() -> None:
        if chat and path:
            chat.save(path)
            if not ctx.obj["quiet"]:
                click.echo(f"Saved {_chat.length_text(chat)} to {_text.clean(str(path))}", err=True)

    try:
        yield
    except (KeyboardInterrupt, SystemExit, BrokenPipeError):
        save()
        raise
    save()


def _answer_json(answer: Completion, model: Model) -> dict[str, Any]:
    totals = answer.totals
    return {
        "model": str(model.path),
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "stopped_by": answer.stopped_by,
        "n_prompt": totals.n_prompt,
        "n_cached": totals.n_cached,
        "n_generated": totals.n_generated,
        "prompt_s": totals.prompt_s,
        "generation_s": totals.generation_s,
        "ttft_s": totals.ttft_s,
        "prompt_tok_per_s": totals.prompt_tok_per_s,
        "tok_per_s": totals.tok_per_s,
        "seed": totals.seed,
        "n_drafted": totals.n_drafted,
        "n_accepted": totals.n_accepted,
    }
