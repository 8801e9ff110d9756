"""Feed mutated files to every reader of untrusted files, and count those neither read nor refused with our errors.

    python tests/fuzz/random_fuzz.py --files 50000                    # of each target
    python tests/fuzz/random_fuzz.py --files 1000 template pickle

A fault is an exception that is not ours, a dead process, more than two seconds for one file, or more than 1 GiB of
memory. Exit code 1 if there was one; its file can be made again from its number.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from campaign import campaign, go_through, report  # noqa: E402 - found beside this file
from readers import TARGETS, damaged  # noqa: E402

MOST_S = 2.0
MOST_BYTES = 1 << 30


def child(name: str, first: int, last: int, log: Path) -> None:
    """Go through the files number `first` to `last` - 1 of a target."""
    target = TARGETS[name]
    with target.open() as run:

        def one(number: int) -> str:
            content = damaged(random.Random(number), target)
            start = time.process_time()
            try:
                said = run(content)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is what we are looking for
                where = traceback.extract_tb(error.__traceback__)[-1]
                return f"FAULT: {type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error!s:.200}"
            spent = time.process_time() - start
            if spent > MOST_S:
                return f"FAULT: {spent:.1f} s for {content[:200]!r}"
            if _peak_bytes() > MOST_BYTES:
                return f"FAULT: memory has reached {_peak_bytes() >> 20} MiB"
            return said if said == "read" else ":".join(said.split(":")[1:2]).strip()

        go_through(first, last, log, one)


def _peak_bytes() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all when none is named")
    parser.add_argument("--files", type=int, default=50000, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.targets[0], int(args.child[0]), int(args.child[1]), Path(args.child[2]))
        return 0
    n_faults = 0
    for name in args.targets or TARGETS:
        start = time.monotonic()
        outcomes, faults = campaign([sys.executable, __file__, name], args.seed, args.seed + args.files)
        report(name, args.files, time.monotonic() - start, outcomes, faults)
        n_faults += len(faults)
    return 1 if n_faults else 0


if __name__ == "__main__":
    sys.exit(main())
