"""Coverage-guided fuzzing of one reader with atheris (libFuzzer): inputs that reach new code are kept and mutated on.

    pip install atheris                                        # Linux and macOS, Python 3.11 to 3.13
    python tests/fuzz/coverage_fuzz.py gguf --seconds 600
    python tests/fuzz/coverage_fuzz.py template --runs 20000 --corpus /tmp/corpus

An input that raises anything but our own errors, takes more than ten seconds on the clock or more than 1 GiB, ends the
run with its traceback and is written to ``crash-...`` in the corpus folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="stop after so many inputs; -1: by the clock alone")
    parser.add_argument("--corpus", type=Path, help="a folder to keep what was found in, for the next run")
    args = parser.parse_args()

    import atheris

    with atheris.instrument_imports(include=["llamalite"]):
        from readers import TARGETS
    import gguf_models

    if args.target not in TARGETS:
        parser.error(f"unknown target {args.target!r}; known are {', '.join(TARGETS)}")
    target = TARGETS[args.target]
    seeds = [gguf_models.tiny().dump()] if args.target == "gguf" else target.seeds()
    with tempfile.TemporaryDirectory() as folder, target.open() as run:
        corpus = args.corpus or Path(folder)
        corpus.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(seeds):
            (corpus / f"seed-{i}").write_bytes(seed)
        flags = [
            f"-max_total_time={args.seconds}",
            f"-runs={args.runs}",
            f"-max_len={max(4096, 2 * max(map(len, seeds)))}",
            "-timeout=10",
            "-rss_limit_mb=1024",
            "-print_final_stats=1",
            f"-artifact_prefix={corpus}/",
        ]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], lambda content: _ignore(run(content)))
        atheris.Fuzz()  # does not return: libFuzzer ends the process with its own exit code


def _ignore(_said: str) -> None:
    """Libfuzzer takes any return value but None for a mistake."""


if __name__ == "__main__":
    main()
