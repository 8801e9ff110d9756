"""``llamalite imatrix``: measures on a text how much each column of a model's matrices matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llamalite.cli import _options, _text
from llamalite.cli._progress import progress_bar


@click.command("imatrix")
@click.argument("model", metavar="MODEL")
@click.option("-f", "--file", "text_file", required=True, metavar="TEXT", type=click.Path(path_type=Path),
              help="The calibration text, read as bytes.")  # fmt: skip
@click.option("-o", "--output", required=True, metavar="OUT", type=click.Path(path_type=Path, dir_okay=False),
              help="The file to write, in GGUF format.")  # fmt: skip
@click.option("--ctx", "n_ctx", type=_options.COUNT, default=512, show_default=True, metavar="N",
              help="Tokens in a chunk.")  # fmt: skip
@click.option("--chunks", type=_options.COUNT, metavar="N", help="Stop after N chunks. Default: all.")
@click.option(
    "--process-output", is_flag=True, help="Include the output matrix, which llama.cpp leaves out by default."
)
@_options.threads("n_threads")
@_options.gpu("0")
@click.pass_context
def command(ctx: click.Context, /, model: str, text_file: Path, output: Path, **options: Any) -> None:
    """Collect an importance matrix of MODEL over a text, for better quantization to 4 bits and below.

    MODEL should be unquantized or Q8_0, and the text similar to what the model will read. 32 to 128 chunks are enough.

    \b
    Examples:
      llamalite imatrix demo-BF16 -f calibration.txt -o imatrix.gguf --chunks 64
      llamalite convert ./checkpoint -t IQ4_XS --imatrix imatrix.gguf
    """
    from llamalite.cli import _model
    from llamalite.evaluation.imatrix import collect_imatrix
    from llamalite.evaluation.windows import read_text

    offload = _options.offload(options)
    text = read_text(text_file)
    _options.check_writable(output)
    path = _model.obtain(ctx, model)
    with progress_bar(ctx.obj, "chunk") as bar:
        matrix = collect_imatrix(path, text, progress=bar.move_to, **offload, **options)
    matrix.save(output, dataset=str(text_file))
    if not ctx.obj["quiet"]:
        content = f"{len(matrix.sums)} matrices over {matrix.n_chunks} chunks of {matrix.n_ctx} tokens"
        click.echo(f"{content}: {_text.clean(str(output))}")
