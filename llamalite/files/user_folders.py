"""Where this user's files go: models and other data, and a cache that may be emptied at any time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llamalite.errors import LlamaliteError


def models_folder() -> Path:
    """Return ``LLAMALITE_MODELS``, else ``models`` in the user's `data_folder`; it need not exist yet."""
    chosen = os.environ.get("LLAMALITE_MODELS")
    try:
        return Path(chosen).expanduser() if chosen else data_folder() / "models"
    except RuntimeError:
        if chosen:
            raise LlamaliteError(f"LLAMALITE_MODELS is {chosen}, and there is no such user") from None
        raise LlamaliteError("this user has no home folder: set LLAMALITE_MODELS to a folder for models") from None


def is_models_folder(folder: Path) -> bool:
    """Return whether `folder` is the models folder, by whatever path, and whether or not it exists."""
    try:
        return os.path.realpath(folder) == os.path.realpath(models_folder())
    except LlamaliteError:  # there is no models folder
        return False


def data_folder() -> Path:
    """Return llamalite's folder for data.

    On Linux ``$XDG_DATA_HOME`` or ``~/.local/share``, on macOS ``~/Library/Application Support``, on Windows
    ``%LOCALAPPDATA%``.
    """
    if sys.platform == "win32":
        return _local_app_data() / "llamalite"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "llamalite"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "llamalite"


def cache_folder() -> Path:
    """Return llamalite's folder for files that can be made again.

    On Linux ``$XDG_CACHE_HOME`` or ``~/.cache``, on macOS ``~/Library/Caches``, on Windows ``%LOCALAPPDATA%``. Raises
    ``LlamaliteError`` if the user has no home folder.
    """
    try:
        if sys.platform == "win32":
            return _local_app_data() / "llamalite"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "llamalite"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llamalite"
    except RuntimeError:
        raise LlamaliteError("this user has no home folder, and so no cache folder: set HOME") from None


def _local_app_data() -> Path:
    return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
