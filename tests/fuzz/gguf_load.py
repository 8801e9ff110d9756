"""Let llama.cpp load and run mutated files that pass the check, and count what it does not survive.

    python tests/fuzz/gguf_load.py --files 20000 --seed 0

A child process makes file after file from its number, checks it, and if it passes loads it, tokenizes, detokenizes and
decodes with it. When the child dies or hangs, the number of the file is kept and another child goes on behind it. Exit
code 1 if there was any such file: each is a gap in `llamalite.gguf_check`.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

TEXTS = [b"Once upon a time", "é 漢字 😀\n\t".encode(), b"<s></s><|eot_id|> [INST]", b"a" * 300, b"\x00\x01", b""]
HANG_S = 20.0
QUIET = {"GGML_NO_BACKTRACE": "1"}  # else ggml starts a debugger on the process that it aborts


def exercise(path: Path) -> str:
    """Load `path`, use its vocabulary, decode a few tokens; return what llama.cpp said to it."""
    import numpy as np

    from llamalite.native.library import errors_heard, llama

    lib = llama()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    with errors_heard() as heard:
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        return f"refused: {heard[0] if heard else 'without a word'}"
    vocab = lib.llama_model_get_vocab(model)
    n_vocab: int = lib.llama_vocab_n_tokens(vocab)
    if lib.llama_vocab_type(vocab) != 0:
        _use_vocabulary(lib, vocab, n_vocab)
    context_params = lib.llama_context_default_params()
    context_params.n_ctx, context_params.n_batch, context_params.n_ubatch = 64, 16, 16
    context_params.n_threads = context_params.n_threads_batch = 1
    context = lib.llama_init_from_model(model, context_params)
    said = "no context"
    if context:
        said = "no logits"
        ids = np.arange(min(8, n_vocab), dtype=np.int32)
        batch = lib.llama_batch_get_one(ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), len(ids))
        if len(ids) and lib.llama_decode(context, batch) == 0:
            logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocab,))
            said = "ran" if np.isfinite(logits).all() else "ran, logits not finite"
        lib.llama_free(context)
    lib.llama_model_free(model)
    return said


def _use_vocabulary(lib: Any, vocab: Any, n_vocab: int) -> None:
    buffer = ctypes.create_string_buffer(8192)
    for token in range(n_vocab):
        lib.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, bool(token % 2))
        lib.llama_vocab_is_eog(vocab, token)
        lib.llama_vocab_get_score(vocab, token)
    # As NativeModel.tokenize does: no BOS or EOS where the vocabulary has none.
    special = not (
        (lib.llama_vocab_get_add_bos(vocab) and lib.llama_vocab_bos(vocab) < 0)
        or (lib.llama_vocab_get_add_eos(vocab) and lib.llama_vocab_eos(vocab) < 0)
    )
    ids = (ctypes.c_int32 * 4096)()
    for i, text in enumerate(TEXTS):
        n = lib.llama_tokenize(vocab, text, len(text), ids, len(ids), special, bool(i % 2))
        if n > 0:
            lib.llama_detokenize(vocab, ids, n, buffer, len(buffer), False, bool(i % 2))


def child(first: int, last: int, other: bool, unchecked: bool, log: Path) -> None:
    """Go through the files number `first` to `last` - 1; a line of `log` for each says how it went."""
    import resource

    from gguf_models import damaged_bytes

    from llamalite.errors import GGUFError
    from llamalite.gguf_check import check

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = log.with_suffix(f".{os.getpid()}.gguf")
    with log.open("a") as lines:
        for number in range(first, last):
            path.write_bytes(damaged_bytes(number, other_architectures=other))
            lines.write(f"{number} ")
            lines.flush()
            start = time.process_time()
            try:
                check(path)
                said = None
            except GGUFError:
                said = None if unchecked else "caught"
            slow = time.process_time() - start
            if slow > 2:
                said = f"slow: {slow:.1f} s in the check"
            lines.write((said or exercise(path)) + "\n")
            lines.flush()
    path.unlink()


def run(files: int, seed: int, options: list[str]) -> tuple[collections.Counter[str], list[tuple[int, str]]]:
    """Return how often each outcome came about, and the files that llama.cpp did not survive."""
    outcomes: collections.Counter[str] = collections.Counter()
    gaps: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        at, end = seed, seed + files
        while at < end:
            command = [sys.executable, __file__, "--child", str(at), str(min(end, at + 2000)), str(log), *options]
            errors = Path(folder) / "errors"
            with errors.open("wb") as sink:
                process = subprocess.Popen(command, stdout=sink, stderr=sink, env=os.environ | QUIET)
                code = _wait(process, log)
            lines = log.read_text().splitlines()
            log.write_text("")
            for line in lines:
                number, _, said = line.partition(" ")
                at = int(number) + 1
                if said:
                    outcomes[said.partition(":")[0]] += 1
                    if said.startswith("slow"):
                        gaps.append((int(number), said))
            if code:
                told = errors.read_bytes().decode("utf-8", "replace").strip().splitlines()
                how = signal.Signals(-code).name if code < 0 else f"exit {code}"
                gaps.append((at - 1, f"{how} {re.sub('/.*/llama.cpp/', '', ' | '.join(told[-3:]))[:300]}"))
                if not lines:
                    raise RuntimeError(f"the child fails before its first file: {how} {told[-5:]}")
                sys.stderr.write(f"GAP {gaps[-1]}\n")
    return outcomes, gaps


def _wait(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the child's exit code; a child that writes nothing for `HANG_S` is killed."""
    size, since = -1, time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        now = log.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > HANG_S:
            process.kill()
    return process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first file")
    parser.add_argument("--other-architectures", action="store_true", help="call the models something else than llama")
    parser.add_argument("--unchecked", action="store_true", help="load what the check refuses too: what would happen?")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(int(args.child[0]), int(args.child[1]), args.other_architectures, args.unchecked, Path(args.child[2]))
        return 0
    start = time.monotonic()
    options = ["--other-architectures"] * args.other_architectures + ["--unchecked"] * args.unchecked
    outcomes, gaps = run(args.files, args.seed, options)
    sys.stdout.write(f"{args.files} files in {time.monotonic() - start:.0f} s\n")
    for said, n in outcomes.most_common():
        sys.stdout.write(f"{n:8}  {said}\n")
    sys.stdout.write(f"{len(gaps):8}  not survived\n")
    for number, told in gaps[:200]:
        sys.stdout.write(f"  file {number}: {told}\n")
    return 1 if gaps else 0


if __name__ == "__main__":
    sys.exit(main())
