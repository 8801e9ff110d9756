"""The models folder: which names its files answer to, which file a name finds, and which files go with a name.

    list_models()            [.../models/demo-Q4_K_M.gguf, ...]
    find("demo")             .../models/demo-Q4_K_M.gguf    (of several types the one that `preference` has first)

This module looks at names, and at nothing inside a file.
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
_FORBIDDEN = set('<>:"/\\|?*')  # in a file name on Windows, and thereby in ours


def demo_checkpoint() -> Path:
    """Return the folder of the checkpoint that ships with llamalite: 6 million parameters, trained by us."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "demo", package.parent / "models" / "demo")  # installed; in the checkout
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"the demo model is not where it was installed, {folders[0]}: reinstall llamalite")


def default_output(name: str, qtype: str) -> Path:
    """Return where `convert` writes when it is not told: ``models_folder() / "NAME-QTYPE.gguf"``.

    `name` is a file name and nothing more: one that could lead out of the folder is a ``ValueError``.

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
    """Return the models of the models folder by name, a split one by its first file; none where there is no folder.

    ``LlamaliteError`` for a folder that cannot be read, or is none.
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
        # Without its first file a model is listed by the others: that something is amiss shall be seen.
        if shard is None or shard.number == 1 or f"{shards.Shard(shard.stem, 1, shard.count)}.gguf" not in files:
            models.append(path)
    return sorted(models, key=lambda path: path.name.casefold())


def name_of(path: Path) -> str:
    """Return the name of the model at `path`: its file's name without suffix and without a shard's number.

    >>> name_of(Path("models/big-Q4_K_M-00001-of-00003.gguf"))
    'big-Q4_K_M'
    """
    return shards.stem_of(path.stem)


# ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def find(name: str) -> Path | None:
    """Return the model that `name` means in the models folder; None where there is none.

    The name may be without its type, which `llamalite.store.preference` then chooses, and without its suffix; upper and
    lower case count alike. ``ValueError`` where several models have the name but for upper and lower case, and none has
    it exactly.
    """
    # Whatever has a separator is a path: a name never leaves the models folder.
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
            raise ValueError(f"{name!r} is the name of {len(matches)} models: say which of {stems}")
        if matches:
            return matches[0]
    return None


def shortest_name(path: Path) -> str:
    """Return the shortest name by which `find` finds the model at `path`; `name_of` it where no name does.

    The two differ where another model has the shorter name.
    """
    for name in (name_of(path), path.stem, path.name):
        with contextlib.suppress(ValueError):  # the name of several
            if find(name) == path:
                return name
    return name_of(path)


def nearest(path: Path, also: Iterable[str] = ()) -> str:
    """Return what to tell somebody who named a model `path` that is not there: what lies nearest, or what there is.

    `also` are names that can be meant besides those of the models folder.
    """
    import difflib  # for those who mistyped

    folder = path.parent
    if path.name != str(path):
        beside = [file.name for file in folder.glob("*.gguf")] if folder.is_dir() else []
        if close := difflib.get_close_matches(path.name, beside, n=1):
            return f"did you mean {folder / close[0]}?"
        return "no such file" if folder.is_dir() else f"there is no folder {folder}"
    names = list(dict.fromkeys(map(name_of, list_models())))
    # The names without their types are offered too: "demmo" is near to "demo", and far from "demo-Q4_K_M".
    offered = {file.name.casefold(): file.name for file in Path().glob("*.gguf")}
    offered |= _by_folded_name((*also, *map(_without_type, names), *names))
    if close := difflib.get_close_matches(path.name.casefold(), offered, n=1, cutoff=0.5):
        return f"did you mean {offered[close[0]]}?"
    if names:
        rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"no such file, and {models_folder()} holds {', '.join(names[:8])}{rest}"
    return f"no such file, and no models in {models_folder()} yet: llamalite demo, or llamalite convert CHECKPOINT"


# ── removing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def files_to_remove(name: str) -> list[Path]:
    """Return the files that go when the model `name` is removed from the models folder: all of a split one, its note.

    ``ValueError`` for a path, and for a name without a type where several types of the model are there;
    ``FileNotFoundError`` for a name that is not there.
    """
    if Path(name).name != name or "\\" in name:
        raise ValueError(
            f"{name!r} is a path: only names in the models folder are taken here, llamalite list shows them"
        )
    model = find(name)
    if model is None:
        raise FileNotFoundError(f"no model {name!r} in {models_folder()}: {nearest(Path(name))}")
    wanted = _without_suffix(name).casefold()
    if wanted not in (name_of(model).casefold(), model.stem.casefold()):
        same = [one for one in map(name_of, list_models()) if _without_type(one).casefold() == wanted]
        if len(same) > 1:
            raise ValueError(f"{name!r} is the name of {len(same)} models: say which of {', '.join(same)}")
    shard = shards.parse(model.stem)
    files = [model]
    if shard is not None:
        files = [model.with_name(f"{part}.gguf") for part in shards.all_of(shard.stem, shard.count)]
    return [path for path in (*files, source_note.path_of(files[0])) if os.path.lexists(path)]


# ── in a command ────────────────────────────────────────────────────────────────────────────────────────────────────


def quoted(name: str) -> str:
    """Return `name` as it is typed behind a command: quoted for a shell, and behind ``--`` where it begins with a dash.

    >>> quoted("my llama"), quoted("-llama.gguf")
    ("'my llama'", '-- -llama.gguf')
    """
    return ("-- " if name.startswith("-") else "") + shlex.quote(name)


def as_argument(path: Path) -> str:
    """Return what is typed behind a command for the model at `path`: the name that finds it, where one does."""
    try:
        name = shortest_name(path)
        return quoted(name if find(name) == path else str(path))
    except (LlamaliteError, ValueError):  # a models folder that cannot be read, a name of several models
        return quoted(str(path))


def _by_folded_name(names: Iterable[str]) -> dict[str, str]:
    return {name.casefold(): name for name in names}


def _without_suffix(name: str) -> str:
    return name[: -len(".gguf")] if name.casefold().endswith(".gguf") else name


def _without_type(name: str) -> str:
    head, _, last = name.rpartition("-")
    return head if head and last.upper() in FILE_TYPES else name
