"""Where the user's system keeps what programs write: data that stay, and a cache that may be emptied at any time."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def data_folder() -> Path:
    """Return llamalite's folder for data.

    Linux ``$XDG_DATA_HOME`` or ``~/.local/share``, macOS ``~/Library/Application Support``, Windows ``%LOCALAPPDATA%``.
    """
    if sys.platform == "win32":
        return _local_app_data() / "llamalite"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "llamalite"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "llamalite"


def cache_folder() -> Path:
    """Return llamalite's folder for what can be made again.

    Linux ``$XDG_CACHE_HOME`` or ``~/.cache``, macOS ``~/Library/Caches``, Windows ``%LOCALAPPDATA%``.
    """
    if sys.platform == "win32":
        return _local_app_data() / "llamalite"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "llamalite"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llamalite"


def _local_app_data() -> Path:
    return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
