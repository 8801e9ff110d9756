"""The models folder: lists its models, finds a model by name, and lists the files to remove for a name.

    list_models()            [.../models/demo-Q4_K_M.gguf, ...]
    find("demo")             .../models/demo-Q4_K_M.gguf    (of several types, the first in the order of `preference`)

This module looks at the names of files only, never into them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from llamalite.errors import LlamaliteError
from llamalite.files import shards, source_note
from llamalite.files.user_folders import models_folder
from llamalite.quant_types import FILE_TYPES
from llamalite.store.preference import TYPES_BY_PREFERENCE

DEMO = "demo"  # the model that ships with llamalite
_FORBIDDEN = set('<>:"/\\|?*')  # in file names on Windows, and so for us everywhere


def demo_checkpoint() -> Path:
    """Return the folder of the checkpoint that ships with llamalite: 6 million parameters, trained by us."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "demo", package.parent / "models" / "demo")  # installed; in the checkout
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"the demo model is not where it was installed, {folders[0]}: reinstall llamalite")


def default_output(name: str, qtype: str) -> Path:
    """Return where `convert` writes by default: ``models_folder() / "NAME-QTYPE.gguf"``.

    Raises ``ValueError`` if `name` is not just a file name, as it could lead out of the folder.

    >>> default_output("TinyLlama-1.1B", "Q4_K_M").name
    'TinyLlama-1.1B-Q4_K_M.gguf'
    """
    if not name.strip(". ") or _FORBIDDEN & set(name) or not name.isprintable():
        raise ValueError(
            f"{name!r} cannot be the name of a model: say where to write it, llamalite convert CHECKPOINT -o FILE.gguf"
        )
    return models_folder() / f"{name}-{qtype.upper()}.gguf"


# ── listing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def list_models() -> list[Path]:
    """Return the models in the models folder, sorted by name; of a split model, its first file.

    If the folder does not exist, there are none. Raises ``LlamaliteError`` if it cannot be read or is not a folder.
    """
    folder = models_folder()
    try:
        files = {path.name: path for path in folder.iterdir() if path.suffix == ".gguf" and path.is_file()}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LlamaliteError(f"the models folder {folder} cannot be read: {error.strerror}") from None
    models = []
    for path in files.values():
        shard = shards.parse(path.stem)
        # A split model without its first file is damaged: its other files are listed, to make that visible.
        if shard is None or shard.number == 1 or f"{shards.Shard(shard.stem, 1, shard.count)}.gguf" not in files:
            models.append(path)
    return sorted(models, key=lambda path: path.name.casefold())


def name_of(path: Path) -> str:
    """Return the name of the model at `path`: the file's name without suffix and shard numbers.

    >>> name_of(Path("models/big-Q4_K_M-00001-of-00003.gguf"))
    'big-Q4_K_M'
    """
    return shards.stem_of(path.stem)


# ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def find(name: str) -> Path | None:
    """Return the model that `name` means in the models folder; None if there is none.

    Case is ignored, and the suffix may be left out, as may the type, which `llamalite.store.preference` then chooses.
    Raises ``ValueError`` if `name` matches several models only by ignoring case.
    """
    # With a separator it is a path: a name never leads out of the models folder.
    if Path(name).name != name:
        return None
    wanted, models = _without_suffix(name), list_models()
    for full_name in (wanted, *(f"{wanted}-{qtype}" for qtype in TYPES_BY_PREFERENCE)):
        folded = full_name.casefold()
        alike = [path for path in models if folded in (path.stem.casefold(), name_of(path).casefold())]
        by_stem = [path for path in alike if path.stem == full_name]
        matches = by_stem or [path for path in alike if name_of(path) == full_name] or alike
        if len(matches) > 1:
            stems = ", ".join(path.stem for path in matches)
            raise ValueError(f"{name!r} is the name of {len(matches)} models: name one of {stems}")
        if matches:
            return matches[0]
    return None


