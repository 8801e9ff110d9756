"""The command ``llamalite``, and ``python -m llamalite``: what runs before anything else is imported.

Ctrl-C while modules are still being imported ends the process as quietly as it does later, with the same code.
"""

from __future__ import annotations

import gc
import os
import signal


def main() -> None:
    """Run the command line, and exit with its code."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else ignored: a job in the background
    if usual:
        signal.signal(signal.SIGINT, _interrupted)
    on_terminate = signal.getsignal(signal.SIGTERM)
    from llamalite import cli

    try:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except KeyboardInterrupt:  # before or after what the command line itself guards
        _interrupted()
    finally:
        if usual:
            signal.signal(signal.SIGINT, _interrupted)  # nothing is left to do but to go
        signal.signal(signal.SIGTERM, on_terminate)
        gc.freeze()  # else Python looks through all that was imported for garbage, on its way out: with Numba 0.3 s


def _interrupted(*_: object) -> None:
    # An exception would pass through half-imported modules, some of which tell of it; nothing is open yet.
    os.write(2, b"\n")
    os._exit(130)


if __name__ == "__main__":
    main()
