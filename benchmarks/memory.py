"""Peak memory and disk of conversions of 1.1B and 7B shapes, from safetensors and from torch's pickles.

    python benchmarks/memory.py [-t Q4_K_M] [--shape 1.1B] [--shape 7B] [--scratch FOLDER]

The checkpoints are sparse files of zeros with real headers: they take almost no disk and no time to make, and reading
them costs as much as reading real ones. Peak memory is VmHWM of the converting process (Linux); disk is the largest sum
of all files in the output's folder while it runs. A ratio near 1 between the shapes shows that memory does not grow
with the model.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import side_by_side as bench
from side_by_side import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

SHAPES = {"1.1B": (2048, 5632, 22, 32, 4), "7B": (4096, 11008, 32, 32, 32)}
FORMS = ("safetensors", "bin")
N_VOCAB = 32000
SHARD_BYTES = 1900 << 20


def tensors(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    kv = hidden // heads * kv_heads
    yield "model.embed_tokens.weight", (N_VOCAB, hidden)
    for i in range(layers):
        layer = f"model.layers.{i}."
        yield layer + "self_attn.q_proj.weight", (hidden, hidden)
        yield layer + "self_attn.k_proj.weight", (kv, hidden)
        yield layer + "self_attn.v_proj.weight", (kv, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, hidden)
        yield layer + "mlp.gate_proj.weight", (ffn, hidden)
        yield layer + "mlp.up_proj.weight", (ffn, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, ffn)
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (N_VOCAB, hidden)


def n_bytes(shape: tuple[int, ...]) -> int:
    return 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)


def write_checkpoint(folder: Path, size: str, form: str) -> None:
    """Write a BF16 checkpoint of zeros in the `form` "safetensors" or "bin", in shards of 1.9 GiB with an index."""
    import toy_checkpoint

    hidden, ffn, layers, heads, kv_heads = SHAPES[size]
    folder.mkdir()
    toy_checkpoint.write_sentencepiece(folder)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": N_VOCAB, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    for name, shape in tensors(*SHAPES[size]):
        if sum(n_bytes(earlier) for _, earlier in shards[-1]) + n_bytes(shape) > SHARD_BYTES:
            shards.append([])
        shards[-1].append((name, shape))
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        path = folder / f"{stem}-{i:05d}-of-{len(shards):05d}.{suffix}"
        (write_safetensors if form == "safetensors" else write_pickle)(path, shard)
        weight_map |= dict.fromkeys((name for name, _ in shard), path.name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_safetensors(path: Path, shard: list[tuple[str, tuple[int, ...]]]) -> None:
    header, at = {}, 0
    for name, shape in shard:
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n_bytes(shape)]}
        at += n_bytes(shape)
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + at)


def write_pickle(path: Path, shard: list[tuple[str, tuple[int, ...]]]) -> None:
    import checkpoint_files as files

    state = {
        name: files.tensor(files.storage(str(i), "BF16", n_bytes(shape) // 2), shape)
        for i, (name, shape) in enumerate(shard)
    }
    zeros = bytes(1 << 24)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", files.pickled(state))
        archive.writestr("archive/byteorder", "little")
        for i, (_, shape) in enumerate(shard):
            with archive.open(f"archive/data/{i}", "w", force_zip64=True) as member:
                left = n_bytes(shape)
                while left:
                    left -= member.write(zeros[:left])
        archive.writestr("archive/version", "3\n")


CONVERT = """
import re, sys
from llamalite.converters import convert
convert(sys.argv[1], sys.argv[2], qtype=sys.argv[3], allow_token_mismatch=False)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def convert(folder: Path, qtype: str) -> tuple[float, int, int]:
    """Convert, and return peak MiB, the largest number of bytes on disk meanwhile, and the bytes of the result."""
    out = folder.parent / "out"
    out.mkdir()
    target = out / "model.gguf"
    process = subprocess.Popen(
        [sys.executable, "-c", CONVERT, folder, target, qtype], stdout=subprocess.PIPE, text=True
    )
    largest = 0
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # renamed at this moment
            largest = max(largest, sum(path.stat().st_size for path in out.iterdir()))
        time.sleep(0.05)
    assert process.stdout is not None
    printed = re.search(r"\d+", process.stdout.read())
    if process.returncode or printed is None:
        sys.exit(f"the conversion of {folder} failed")
    result = target.stat().st_size
    shutil.rmtree(out)
    return int(printed[0]) / 1024, max(largest, result), result


def measure(qtype: str, shapes: Sequence[str], forms: Sequence[str], scratch: Path | None = None) -> Iterator[Figure]:
    """Yield, for each form, the peak of each shape against that of the first one."""
    for form in forms:
        first: float | None = None
        for size in shapes:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                write_checkpoint(Path(folder) / "model", size, form)
                peak, largest, result = convert(Path(folder) / "model", qtype)
            first = first or peak
            note = f"at most {largest / result:.3f} of the result's {result / 1e9:.2f} GB on disk on the way"
            yield Figure(f"{qtype} of {size} ({form}), peak memory", shapes[0], "MiB", [peak], [first], None, note)


def main() -> None:
    parser = bench.arguments(__doc__, pairs=1, peers=False)
    parser.add_argument("-t", "--type", default="Q4_K_M")
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--form", action="append", choices=FORMS)
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    figures = measure(options.type, options.shape or list(SHAPES), options.form or FORMS, options.scratch)
    bench.report(figures, options.json)


if __name__ == "__main__":
    main()
