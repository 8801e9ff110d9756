"""The readers of untrusted files, each as a function of bytes, with seeds to mutate.

    for name, target in TARGETS.items():
        with target.open() as run:
            run(damaged(rng, target))          # returns, or raises one of ours: anything else is a fault

Shared by the short tests and by the long campaigns (random_fuzz.py, coverage_fuzz.py). The seeds are made here, by the
same small writers that the other tests use.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoint_files
import gguf_models
import numpy as np
import tokenizer_toys
import toy
import toy_checkpoint
from planned import plan_of

from llamalite.converters.checkpoints import torch_pickle
from llamalite.converters.checkpoints.interface import SourceFile
from llamalite.converters.checkpoints.safetensors import read_tensors
from llamalite.converters.vocabulary import read_vocabulary
from llamalite.errors import LlamaliteError
from llamalite.generation import session_file
from llamalite.generation.session_file import SavedSession
from llamalite.gguf_check import checked_header
from llamalite.templates import ChatTemplate

Reader = Callable[[bytes, Path], None]
Mutate = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Target:
    """A reader; `read` gets the bytes of one file and a folder of its own to put them into."""

    read: Reader
    seeds: Callable[[], list[bytes]]
    mutate: Mutate

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[bytes], str]]:
        """Yield a function that runs the reader on bytes and returns "read" or "refused: ..."."""
        with tempfile.TemporaryDirectory() as folder:

            def run(content: bytes) -> str:
                try:
                    self.read(content, Path(folder))
                except LlamaliteError as error:
                    return f"refused: {type(error).__name__}: {error}"
                return "read"

            yield run


# ── the readers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _gguf(content: bytes, folder: Path) -> None:
    path = folder / "model.gguf"
    path.write_bytes(content)
    checked_header(path)


def _tensors(name: str, reader: Callable[[SourceFile], Any]) -> Reader:
    def read(content: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(content)
        file = SourceFile(path)
        try:
            for tensor in reader(file).values():
                if tensor.n_bytes < 1 << 20 and tensor.n_rows:
                    tensor.read_rows(0, 1, np.empty(tensor.row_bytes, np.uint8))
        finally:
            file.close()

    return read


@functools.cache
def _vocabulary_config() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return tokenizer_toys.write_byte_level(Path(folder), tokenizer_toys.LLAMA3, n_merges=20)


def _tokenizer(name: str) -> Reader:
    def read(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        read_vocabulary(folder, _vocabulary_config() | {"vocab_size": 500})

    return read


def _template(content: bytes, folder: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    text = ChatTemplate(content.decode("utf-8", "replace")).render(
        messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", tools=[{"name": "f", "parameters": {}}]
    )
    assert len(text) < 64 << 20, f"a template wrote {len(text)} characters"


@functools.cache
def _toy_checkpoint() -> tempfile.TemporaryDirectory[str]:
    folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory()
    toy_checkpoint.write_checkpoint(Path(folder.name) / "toy", n_layer=1, n_embd=32, n_head=2, n_head_kv=1, n_ff=32)
    return folder


def _tokenizer_config(content: bytes, folder: Path) -> None:
    if not (folder / "tokenizer.json").exists():
        (folder / "tokenizer.json").write_bytes(_tokenizers()[0])
    (folder / "tokenizer_config.json").write_bytes(content)
    read_vocabulary(folder, _vocabulary_config())


SESSION_FACTS = {"model": "f00", "cache_type": "F16"}


def _session(content: bytes, folder: Path) -> None:
    path = folder / "session"
    path.write_bytes(content)
    saved = session_file.read(path, SESSION_FACTS)
    assert saved.facts.items() >= SESSION_FACTS.items()


def _config(content: bytes, folder: Path) -> None:
    if not (folder / "config.json").exists():
        shutil.copytree(Path(_toy_checkpoint().name) / "toy", folder, dirs_exist_ok=True)
    (folder / "config.json").write_bytes(content)
    plan_of(folder, "Q8_0")


# ── mutations ───────────────────────────────────────────────────────────────────────────────────────────────────────


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, write, delete, repeat and swap bytes."""
    raw = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not raw:
            break
        where, n = rng.randrange(len(raw)), rng.choice([1, 1, 2, 4, 8, 100])
        choice = rng.randrange(6)
        if choice == 0:
            raw[where] ^= 1 << rng.randrange(8)
        elif choice == 1:
            raw[where] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x5B, 0x7B])
        elif choice == 2:
            del raw[where : where + n]
        elif choice == 3:
            raw[where:where] = raw[where : where + n] * rng.choice([1, 2, 100])
        elif choice == 4:
            raw[where : where + n] = rng.randbytes(n)
        else:
            other = rng.randrange(len(raw))
            raw[where : where + n], raw[other : other + n] = raw[other : other + n], raw[where : where + n]
    return bytes(raw[: 1 << 20])


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 10**400, 0.5, -0.0, 1e308, "", "0", "\0",
    "x" * 5000, "\ud800", "<s>", [], {}, [[]], [None], {"": None}, [0, 1, 2], "F32", "BPE", {"type": "Split"},
    {"content": 1},
]  # fmt: skip
RAW = ["NaN", "Infinity", "1e999", "-1e999", "9" * 5000, "[" * 100000, '{"a":' * 20000, "1e-400", "0x10", '"\\ud800"']


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Change values, keys and structure of the JSON in `content`; now and then its text."""
    try:
        tree = json.loads(content)
    except ValueError:
        return mutate_bytes(rng, content)
    mark = "\x01raw\x01"
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        holder, key = _somewhere(rng, tree)
        if holder is None:
            continue
        choice = rng.randrange(8)
        if choice < 3:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif choice == 3:
            del holder[key]
        elif choice == 4 and isinstance(holder, dict):
            holder[rng.choice(["", "\0", "id", "content", "type", key + "x"])] = holder.pop(key)
        elif choice == 5:
            holder[key] = mark
        elif choice == 6 and isinstance(holder[key], int):
            holder[key] += rng.choice([-1, 1, 1 << 32, -(1 << 40)])
        else:
            other, place = _somewhere(rng, tree)
            if other is not None and key in (holder if isinstance(holder, dict) else range(len(holder))):
                other[place] = json.loads(json.dumps(holder[key]))
    text = json.dumps(tree).replace(json.dumps(mark), rng.choice(RAW))
    return mutate_bytes(rng, text.encode()) if rng.random() < 0.1 else text.encode()


def _somewhere(rng: random.Random, tree: Any) -> tuple[Any, Any]:
    """Return a random container of the tree and a key or index in it."""
    holder: Any = None
    key: Any = None
    while isinstance(tree, (dict, list)) and tree:
        if isinstance(tree, list):
            holder, key = tree, rng.randrange(len(tree))
        else:  # the large vocabularies last: what lies beside them is more telling
            keys = [entry for entry in tree if not isinstance(tree[entry], (dict, list)) or len(tree[entry]) < 50]
            holder, key = tree, rng.choice(keys if keys and rng.random() < 0.7 else list(tree))
        tree = holder[key]
        if rng.random() < 0.3:
            break
    return holder, key


def mutate_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Change the header as JSON and count its length anew, or change any bytes."""
    if rng.random() < 0.3 or len(content) < 8:
        return mutate_bytes(rng, content)
    n = int.from_bytes(content[:8], "little")
    header = mutate_json(rng, content[8 : 8 + n])
    return len(header).to_bytes(8, "little") + header + content[8 + n :]


