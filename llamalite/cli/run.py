"""``llamalite run``: a model answers once, or chats on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llamalite.answers import Piece, Totals
    from llamalite.model import Model

_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")


def _gpu_layers(_ctx: click.Context, _param: click.Parameter, value: str) -> int | str:
    if value in ("auto", "all"):
        return value
    if value.isdigit():
        return int(value)
    raise click.BadParameter(f"{value!r} is neither 'auto', 'all' nor a number of layers")


@click.command(name="run")
@click.argument("model", metavar="MODEL")
@click.argument("prompt", metavar="[PROMPT]", required=False)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=0),
    metavar="N",
    help="Tokens at the most. Default: until the model ends or the context is full.",
)
@click.option(
    "--temp",
    "temperature",
    type=click.FloatRange(min=0),
    metavar="T",
    help="0 takes the likeliest token every time. Default: the file's, else 0.8.",
)
@click.option("--top-p", type=click.FloatRange(0, 1), metavar="P", help="Default: the file's, else 0.95; 1 is off.")
@click.option("--top-k", type=click.IntRange(min=0), metavar="K", help="Default: the file's, else 40; 0 is off.")
@click.option("--min-p", type=click.FloatRange(0, 1), metavar="P", help="Default: the file's, else 0.05; 0 is off.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 2), metavar="N", help="The same seed draws the same tokens.")
@click.option(
    "--ctx",
    "n_ctx",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens the context holds. Default: 8192, or what the model or free memory allows.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Default: the physical cores usable here.")
@click.option(
    "--gpu-layers",
    default="auto",
    show_default=True,
    metavar="auto|all|N",
    callback=_gpu_layers,
    help="How many layers run on the GPU.",
)
@click.option("--system", metavar="TEXT", help="The system message of a chat.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@click.option("--exact", is_flag=True, help="F32 cache and no flash attention: what comparisons across machines use.")
@click.option("--stats", is_flag=True, help="Show counts and speeds on standard error.")
@click.pass_context
def command(ctx: click.Context, /, model: str, prompt: str | None, **options: Any) -> None:
    """Let MODEL answer PROMPT, or chat with it.

    MODEL is a GGUF file, a name in the models folder, or org/name-GGUF[:TYPE], a repository of the Hugging Face hub
    with ready-made files. An instruct model gets PROMPT as a user's message in its chat
    template, a base model continues the text. Without PROMPT the text comes from standard input; on a terminal that
    is a chat, which Ctrl-D ends.

    \b
    Examples:
      llamalite run demo "Once upon a time"
      llamalite run TinyLlama-1.1B-Q4_K_M.gguf
      llamalite run bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M
      cat question.txt | llamalite run demo -n 200 --temp 0 --stats
    """
    from llamalite.cli import _hub
    from llamalite.model import Model

    chatting = prompt is None and sys.stdin.isatty()
    if prompt is None and not chatting:
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n")
    with Model(
        _hub.model(ctx, model),
        n_ctx=options["n_ctx"],
        n_threads=options["threads"],
        n_gpu_layers=options["gpu_layers"],
        exact=options["exact"],
    ) as loaded:
        sampling = {name: options[name] for name in _SAMPLING if options[name] is not None}
        as_chat = loaded.has_chat_template and not options["raw"]
        if options["system"] and not as_chat:
            raise click.UsageError("--system needs a model with a chat template, and no --raw")
        if prompt is not None:
            system = [{"role": "system", "content": options["system"]}] if options["system"] else []
            asked: Any = [*system, {"role": "user", "content": prompt}] if as_chat else prompt
            stream = loaded.stream(asked, **sampling)  # refuses what cannot work, before a word is printed
            if not as_chat:
                _write(prompt)
            totals = _show(stream)
            if options["stats"] and totals:
                click.echo(_told(totals), err=True)
        else:
            _chat(loaded, options["system"] if as_chat else None, as_chat, sampling, options["stats"])


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _show(pieces: Iterable[Piece]) -> Totals | None:
    """Print a stream as it comes, with a line's end after it, and return its totals."""
    totals, last = None, ""
    try:
        for piece in pieces:
            if piece.text:
                _write(piece.text)
                last = piece.text
            totals = piece.totals
    finally:
        if not last.endswith("\n"):
            _write("\n")
    return totals


def _told(totals: Totals) -> str:
    cached = f" ({totals.n_cached} held already)" if totals.n_cached else ""
    return (
        f"prompt {totals.n_prompt} tokens{cached}, {totals.prompt_tok_per_s:.1f} tok/s; "
        f"answer {totals.n_generated} tokens, {totals.tok_per_s:.1f} tok/s; "
        f"first token after {totals.ttft_s:.2f} s; seed {totals.seed}"
    )


def _chat(model: Model, system: str | None, as_chat: bool, sampling: dict[str, Any], stats: bool) -> None:
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    while True:
        try:
            text = input("> ")
        except EOFError:
            _write("\n")
            return
        if not text.strip():
            continue
        messages.append({"role": "user", "content": text})
        answer: list[str] = []
        stream = model.stream(messages if as_chat else text, **sampling)
        try:
            totals = _show(_kept(stream, answer))
            if stats and totals:
                click.echo(_told(totals), err=True)
        except KeyboardInterrupt:
            stream.close()
        messages.append({"role": "assistant", "content": "".join(answer)})


def _kept(pieces: Iterable[Piece], texts: list[str]) -> Iterable[Piece]:
    for piece in pieces:
        texts.append(piece.text)
        yield piece
