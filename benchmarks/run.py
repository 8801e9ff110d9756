"""Measures everything that this project claims about speed and memory, resumably, and writes the tables.

    python benchmarks/run.py --checkpoint FOLDER --llama-cpp FOLDER --work FOLDER [--only conversion,generation]
    python benchmarks/run.py --quick --llama-cpp FOLDER --work FOLDER          # a small model: takes a few minutes
    python benchmarks/run.py --tables benchmarks/README.md README.md --work FOLDER

Every figure is a ratio to a peer that takes turns with llamalite: llama.cpp's own tools, llama-cpp-python's `Llama`,
transformers on the CPU. `side_by_side.py` says how to build the tools. Finished groups of figures are kept in
WORK/figures.json, with the machine's description, and not measured again without `--again`, so that a run can be
resumed. `--tables` writes them between the markers ``<!-- figures: GROUP -->`` and ``<!-- end -->`` of Markdown files;
the group "summary" is the README's selection.

The models are made from the checkpoint, in WORK. The checkpoint is any LLaMA in Hugging Face's form that llama.cpp's
converter accepts; the values of its weights do not matter.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import beside_transformers
import conversion
import generation
import likelihoods
import memory
import perplexity
import serving
import serving_in_process
import several_types
import side_by_side as bench
import speculation
import startup
import where_time_goes
from side_by_side import ROOT, Figure, Peers

DEMO = ROOT / "models" / "demo"
TEXT = DEMO / "heldout.txt"


@dataclass(frozen=True)
class Bench:
    """The groups' settings: checkpoint, peers, folder, threads, and the number of pairs."""

    checkpoint: Path
    peers: Peers
    work: Path
    n_threads: int
    pairs: int | None
    quick: bool

    def n_pairs(self, usual: int) -> int:
        return self.pairs or (1 if self.quick else usual)

    def model(self, qtype: str, checkpoint: Path | None = None) -> Path:
        """Return the checkpoint's GGUF file of this type, which is made once."""
        source = checkpoint or self.checkpoint
        path = self.work / f"{source.name}-{qtype}.gguf"
        if not path.exists():
            bench.process(bench.llamalite("-q", "convert", source, "-t", qtype, "-o", path))
        return path


def measure_conversion(on: Bench) -> Iterator[Figure]:
    types = ["Q4_K_M", "Q8_0"] if on.quick else ["Q4_K_M", "Q8_0", "Q4_0"]
    yield from conversion.measure(on.checkpoint, on.peers, types, on.n_pairs(3), on.work)
    if not on.quick:
        yield from conversion.measure(on.checkpoint, on.peers, ["BF16"], on.n_pairs(3), on.work)


def measure_kernels(on: Bench) -> Iterator[Figure]:
    import kernels

    types = ["Q4_K", "Q8_0"] if on.quick else kernels.TYPES
    yield from kernels.measure(types, "BF16", 32 if on.quick else 128, on.n_pairs(3) + 2)


def measure_memory(on: Bench) -> Iterator[Figure]:
    shapes = ["1.1B"] if on.quick else ["1.1B", "7B"]
    yield from memory.measure("Q8_0" if on.quick else "Q4_K_M", shapes, ("safetensors",), on.work)


def measure_generation(on: Bench) -> Iterator[Figure]:
    model, n_threads = on.model("Q4_K_M"), on.n_threads
    only = ("tg", "pp", "rss")
    yield from generation.measure(model, on.peers, on.n_pairs(3), n_threads=n_threads, only=only)
    for new, pairs in ((8, 1),) if on.quick else ((32, 2), (128, 1)):  # minutes each
        yield from generation.measure_batch(model, n_threads, on.n_pairs(pairs), [new])


def measure_serving(on: Bench) -> Iterator[Figure]:
    sizes = serving_in_process.Sizes.quick() if on.quick else serving_in_process.Sizes()
    setting = serving_in_process.Setting(
        on.model("Q4_K_M"), on.peers, on.n_pairs(2), n_threads=on.n_threads, sizes=sizes
    )
    yield from serving_in_process.measure(setting, ("many", "long", "chats"))