PICKLE_WORDS = [
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"(", b"t", b"R", b".", b"0", b"2", b"]", b"}", b")",
    b"a", b"e", b"s", b"u", b"Q", b"b", b"N", b"\x81", b"\x93", b"\x94", b"h\0", b"q\0", b"K\1", b"j\xff\xff\xff\xff",
    b"I99999\n", b"r\xff\xff\xff\x7f", b"\x8a\xff", b"T\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8,
    b"\x80\xff", b"\x95" + b"\xff" * 8, b"J\0\0\0\x80", b"(" * 5000, b"]" * 5000, b"}a" * 5000,
]  # fmt: skip


def mutate_session(rng: random.Random, content: bytes) -> bytes:
    """Change the facts or any bytes; in half of the files the digest is corrected, as a forger would do."""
    start, body = 28, content[:-32]
    n = int.from_bytes(body[20:start], "little")
    if rng.random() < 0.5 and n < len(body):
        facts = mutate_json(rng, body[start : start + n])
        body = body[:20] + len(facts).to_bytes(8, "little") + facts + body[start + n :]
    else:
        body = mutate_bytes(rng, body)
    return body + (hashlib.sha256(body).digest() if rng.random() < 0.5 else content[-32:])


def mutate_pickle(rng: random.Random, content: bytes) -> bytes:
    """Put pickle's own instructions in, or change any bytes; the zip around keeps its shape now and then."""
    if rng.random() < 0.5:
        return mutate_bytes(rng, content)
    raw = bytearray(content)
    start = max(0, raw.find(b"\x80\x02"))
    for _ in range(rng.choice([1, 1, 2, 3])):
        where = min(len(raw) - 1, start + rng.randrange(600))
        word = rng.choice(PICKLE_WORDS)
        raw[where : where + (len(word) if rng.random() < 0.7 else 0)] = word
    return bytes(raw)


