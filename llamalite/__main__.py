"""``python -m llamalite`` is the command ``llamalite``."""

from llamalite.cli import main

main()
