"""Does llama.cpp survive forged session files, with a correct digest and metadata, that are loaded and continued?

    python tests/fuzz/session_load.py --files 20000 --seed 0

A session's state goes into llama.cpp's KV cache. Its bytes are changed, mostly in the structure (counts, positions,
types and sizes), sometimes in the cache's content, and an answer is computed from each state that is accepted. Exit
code 1 if a child died or raised an exception that is not ours.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402 - found beside this file
import toy  # noqa: E402
from campaign import campaign, go_through, report  # noqa: E402

from llamalite.errors import LlamaliteError  # noqa: E402
from llamalite.generation import session_file  # noqa: E402
from llamalite.generation.session_file import SavedSession  # noqa: E402

KV_TYPES = ("F16", "F32", "Q8_0", "BF16")
WORDS = [0, 1, 2, 3, 4, 255, 256, 257, 511, 512, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
CONTENT = [b"\xff" * 64, b"\x00\x7c" * 32, b"\x7c\x00" * 32, b"\0\0\x80\x7f" * 16, bytes(64)]  # NaN, infinities, zeros


def structure_bytes(n_tokens: int) -> int:
    """Return how many bytes of a state come before its first row of the cache.

    Magic, sequence, streams and cells; position, count and sequence of each cell; V's form, layers, and the first
    layer's type and row size (``llama_kv_cache::state_write_meta`` and ``state_write_data``, llama-kv-cache.cpp).
    """
    return 4 * 4 + n_tokens * 3 * 4 + 2 * 4 + 4 + 8


def forge(rng: random.Random, held: SavedSession) -> SavedSession:
    """Return `held` with one to three changes of its state, or of its tokens."""
    raw, tokens = bytearray(held.state.tobytes()), list(held.tokens)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        head = min(structure_bytes(len(held.tokens)), len(raw))
        choice = rng.randrange(12)
        if choice < 5 and head >= 4:
            word = rng.choice([*WORDS, len(tokens), len(tokens) - 1, len(tokens) + 1, rng.randrange(1 << 32)])
            struct.pack_into("<I", raw, 4 * rng.randrange(head // 4), word % (1 << 32))
        elif choice < 7 and raw:
            raw[rng.randrange(len(raw))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif choice < 9 and len(raw) > 64:
            where = rng.randrange(len(raw) - 64)
            raw[where : where + 64] = rng.choice([*CONTENT, rng.randbytes(64)])
        elif choice == 9:
            del raw[rng.randrange(len(raw) + 1) :]
        elif choice == 10:
            raw += rng.randbytes(rng.randrange(1, 200))
        elif rng.random() < 0.5:
            del tokens[rng.randrange(len(tokens) + 1) :]
        else:
            tokens += [rng.choice([0, 5, -1, (1 << 31) - 1])] * rng.choice([1, 2, 300])
    return SavedSession(held.facts, tokens, np.frombuffer(bytes(raw), np.uint8))


def child(first: int, last: int, log: Path) -> None:
    """Go through the forged sessions number `first` to `last` - 1."""
    from llamalite.model import Model

    path, file = log.with_suffix(".gguf"), log.with_suffix(".session")
    toy.write_toy(path, n_head=2, n_head_kv=1)  # heads of 32: a Q8_0 cache wants whole blocks
    kv_type = KV_TYPES[first // 2000 % len(KV_TYPES)]
    with Model(path, n_ctx=256, n_threads=1, kv_type=kv_type) as model:
        model.generate("once upon a time", max_tokens=8, temperature=0)
        model.save_session(file)
        held = session_file.read(file, {})
        plain = model.generate("tell me", max_tokens=4, reproducible=True, temperature=0).tokens

        def one(number: int) -> str:
            rng = random.Random(number)
            session_file.write(file, forge(rng, held))
            began, said = time.process_time(), "answered from"
            try:
                model.load_session(file)
                model.generate([*held.tokens, 5, 6], max_tokens=4, temperature=rng.choice([0.0, 1.0]))
            except LlamaliteError as error:
                said = f"refused: {error}".partition(" (")[0]
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what we are looking for
                return f"FAULT: {type(error).__name__}: {error!s:.200}"
            if time.process_time() - began > 2:
                return f"FAULT: {time.process_time() - began:.1f} s"
            try:  # whatever was forged, the model keeps working
                again = model.generate("tell me", max_tokens=4, reproducible=True, temperature=0).tokens
            except Exception as error:  # noqa: BLE001
                return f"FAULT: afterwards {type(error).__name__}: {error!s:.200}"
            return said if again == plain else "FAULT: another answer afterwards"

        go_through(first, last, log, one)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(int(args.child[0]), int(args.child[1]), Path(args.child[2]))
        return 0
    start = time.monotonic()
    outcomes, faults = campaign([sys.executable, __file__], args.seed, args.seed + args.files)
    report("forged sessions, taken up", args.files, time.monotonic() - start, outcomes, faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