TEMPLATE_WORDS = """
    {{ }} {% %} {%- -%} {# #} for m in messages endfor if else endif set = == ( ) [ ] . | , : ~ + * ** % // -
    m['role'] m.content messages[0] loop.index loop.last loop.cycle('a') range(10) range(100000) range(10**9)
    namespace(a=1) ns.a trim tojson tojson(indent=2) length upper list join('x') map('upper') selectattr('role')
    batch(2) string 'x'*1000000 dict(a=1) raise_exception('no') strftime_now('%Y') macro f() endmacro f() caller()
    call endcall filter endfilter break continue generation endgeneration bos_token tools documents
    add_generation_prompt is defined none true 1 -1 1e9 'a' '' __class__ .__class__.__mro__[1].__subclasses__()
    .__init__.__globals__ self.__dict__ cycler(1,2).next() joiner() lipsum(n=100000) format(1) '%s'%1
    '{0.__class__}'.format(1) "{:>1000000000}".format(1) ''.join(range(9)) center(1000000000) indent(1000000000)
    wordwrap(1) ljust(10**9) replace('','x') int round sort groupby('role') unique random slice(10**8) import x
    include 'x' extends 'x' block b endblock with endwith autoescape raw endraw do attr('__class__')
    |attr('format') messages.append(1) m.update({}) m.clear() pprint xmlattr urlize truncate(1) '\\x00' 𝔘 \ud7ff
""".split()


