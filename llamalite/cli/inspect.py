"""``llamalite inspect``: shows what a GGUF file contains, without loading it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from llamalite.cli import _text
from llamalite.cli._table import print_table
from llamalite.cli._wrapping import print_labelled

if TYPE_CHECKING:
    from llamalite.store.inspection import Inspection

_LABEL_WIDTH = 14  # columns of a label


@click.command("inspect")
@click.argument("model", metavar="MODEL")
@click.option("--tensors", "with_tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with all keys and tensors.")
@click.pass_context
def command(ctx: click.Context, model: str, with_tensors: bool, as_json: bool) -> None:
    """Show what MODEL contains and needs to run: shape, vocabulary, tensors by type, memory, keys.

    MODEL is any GGUF file (the first of a split model; other families and adapters too), a name in the models folder,
    demo, the folder of a checkpoint, or org/name[:TYPE]. Only the header is read. The exit code is 1 for a
    model that llama.cpp would not load.

    \b
    Examples:
      llamalite inspect demo
      llamalite inspect TinyLlama-1.1B-Q4_K_M.gguf --tensors
      llamalite inspect demo --json | jq .metadata
    """
    from llamalite import hardware
    from llamalite.cli import _model
    from llamalite.store.inspection import inspect

    inspection, free = inspect(_model.obtain(ctx, model)), hardware.free_memory_bytes()
    if as_json:
        click.echo(json.dumps(inspection.to_json(free), indent=2, allow_nan=False, ensure_ascii=False))
    else:
        _print_model(inspection)
        _print_vocabulary(inspection)
        _print_types(inspection)
        if with_tensors:
            _print_tensors(inspection)
        _print_memory(inspection, free)
        _print_keys(inspection)
    if inspection.problem and inspection.scalars().get("general.type", "model") == "model" and inspection.n_ctx_train:
        ctx.exit(1)


def _print_line(label: str, text: str) -> None:
    print_labelled(label, text, _LABEL_WIDTH)


def _print_heading(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _print_model(inspection: Inspection) -> None:
    header = inspection.header
    click.secho(_text.clean(str(header.path)), bold=True)
    keys = inspection.scalars()
    arch = str(keys.get("general.architecture", "?"))
    kind = keys.get("general.type", "model")
    _print_line("name", header.name or "-")
    _print_line("architecture", arch + ("" if kind == "model" else f", {kind}") + f" (GGUF {header.version})")
    if header.all_tensors:
        _print_line("type", f"{inspection.qtype}, {header.bits_per_weight:.2f} bits per weight")
    files = f" in {len(inspection.paths)} files" if header.rest else ""
    _print_line("size", f"{_text.size(inspection.n_bytes)}{files}, {header.n_params:,} weights in "
                  f"{_text.count(len(header.all_tensors), 'tensor')}")  # fmt: skip
    parts = (("{}.block_count", "{:,} layers"), ("{}.embedding_length", "{:,} wide"),
             ("{}.attention.head_count", "{} heads"), ("{}.attention.head_count_kv", "{} of keys and values"),
             ("{}.feed_forward_length", "feed-forward {:,}"), ("{}.expert_count", "{} experts"))  # fmt: skip
    shape = [words.format(value) for key, words in parts if isinstance(value := keys.get(key.format(arch)), int)]
    if shape:
        _print_line("shape", ", ".join(shape))
    if inspection.n_ctx_train:
        scaling = keys.get(f"{arch}.rope.scaling.type")
        factor = keys.get(f"{arch}.rope.scaling.factor")
        base = keys.get(f"{arch}.rope.freq_base")
        rope = f", rope base {base:g}" if isinstance(base, (int, float)) else ""
        rope += f", {scaling} × {factor:g}" if scaling and isinstance(factor, (int, float)) else ""
        _print_line("context", f"trained for {_text.count(inspection.n_ctx_train, 'token')}{rope}")
    if header.metadata.length_of("tokenizer.ggml.tokens"):
        _print_line("template", "yes: answers messages" if inspection.has_template else "none: continues text")
    if inspection.problem:
        click.secho(f"  {'does not load':{_LABEL_WIDTH}}{_text.clean(inspection.problem)}", fg="red")


def _print_vocabulary(inspection: Inspection) -> None:
    facts = inspection.vocabulary()
    if not facts["n_tokens"]:
        return
    kinds = {"llama": "SentencePiece", "gpt2": "byte-level BPE"}
    _print_heading("Vocabulary")
    merges = f", {_text.count(facts['n_merges'], 'merge')}" if facts["n_merges"] else ""
    pre = f" ({facts['pre']})" if facts["pre"] and facts["kind"] != "llama" else ""
    _print_line("tokens", f"{facts['n_tokens']:,}, {kinds.get(facts['kind'], facts['kind'])}{pre}{merges}")
    special = [f"{name} {token['text']!s} ({token['id']})" for name, token in facts["special"].items()]
    if special:
        _print_line("special", ", ".join(special))
    if facts["add_bos"] is not None:
        _print_line("before a text", "BOS" if facts["add_bos"] else "nothing")


def _print_types(inspection: Inspection) -> None:
    shares = inspection.types()
    if not shares:
        return
    total = sum(share.n_bytes for share in shares)
    _print_heading("Tensors")
    rows = [
        (
            f"{share.name:{_LABEL_WIDTH}}",
            str(share.n_tensors),
            _text.size(share.n_bytes),
            f"{share.n_bytes / total:.1%}",
        )
        for share in shares
    ]
    print_table(None, rows, indent=2)


def _print_tensors(inspection: Inspection) -> None:
    rows = [
        (_text.clean(tensor.name), tensor.type.name, _text.size(tensor.nbytes), " × ".join(map(str, tensor.shape)))
        for tensor in inspection.header.all_tensors
    ]
    click.echo()
    print_table(None, rows, left=(0, 1, 3), keep_end=True, indent=2)


def _print_memory(inspection: Inspection, free: int) -> None:
    from llamalite.errors import OutOfMemoryError

    memory = list(inspection.memory_needed())
    if not memory:
        return
    parts = [(needed.weights_bytes, needed.repacked_bytes, needed.kv_bytes, needed.compute_bytes) for needed in memory]
    unit, numbers = _text.sums(parts)
    _print_heading(f"Memory to run it, in {unit} ({_text.size(free)} are free here)")
    rows = []
    for needed, row in zip(memory, numbers, strict=True):
        fits = needed.fits(free)
        verdict = click.style("fits" if fits else "too much", fg="green" if fits else "red")
        rows.append((f"{needed.n_ctx:,} tokens", *row, verdict))
    print_table(("CONTEXT", "WEIGHTS", "REPACKED", "CACHE", "BUFFERS", "TOTAL", ""), rows, left=(0, 6), indent=2)
    if any(needed.repacked_bytes for needed in memory):
        click.echo("  REPACKED: a copy of the 4-bit weights that llama.cpp makes for this processor.")
    try:
        click.echo(
            f"  llamalite run uses {inspection.planned_memory(free).n_ctx:,} tokens unless --ctx says otherwise."
        )
    except OutOfMemoryError as error:
        click.secho(f"  {error}", fg="red")


def _print_keys(inspection: Inspection) -> None:
    _print_heading("Keys")
    keys: dict[str, Any] = inspection.scalars()
    room = min(max((len(key) for key in keys), default=0), 42)
    for key, value in keys.items():
        if isinstance(value, dict):
            text = f"[{value['length']:,} × {value['type'][6:-1]}]"
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            text = _text.short(_text.clean(text), max(20, _text.width() - room - 5))
        click.echo(f"  {key:{room}}  {text}")