def shortest_name(path: Path) -> str:
    """Return the shortest name with which `find` finds the model at `path`; if there is none, `name_of` it.

    It differs from `name_of` if another model has that name.
    """
    for name in (name_of(path), path.stem, path.name):
        with contextlib.suppress(ValueError):  # several models have the name
            if find(name) == path:
                return name
    return name_of(path)


def nearest(path: Path, also: Iterable[str] = ()) -> str:
    """Return a hint for a user who named a model `path` that does not exist: a similar name, or all names.

    `also` are names that could be meant besides those in the models folder.
    """
    import difflib  # needed only after a typing error

    folder = path.parent
    if path.name != str(path):
        neighbours = [file.name for file in folder.glob("*.gguf")] if folder.is_dir() else []
        if close := difflib.get_close_matches(path.name, neighbours, n=1):
            return f"did you mean {folder / close[0]}?"
        return "no such file" if folder.is_dir() else f"there is no folder {folder}"
    names = list(dict.fromkeys(map(name_of, list_models())))
    # Names without their type are offered too: "demmo" is similar to "demo", but not to "demo-Q4_K_M".
    offered = {file.name.casefold(): file.name for file in Path().glob("*.gguf")}
    offered |= _by_folded_name((*also, *map(_without_type, names), *names))
    if close := difflib.get_close_matches(path.name.casefold(), offered, n=1, cutoff=0.5):
        return f"did you mean {offered[close[0]]}?"
    if names:
        rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"no such file, and {models_folder()} has {', '.join(names[:8])}{rest}"
    return f"no such file, and no models in {models_folder()} yet: llamalite demo, or llamalite convert CHECKPOINT"


# ── removing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def files_to_remove(name: str) -> list[Path]:
    """Return the files to delete to remove the model `name` from the models folder: all its shards, and its note.

    Raises ``ValueError`` for a path, and for a name without a type if the model is there in several types, and
    ``FileNotFoundError`` if there is no such model.
    """
    if Path(name).name != name or "\\" in name:
        raise ValueError(f"{name!r} is a path: give a name in the models folder; llamalite list shows them")
    model = find(name)
    if model is None:
        raise FileNotFoundError(f"no model {name!r} in {models_folder()}: {nearest(Path(name))}")
    wanted = _without_suffix(name).casefold()
    if wanted not in (name_of(model).casefold(), model.stem.casefold()):
        same = [full for full in map(name_of, list_models()) if _without_type(full).casefold() == wanted]
        if len(same) > 1:
            raise ValueError(f"{name!r} is the name of {len(same)} models: name one of {', '.join(same)}")
    shard = shards.parse(model.stem)
    files = [model]
    if shard is not None:
        files = [model.with_name(f"{part}.gguf") for part in shards.all_of(shard.stem, shard.count)]
    return [path for path in (*files, source_note.path_of(files[0])) if os.path.lexists(path)]


# ── in a command ────────────────────────────────────────────────────────────────────────────────────────────────────


def quoted(name: str) -> str:
    """Return `name` as an argument to type in a shell: quoted, and after ``--`` if it begins with a dash.

    >>> quoted("my llama"), quoted("-llama.gguf")
    ("'my llama'", '-- -llama.gguf')
    """
    return ("-- " if name.startswith("-") else "") + shlex.quote(name)


def as_argument(path: Path) -> str:
    """Return the argument to type in a shell for the model at `path`: a name that finds it, or else the path."""
    try:
        name = shortest_name(path)
        return quoted(name if find(name) == path else str(path))
    except (LlamaliteError, ValueError):  # the models folder cannot be read, or several models have the name
        return quoted(str(path))


def _by_folded_name(names: Iterable[str]) -> dict[str, str]:
    return {name.casefold(): name for name in names}


def _without_suffix(name: str) -> str:
    return name[: -len(".gguf")] if name.casefold().endswith(".gguf") else name


def _without_type(name: str) -> str:
    head, _, last = name.rpartition("-")
    return head if head and last.upper() in FILE_TYPES else name