def mutate_template(rng: random.Random, content: bytes) -> bytes:
    """Put words of Jinja in, take words out, and write whole new templates of them."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, content)
    if rng.random() < 0.4:
        parts = []
        for _ in range(rng.randrange(1, 8)):
            opening, closing = rng.choice([("{{ ", " }}"), ("{% ", " %}")])
            parts.append(opening + " ".join(rng.choice(TEMPLATE_WORDS) for _ in range(rng.randrange(1, 6))) + closing)
        return "".join(parts).encode()
    words = content.decode("utf-8", "replace").split(" ")
    for _ in range(rng.choice([1, 2, 3])):
        where = rng.randrange(len(words))
        choice = rng.randrange(3)
        if choice == 0:
            words[where] = rng.choice(TEMPLATE_WORDS)
        elif choice == 1:
            words.insert(where, rng.choice(TEMPLATE_WORDS))
        elif len(words) > 1:
            del words[where]
    return " ".join(words).encode("utf-8", "replace")


# ── seeds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _written(write: Callable[[Path], object], name: str) -> Callable[[], list[bytes]]:
    """Return the bytes of the file `name` that `write` leaves in a folder."""

    @functools.cache
    def seeds() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            return [(Path(folder) / name).read_bytes()]

    return seeds


def _some_tensors() -> dict[str, checkpoint_files.Weights]:
    shapes = {"model.embed_tokens.weight": (4, 8), "model.norm.weight": (8,), "lm_head.weight": (4, 8)}
    return {name: checkpoint_files.random_weights(shape) for name, shape in shapes.items()}


@functools.cache
def _pickles() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        return [
            checkpoint_files.save_torch(path, _some_tensors(), legacy=legacy).read_bytes() for legacy in (False, True)
        ]


@functools.cache
def _tokenizers() -> list[bytes]:
    trees = [
        tokenizer_toys.byte_level_json(tokenizer_toys.LLAMA3, n_merges=20),
        tokenizer_toys.byte_level_json(tokenizer_toys.SMOLLM, n_merges=20),
        tokenizer_toys.byte_fallback_json(20),
    ]
    return [json.dumps(tree).encode() for tree in trees]


@functools.cache
def _sessions() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session"
        session_file.write(path, SavedSession(SESSION_FACTS | {"extra": {}}, [1, 2, 3], np.arange(64, dtype=np.uint8)))
        return [path.read_bytes()]


@functools.cache
def _small_ggufs() -> list[bytes]:
    return [gguf_models.variant(random.Random(seed)).dump() for seed in range(4)]


TEMPLATES = [
    toy.CHATML,
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% elif m.role == 'tool' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n ~ m.content }}{% endfor %}"
    "{% macro f(x) %}{{ x | tojson(indent=2) }}{% endmacro %}{% if tools %}{{ f(tools) }}{% endif %}",
]

TOKENIZER_CONFIG = json.dumps({
    "bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None, "add_bos_token": True,
    "added_tokens_decoder": {"279": {"content": "<|x|>", "special": True, "normalized": False},
        "280": {"content": "y"}},
    "additional_special_tokens": ["<|x|>"], "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "clean_up_tokenization_spaces": True,
}).encode()  # fmt: skip

TARGETS: dict[str, Target] = {
    "gguf": Target(_gguf, _small_ggufs, lambda rng, _: gguf_models.damaged_bytes(rng.randrange(1 << 48))),
    "safetensors": Target(
        _tensors("model.safetensors", read_tensors),
        _written(lambda f: checkpoint_files.save_safetensors(f / "m", _some_tensors()), "m"),
        mutate_safetensors,
    ),
    "pickle": Target(_tensors("pytorch_model.bin", torch_pickle.read_tensors), _pickles, mutate_pickle),
    "tokenizer": Target(_tokenizer("tokenizer.json"), _tokenizers, mutate_json),
    "sentencepiece": Target(
        _tokenizer("tokenizer.model"),
        lambda: [tokenizer_toys.sentencepiece_model(tokenizer_toys.sentencepiece_pieces(20))],
        mutate_bytes,
    ),
    "tokenizer_config": Target(_tokenizer_config, lambda: [TOKENIZER_CONFIG], mutate_json),
    "config": Target(
        _config, lambda: [(Path(_toy_checkpoint().name) / "toy" / "config.json").read_bytes()], mutate_json
    ),
    "session": Target(_session, _sessions, mutate_session),
    "template": Target(_template, lambda: [text.encode() for text in TEMPLATES], mutate_template),
}


def damaged(rng: random.Random, target: Target) -> bytes:
    """Return one mutated file for `target`."""
    return target.mutate(rng, rng.choice(target.seeds()))