def measure_http(on: Bench) -> Iterator[Figure]:
    sizes = serving.Sizes.quick() if on.quick else serving.Sizes()
    setting = serving.Setting(on.model("Q4_K_M"), on.peers, on.n_pairs(3), n_threads=on.n_threads, sizes=sizes)
    yield from serving.measure(setting)


def measure_perplexity(on: Bench) -> Iterator[Figure]:
    chunks = 2 if on.quick else 4
    yield from perplexity.measure(
        on.model("Q4_K_M"), TEXT, on.peers, on.n_pairs(2), n_threads=on.n_threads, chunks=chunks
    )


def measure_compare(on: Bench) -> Iterator[Figure]:
    """Yield perplexity and divergence of Q4_K_M against Q8_0: in lockstep, and in two runs with logits on disk."""
    chunks = 2 if on.quick else 4
    reference, candidate, logits = on.model("Q8_0"), on.model("Q4_K_M"), on.work / "logits.kld"
    shared = ["-f", TEXT, "--chunks", chunks]

    def ours() -> float:
        return bench.process(
            bench.llamalite("compare", reference, candidate, *shared, "--threads", on.n_threads, "--json")
        ).seconds

    def theirs() -> float:
        common = [*shared, "-t", on.n_threads, "-c", "512", "--kl-divergence-base", logits]
        tool = on.peers.program("llama-perplexity")
        first = bench.process([tool, "-m", reference, *common])
        second = bench.process([tool, "-m", candidate, "--kl-divergence", *common])
        logits.unlink()
        return first.seconds + second.seconds

    times = bench.in_turns(on.n_pairs(1), ours, theirs, "compare")
    note = "llamalite measures the speed of both, too"
    yield Figure("compare two files", "llama-perplexity, both runs", "s", *times, None, note)


def measure_startup(on: Bench) -> Iterator[Figure]:
    """Yield the CPU time of the help text, and the time from the start of a process to its first token."""
    pass_ = [sys.executable, "-c", "pass"]
    times = bench.in_turns(
        5 * on.n_pairs(3),
        lambda: bench.process(bench.llamalite("--help")).cpu_s,  # to the microsecond, unlike os.times
        lambda: bench.process(pass_).cpu_s,
    )
    yield Figure("llamalite --help", "python -c pass", "s of CPU", *times)
    yield startup.first_token(on.model("Q4_K_M"), on.peers, on.n_pairs(5), on.n_threads)


def measure_types(on: Bench) -> Iterator[Figure]:
    types = several_types.TYPES[:2] if on.quick else several_types.TYPES
    yield from several_types.measure(on.checkpoint, types, on.n_pairs(3), on.work)


def measure_verify(on: Bench) -> Iterator[Figure]:
    """Yield all checks of a file against its checkpoint, compared with the minute and 2 GiB promised for 1.1B."""
    command = bench.llamalite("-q", "verify", on.model("Q4_K_M"), "--against", on.checkpoint, "--threads", on.n_threads)
    ran = bench.process(command)
    yield Figure("verify a file against its checkpoint", "the promised minute", "s", [ran.seconds], [60.0], 1.0)
    yield Figure("verify, peak memory", "the promised 2 GiB", "MiB", [ran.peak_mib], [2048.0], 1.0)


def measure_likelihoods(on: Bench) -> Iterator[Figure]:
    n_questions = 2 if on.quick else 4
    yield from likelihoods.measure(on.model("Q4_K_M"), on.n_threads, on.n_pairs(2), n_questions)


def measure_speculation(on: Bench) -> Iterator[Figure]:
    text = TEXT.read_text(encoding="utf-8")
    yield from speculation.measure_prescribed(
        on.model("Q4_K_M"), text, on.n_pairs(3), n_threads=on.n_threads, n_tokens=60 if on.quick else 160
    )


def measure_demo(on: Bench) -> Iterator[Figure]:
    """Yield the demo model's own answers with lookup."""
    asked, per_kind = DEMO / "heldout.jsonl", 3 if on.quick else 20
    yield from speculation.measure_asked(
        on.model("Q8_0", DEMO), asked, on.n_pairs(3), n_threads=on.n_threads, per_kind=per_kind
    )


