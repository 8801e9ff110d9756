"""The entry point of ``llamalite`` and ``python -m llamalite``, which runs before anything else is imported.

Ctrl-C during the imports ends the process as quietly as later, with the same exit code.
"""

from __future__ import annotations

import gc
import os
import signal


def main() -> None:
    """Run the command line, and exit with its code."""
    # A background job ignores interrupts: then they stay ignored.
    handles_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handles_interrupts:
        signal.signal(signal.SIGINT, _interrupted)
    on_terminate = signal.getsignal(signal.SIGTERM)
    from llamalite import cli

    try:
        if handles_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except KeyboardInterrupt:  # outside the part that the command line itself guards
        _interrupted()
    finally:
        if handles_interrupts:
            signal.signal(signal.SIGINT, _interrupted)  # nothing is left to clean up
        signal.signal(signal.SIGTERM, on_terminate)
        gc.freeze()  # or Python searches all imported objects for garbage at exit: 0.3 s with Numba


def _interrupted(*_: object) -> None:
    # An exception would pass through half-imported modules, and some report it. Nothing is open yet.
    os.write(2, b"\n")
    os._exit(130)


if __name__ == "__main__":
    main()
