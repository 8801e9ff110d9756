"""``llamalite perplexity``: measures how well a model predicts a text."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamalite.cli import _options, _text
from llamalite.cli._progress import is_watched, progress_bar

if TYPE_CHECKING:
    from llamalite.evaluation.perplexity import PerplexityResult


@click.command("perplexity")
@click.argument("model", metavar="MODEL")
@click.option("-f", "--file", "text_file", required=True, metavar="TEXT",
              help="The text to score, read as bytes; - is standard input.")  # fmt: skip
@click.option("--ctx", "n_ctx", type=_options.COUNT, default=512, show_default=True, metavar="N",
              help="Tokens in a chunk.")  # fmt: skip
@click.option("--chunks", type=_options.COUNT, metavar="N", help="Stop after N chunks. Default: all.")
@click.option("--stride", type=_options.COUNT, metavar="N",
              help="Slide a window of --ctx tokens by N tokens, instead of scoring half of each chunk.")  # fmt: skip
@click.option("--batch", "n_batch", type=_options.COUNT, default=2048, show_default=True, metavar="N",
              help="Tokens in a batch; several chunks share one.")  # fmt: skip
@click.option("--exact", is_flag=True, help="F32 cache, no flash attention: figures that agree across machines.")
@_options.threads("n_threads")
@_options.gpu("0")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with the whole protocol.")
@click.pass_context
def command(ctx: click.Context, /, model: str, text_file: str, as_json: bool, **options: Any) -> None:
    """Measure how well MODEL predicts a text: its perplexity, to the digits that llama-perplexity prints.

    Lower is better. MODEL is a GGUF file, a name in the models folder, the folder of a checkpoint, or org/name[:TYPE].
    Ctrl-C prints the result so far.

    \b
    Examples:
      llamalite perplexity demo -f wiki.test.raw
      llamalite perplexity demo -f wiki.test.raw --ctx 1024 --chunks 32 --exact --json
    """
    from llamalite.cli import _model
    from llamalite.evaluation.measured_model import opened
    from llamalite.evaluation.perplexity import iter_perplexity
    from llamalite.evaluation.protocol import EvalProtocol
    from llamalite.evaluation.windows import without_newline

    offload = _options.offload(options)
    protocol = EvalProtocol(**options)
    raw = sys.stdin.buffer.read() if text_file == "-" else Path(text_file).read_bytes()
    path = _model.obtain(ctx, model)
    result: PerplexityResult | None = None
    stopped: BaseException | None = None
    with opened(path, **offload) as native, progress_bar(ctx.obj, "chunk") as bar:
        try:
            for result in iter_perplexity(native, without_newline(raw), protocol):
                figures = f"PPL {result.ppl:.4f} ± {result.ppl_err:.4f}"
                bar.move_to(result.chunks_done, result.n_chunks, figures)
        except (KeyboardInterrupt, SystemExit) as signalled:  # Ctrl-C, SIGTERM: print the result so far
            stopped = signalled
    if result is not None and as_json:
        text = {"path": text_file, "sha256": hashlib.sha256(raw).hexdigest(), "n_bytes": len(raw)}
        about = {"path": str(path), "n_bytes": path.stat().st_size, "description": native.desc}
        click.echo(json.dumps({"model": about, "text": text} | result.to_json(), indent=2, allow_nan=False))
    elif result is not None:
        _print(result)
        if is_watched(ctx.obj, sys.stdout):
            click.echo("\nLower is better. To see what quantization cost:")
            click.echo(f"  llamalite compare CHECKPOINT {_text.clean(model)} -f {_text.clean(text_file)}")
    if stopped is not None:
        raise stopped


def _print(result: PerplexityResult) -> None:
    if not result.complete:
        click.echo(f"stopped after {result.chunks_done} of {result.n_chunks} chunks")
    click.echo(f"PPL        {result.ppl:.4f} ± {result.ppl_err:.5f}")
    if result.bits_per_byte is not None and result.bits_per_word is not None:
        click.echo(f"bits       {result.bits_per_byte:.4f} per byte, {result.bits_per_word:.3f} per word")
    protocol = result.protocol
    how = f"a window of {protocol['n_ctx']} every {protocol['stride']}" if protocol["stride"] else (
        f"chunks of {protocol['n_ctx']}, the second half of each"
    )  # fmt: skip
    click.echo(f"scored     {result.n_scored:,} tokens in {result.chunks_done:,} windows: {how}")
    mode = "exact: " if protocol["exact"] else ""
    flash = {"auto": "auto", False: "off", True: "on"}[protocol["flash_attn"]]
    click.echo(f"context    {mode}{protocol['kv_type']} cache, flash attention {flash}, batch {protocol['n_batch']}, "
               f"{protocol['n_threads']} threads")  # fmt: skip
    share = result.scoring_s / result.decode_s
    click.echo(f"speed      {result.n_decoded / result.decode_s:,.1f} tokens/s, scoring takes {share:.2%} on top")
