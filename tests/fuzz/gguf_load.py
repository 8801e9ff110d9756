"""Let llama.cpp load and run mutated files that pass the check, and count those that end the process.

    python tests/fuzz/gguf_load.py --files 20000 --seed 0
    python tests/fuzz/gguf_load.py --files 20000 --admitted     # each of the 20,000 passes the check, and is loaded

Each file is made from its number, checked, and, if it passes, loaded to tokenize, detokenize and decode, all in a child
process. Exit code 1 if a child died: each such file is a gap in `llamalite.gguf_check`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from campaign import campaign, go_through, report  # noqa: E402 - found beside this file
from gguf_models import damaged_bytes  # noqa: E402

TEXTS = [b"Once upon a time", "é 漢字 😀\n\t".encode(), b"<s></s><|eot_id|> [INST]", b"a" * 300, b"\x00\x01", b""]


def exercise(path: Path) -> str:
    """Load `path`, use its vocabulary, decode a few tokens; return what llama.cpp said to it."""
    import numpy as np

    from llamalite.native.library import collect_errors, llama

    lib = llama()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    with collect_errors() as errors:
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        return f"refused by llama.cpp: {errors[0] if errors else 'without a word'}"
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


TRIES = 1000


def child(first: int, last: int, log: Path, other: bool, unchecked: bool, admitted: bool) -> None:
    """Go through the files number `first` to `last` - 1; `admitted`: make each anew until it passes the check."""
    from llamalite.errors import GGUFError
    from llamalite.gguf_check import checked_header

    path = log.with_suffix(".gguf")

    def passes(number: int) -> bool:
        path.write_bytes(damaged_bytes(number, other_architectures=other))
        try:
            checked_header(path)
        except GGUFError:
            return False
        return True

    def one(number: int) -> str:
        start = time.process_time()
        passed = passes(number)
        if time.process_time() - start > 2:
            return f"FAULT: {time.process_time() - start:.1f} s in the check"
        return exercise(path) if passed or unchecked else "refused by the check"

    def one_admitted(number: int) -> str:
        mutated = (number * TRIES + i for i in range(TRIES) if i % 50)  # every fiftieth file is as it should be
        tried = next(i for i, seed in enumerate(mutated) if passes(seed))
        return f"{exercise(path)}: {tried} refused by the check before it"

    go_through(first, last, log, one_admitted if admitted else one)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first file")
    parser.add_argument("--other-architectures", action="store_true", help="call the models something else than llama")
    parser.add_argument("--unchecked", action="store_true", help="load what the check refuses too: what would happen?")
    parser.add_argument("--admitted", action="store_true", help="make each file anew until it passes the check")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        first, last, log = int(args.child[0]), int(args.child[1]), Path(args.child[2])
        child(first, last, log, args.other_architectures, args.unchecked, args.admitted)
        return 0
    start = time.monotonic()
    options = ["--other-architectures"] * args.other_architectures + ["--unchecked"] * args.unchecked
    options += ["--admitted"] * args.admitted
    outcomes, faults = campaign([sys.executable, __file__, *options], args.seed, args.seed + args.files)
    report("gguf, through a real load", args.files, time.monotonic() - start, outcomes, faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
