"""``llamalite inspect``: what a GGUF file is, without loading it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llamalite.store.inspection import Inspection

_ROOM = 14  # columns of a label


@click.command("inspect")
@click.argument("model", metavar="MODEL")
@click.option("--tensors", "with_tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with every key and tensor.")
@click.pass_context
def command(ctx: click.Context, model: str, with_tensors: bool, as_json: bool) -> None:
    """Show what MODEL is and what it needs to run: shape, vocabulary, tensors by type, memory, keys.

    MODEL is any GGUF file (split models by their first file, other families, adapters), a name in the models folder,
    demo, the folder of a checkpoint, or org/name[:TYPE]. Only the header is read. The exit code is 1 for a model that
    llama.cpp would not load.

    \b
    Examples:
      llamalite inspect demo
      llamalite inspect TinyLlama-1.1B-Q4_K_M.gguf --tensors
      llamalite inspect demo --json | jq .metadata
    """
    from llamalite import hardware
    from llamalite.cli import _model
    from llamalite.store.inspection import inspect

    found, free = inspect(_model.obtain(ctx, model)), hardware.free_memory_bytes()
    if as_json:
        click.echo(json.dumps(found.to_json(free), indent=2, allow_nan=False, ensure_ascii=False))
    else:
        _summary(found)
        _vocabulary(found)
        _types(found)
        if with_tensors:
            _tensors(found)
        _memory(found, free)
        _keys(found)
    if found.problem and found.scalars().get("general.type", "model") == "model" and found.n_ctx_train:
        ctx.exit(1)


def _line(label: str, text: str) -> None:
    from llamalite.cli import _text

    _text.labelled(label, text, _ROOM)


def _heading(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _summary(found: Inspection) -> None:
    from llamalite.cli import _text

    header = found.header
    click.secho(_text.clean(str(header.path)), bold=True)
    keys = found.scalars()
    arch = str(keys.get("general.architecture", "?"))
    kind = keys.get("general.type", "model")
    _line("name", header.name or "-")
    _line("architecture", arch + ("" if kind == "model" else f", {kind}") + f" (GGUF {header.version})")
    if header.all_tensors:
        _line("type", f"{found.qtype}, {header.bits_per_weight:.2f} bits per weight")
    files = f" in {len(found.paths)} files" if header.rest else ""
    _line("size", f"{_text.size(found.n_bytes)}{files}, {header.n_params:,} weights in "
                  f"{_text.count(len(header.all_tensors), 'tensor')}")  # fmt: skip
    parts = (("{}.block_count", "{:,} layers"), ("{}.embedding_length", "{:,} wide"),
             ("{}.attention.head_count", "{} heads"), ("{}.attention.head_count_kv", "{} of keys and values"),
             ("{}.feed_forward_length", "feed-forward {:,}"), ("{}.expert_count", "{} experts"))  # fmt: skip
    shape = [form.format(value) for key, form in parts if isinstance(value := keys.get(key.format(arch)), int)]
    if shape:
        _line("shape", ", ".join(shape))
    if found.n_ctx_train:
        scaling = keys.get(f"{arch}.rope.scaling.type")
        factor = keys.get(f"{arch}.rope.scaling.factor")
        base = keys.get(f"{arch}.rope.freq_base")
        rope = f", rope base {base:g}" if isinstance(base, (int, float)) else ""
        rope += f", {scaling} × {factor:g}" if scaling and isinstance(factor, (int, float)) else ""
        _line("context", f"{_text.count(found.n_ctx_train, 'token')} trained for{rope}")
    if header.metadata.length_of("tokenizer.ggml.tokens"):
        _line("template", "yes: answers messages" if found.has_template else "none: continues text")
    if found.problem:
        click.secho(f"  {'does not load':{_ROOM}}{_text.clean(found.problem)}", fg="red")


def _vocabulary(found: Inspection) -> None:
    from llamalite.cli import _text

    facts = found.vocabulary()
    if not facts["n_tokens"]:
        return
    kinds = {"llama": "SentencePiece", "gpt2": "byte-level BPE"}
    _heading("Vocabulary")
    merges = f", {_text.count(facts['n_merges'], 'merge')}" if facts["n_merges"] else ""
    pre = f" ({facts['pre']})" if facts["pre"] and facts["kind"] != "llama" else ""
    _line("tokens", f"{facts['n_tokens']:,}, {kinds.get(facts['kind'], facts['kind'])}{pre}{merges}")
    shown = [f"{name} {one['text']!s} ({one['id']})" for name, one in facts["special"].items()]
    if shown:
        _line("special", ", ".join(shown))
    if facts["add_bos"] is not None:
        _line("before a text", "BOS" if facts["add_bos"] else "nothing")


def _types(found: Inspection) -> None:
    from llamalite.cli import _text

    shares = found.types()
    if shares:
        total = sum(one.n_bytes for one in shares)
        _heading("Tensors")
        for one in shares:
            _line(one.name, f"{one.n_tensors:>5}  {_text.size(one.n_bytes):>9}  {one.n_bytes / total:>6.1%}")


def _tensors(found: Inspection) -> None:
    from llamalite.cli import _text

    tensors = found.header.all_tensors
    room = max((len(one.name) for one in tensors), default=0)
    click.echo()
    for one in tensors:
        shape = " × ".join(map(str, one.shape))
        click.echo(f"  {_text.clean(one.name):{room}}  {one.type.name:7}  {_text.size(one.nbytes):>9}  {shape}")


def _memory(found: Inspection, free: int) -> None:
    from llamalite.cli import _text
    from llamalite.errors import OutOfMemoryError

    needs = list(found.needs())
    if not needs:
        return
    heads = {"CONTEXT": 13, "WEIGHTS": 8, "REPACKED": 9, "CACHE": 8, "BUFFERS": 8, "TOTAL": 8}
    unit, rows = _text.sums([(n.weights_bytes, n.repacked_bytes, n.kv_bytes, n.compute_bytes) for n in needs])
    _heading(f"Memory to run it, in {unit} ({_text.size(free)} are free here)")
    click.echo(
        "  " + " ".join(head.ljust(room) if head == "CONTEXT" else head.rjust(room) for head, room in heads.items())
    )
    for need, parts in zip(needs, rows, strict=True):
        cells = (f"{part:>{room}}" for part, room in zip(parts, list(heads.values())[1:], strict=True))
        click.echo(f"  {f'{need.n_ctx:,} tokens':{heads['CONTEXT']}} {' '.join(cells)}  ", nl=False)
        fits = need.total_bytes <= free
        click.secho("fits" if fits else "too much", fg="green" if fits else "red")
    if any(need.repacked_bytes for need in needs):
        click.echo("  REPACKED: a copy of the 4-bit weights that llama.cpp makes for this processor.")
    try:
        click.echo(f"  llamalite run takes {found.fitting(free).n_ctx:,} tokens unless --ctx says otherwise.")
    except OutOfMemoryError as error:
        click.secho(f"  {error}", fg="red")


def _keys(found: Inspection) -> None:
    from llamalite.cli import _text

    _heading("Keys")
    keys: dict[str, Any] = found.scalars()
    room = min(max((len(key) for key in keys), default=0), 42)
    for key, value in keys.items():
        if isinstance(value, dict):
            shown = f"[{value['length']:,} × {value['type'][6:-1]}]"
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            shown = _text.short(_text.clean(text), max(20, _text.width() - room - 5))
        click.echo(f"  {key:{room}}  {shown}")
