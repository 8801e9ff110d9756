"""Where a model is: a path, or a name in the models folder, becomes the path of a GGUF file.

    demo  →  ~/.local/share/llamalite/models/demo-Q4_K_M.gguf     (several types lie there: the usual choice first)

This module looks at names and at nothing inside a file; it neither converts nor downloads.
"""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path

from llamalite.quant_types import FILE_TYPES

# Which file a bare name means when several types of it lie in the folder: 4 and 5 bits, then upwards, then the rest.
_PREFERENCE = ("Q4_K_M", "Q5_K_M", "Q4_K_S", "Q5_K_S", "Q6_K", "Q8_0", "BF16", "F16", "F32")
_FORBIDDEN = set('<>:"/\\|?*')  # in a file name on Windows, and thereby in ours


def models_folder() -> Path:
    """Return ``LLAMALITE_MODELS``, else the folder for models in the user's data folder; it need not exist yet.

    Linux ``$XDG_DATA_HOME`` or ``~/.local/share``, macOS ``~/Library/Application Support``, Windows ``%LOCALAPPDATA%``;
    below that ``llamalite/models``.
    """
    if chosen := os.environ.get("LLAMALITE_MODELS"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "llamalite" / "models"


def default_output(name: str, qtype: str) -> Path:
    """Return where `convert` writes when it is not told: ``models_folder() / "NAME-QTYPE.gguf"``.

    `name` is a file name and nothing more: one that could lead out of the folder is a ``ValueError``.

    >>> default_output("TinyLlama-1.1B", "Q4_K_M").name
    'TinyLlama-1.1B-Q4_K_M.gguf'
    """
    if not name.strip(". ") or _FORBIDDEN & set(name) or not name.isprintable():
        raise ValueError(f"{name!r} cannot be the name of a model: give the output a path (-o FILE.gguf)")
    return models_folder() / f"{name}-{qtype.upper()}.gguf"


def list_models() -> list[Path]:
    """Return the GGUF files of the models folder, by name; none where there is no such folder."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.glob("*.gguf") if path.is_file()), key=lambda path: path.name.casefold())


def demo_checkpoint() -> Path:
    """Return the folder of the checkpoint that ships with llamalite: 6 million parameters, trained by us."""
    package = Path(__file__).resolve().parent
    folders = (package / "demo", package.parent / "models" / "demo")  # installed; in the checkout
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"the demo model is not where it was installed, {folders[0]}: reinstall llamalite")


def resolve(model: str | os.PathLike[str]) -> Path:
    """Return the GGUF file that `model` names: a path, or a name in the models folder with or without type and suffix.

    A path that exists wins over a name. ``demo`` finds ``demo.gguf``, else the best of the ``demo-TYPE.gguf`` there, 4
    to 5 bits first. Upper and lower case count alike. ``FileNotFoundError`` says what lies nearest, or what to do.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return path
    name = str(model)
    # Whatever has a separator is a path: a name never leaves the models folder.
    found = None if path.name != name else _in_folder(name)
    if found is not None:
        return found
    if (path / "config.json").is_file() or (path / "params.json").is_file():
        raise FileNotFoundError(f"{name} is a checkpoint, not a GGUF file: llamalite convert {name}")
    if path.is_dir():
        raise FileNotFoundError(f"{name} is a folder; name the GGUF file in it")
    raise FileNotFoundError(f"no model {name!r}: {_what_next(path)}")


def _in_folder(name: str) -> Path | None:
    wanted = name.casefold().removesuffix(".gguf")
    candidates = {path.stem.casefold(): path for path in list_models()}
    stems = [wanted, *(f"{wanted}-{qtype}".casefold() for qtype in (*_PREFERENCE, *FILE_TYPES))]
    return next((candidates[stem] for stem in stems if stem in candidates), None)


def _what_next(path: Path) -> str:
    folder = path.parent
    if path.name != str(path):
        beside = [entry.name for entry in folder.glob("*.gguf")] if folder.is_dir() else []
        if near := difflib.get_close_matches(path.name, beside, n=1):
            return f"did you mean {folder / near[0]}?"
        return "no such file" if folder.is_dir() else f"there is no folder {folder}"
    known = {path.stem.casefold(): path.stem for path in list_models()}
    # The bare names are offered too, or the distance of "demmo" to "demo-Q4_K_M" would be too far.
    bare = {stem.rpartition("-")[0].casefold(): stem.rpartition("-")[0] for stem in known.values()} | known
    here = {entry.name.casefold(): entry.name for entry in Path().glob("*.gguf")}
    if near := difflib.get_close_matches(path.name.casefold(), [*bare, *here], n=1, cutoff=0.5):
        return f"did you mean {bare.get(near[0]) or here[near[0]]}?"
    if known:
        return f"no such file, and {models_folder()} holds {', '.join(sorted(known.values())[:8])}"
    return f"no such file, and no models in {models_folder()} yet: llamalite convert CHECKPOINT"