def measure_transformers(on: Bench) -> Iterator[Figure]:
    yield from beside_transformers.measure(
        on.checkpoint, on.model("Q4_K_M"), on.n_pairs(2), n_threads=on.n_threads, n_prompt=128, n_new=16
    )


GROUPS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "conversion": measure_conversion,
    "speculation": measure_speculation,
    "generation": measure_generation,
    "serving": measure_serving,
    "http": measure_http,
    "perplexity": measure_perplexity,
    "startup": measure_startup,
    "types": measure_types,
    "demo": measure_demo,
    "compare": measure_compare,
    "verify": measure_verify,
    "likelihoods": measure_likelihoods,
    "transformers": measure_transformers,
    "kernels": measure_kernels,
    "memory": measure_memory,
}
SUMMARY = ("conversion", "generation", "speculation", "perplexity", "transformers")


def small_checkpoint(work: Path) -> Path:
    """Return the checkpoint of 70 million weights for `--quick`, which is written once."""
    folder = work / "small"
    if not (folder / "config.json").exists():
        sys.path.insert(0, str(ROOT / "tests"))
        import toy_checkpoint

        toy_checkpoint.write_checkpoint(folder, n_layer=6, n_embd=1024, n_head=16, n_head_kv=4, n_ff=2816)
    return folder


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return document


def as_figures(rows: list[dict[str, Any]]) -> list[Figure]:
    return [Figure(**row) for row in rows]


def write_tables(document: dict[str, Any], files: list[Path]) -> None:
    """Write the tables of all measured groups, and the machine, between the markers of `files`."""
    machine = document["machine"]
    groups = {name: as_figures(rows) for name, rows in document.get("groups", {}).items()}
    texts = {name: bench.table(figures) for name, figures in groups.items()}
    texts["summary"] = bench.short_table(
        figure for name in SUMMARY for figure in groups.get(name, []) if figure.unit != "MiB"
    )
    if "profile" in document:
        texts["profile"] = document["profile"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    texts["machine"] = (
        f"Measured on {machine['date']}, commit {machine['commit']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB; {machine['system']}, Python {machine['python']}; {versions}."
    )
    for path in files:
        text = path.read_text(encoding="utf-8")
        for name, table in texts.items():
            pattern = rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.DOTALL)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


def main() -> None:
    parser = bench.arguments(__doc__, pairs=0)
    next(action for action in parser._actions if action.dest == "llama_cpp").required = False
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="GGUF files and figures.json")
    parser.add_argument("--only", metavar="GROUP,...", help=f"of {', '.join(GROUPS)}, profile")
    parser.add_argument("--again", action="store_true", help="measure finished groups again")
    parser.add_argument("--quick", action="store_true", help="a small model and one pair")
    parser.add_argument("--tables", type=Path, nargs="+", metavar="FILE", help="only write the tables into FILEs")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = options.work / ("figures-quick.json" if options.quick else "figures.json")
    document = load(results)
    if options.tables:
        write_tables(document, options.tables)
        return
    if options.llama_cpp is None or (options.checkpoint is None and not options.quick):
        parser.error("give --llama-cpp, and --checkpoint or --quick")
    names = options.only.split(",") if options.only else [*GROUPS, "profile"]
    if unknown := set(names) - {*GROUPS, "profile"}:
        parser.error(f"unknown group {', '.join(unknown)}")
    on = Bench(
        options.checkpoint or small_checkpoint(options.work),
        Peers.given(options),
        options.work,
        bench.threads(options),
        options.pairs or None,
        options.quick,
    )
    document["machine"] = bench.machine()
    groups = document.setdefault("groups", {})
    for name in names:
        if not options.again and (name in groups or (name == "profile" and name in document)):
            print(f"{name}: already measured (--again measures it again)")
            continue
        began = time.perf_counter()
        print(f"\n== {name}", flush=True)
        if name == "profile":
            document["profile"] = where_time_goes.table(on.checkpoint, on.model("Q4_K_M"), TEXT, on.n_threads)
            print(document["profile"])
        else:
            rows = []
            for figure in GROUPS[name](on):
                print(figure, flush=True)
                rows.append(asdict(figure))
            groups[name] = rows
        bench.write_json(results, document)
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
