"""Where a model is: a path, or a name in the models folder, becomes the path of a GGUF file.

    demo        →  ~/.local/share/llamalite/models/demo-Q4_K_M.gguf    (several types lie there: the usual choice first)
    ./demo, demo.gguf                                                  (a path: it has a separator, or ends in .gguf)

This module looks at names and at nothing inside a file; it neither converts nor downloads: that is `llamalite.kept`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from llamalite import hub, shards
from llamalite.errors import LlamaliteError
from llamalite.quant_types import FILE_TYPES
from llamalite.user_folders import data_folder

# Which file a bare name means when several types of it lie in the folder: 4 and 5 bits, then upwards, then the rest.
_PREFERENCE = ("Q4_K_M", "Q5_K_M", "Q4_K_S", "Q5_K_S", "Q6_K", "Q8_0", "BF16", "F16", "F32")
_FORBIDDEN = set('<>:"/\\|?*')  # in a file name on Windows, and thereby in ours
DEMO = "demo"  # the model that ships with llamalite
SOURCE_SUFFIX = ".source"  # NAME.gguf.source says which checkpoint NAME.gguf was made of (`llamalite.kept`)


def models_folder() -> Path:
    """Return ``LLAMALITE_MODELS``, else the folder for models in the user's data folder; it need not exist yet.

    That is ``models`` in `llamalite.user_folders.data_folder`.
    """
    if chosen := os.environ.get("LLAMALITE_MODELS"):
        try:
            return Path(chosen).expanduser()
        except RuntimeError:
            raise LlamaliteError(f"LLAMALITE_MODELS is {chosen}, and there is no such user") from None
    return data_folder() / "models"


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
    """Return what the model at `path` is called: its file's name without suffix and without a shard's number.

    >>> name_of(Path("models/big-Q4_K_M-00001-of-00003.gguf"))
    'big-Q4_K_M'
    """
    return shards.stem_of(path.stem)


def called(path: Path) -> str:
    """Return the name that `find` finds the model at `path` by; what `name_of` says for one that no name finds.

    The two differ where another model has the shorter name.
    """
    for name in (name_of(path), path.stem, path.name):
        with contextlib.suppress(ValueError):  # the name of several
            if find(name) == path:
                return name
    return name_of(path)


def is_path(model: str) -> bool:
    """Tell whether `model` is written as a path: with a separator, with ``~`` in front, or with ``.gguf`` at the end.

    >>> is_path("./llama"), is_path("llama.gguf"), is_path("llama")
    (True, True, False)
    """
    return Path(model).name != model or model.startswith("~") or model.casefold().endswith(".gguf")


def file_of(model: str | os.PathLike[str]) -> Path | None:
    """Return the GGUF file that `model` means, None where there is none: the one rule of every command.

    What is written as a path (`is_path`) is one, and a name where nothing stands there; any other text is a name, and a
    path where the models folder has no such model.
    """
    path = expanded(model)
    if not isinstance(model, str) or is_path(model):
        return path if path.is_file() else find(os.fspath(model))
    return find(model) or (path if path.is_file() else None)


def find(name: str) -> Path | None:
    """Return the model that `name` means in the models folder; None where there is none.

    The name may be without its type, 4 to 5 bits first, and without its suffix; upper and lower case count alike.

    ``ValueError`` where several are called so but for upper and lower case, and none exactly so.
    """
    # Whatever has a separator is a path: a name never leaves the models folder.
    if Path(name).name != name:
        return None
    wanted, models = _without_suffix(name), list_models()
    for one in (wanted, *(f"{wanted}-{qtype}" for qtype in (*_PREFERENCE, *FILE_TYPES))):
        loosely = [path for path in models if one.casefold() in (path.stem.casefold(), name_of(path).casefold())]
        exactly = [path for path in loosely if one == path.stem] or [path for path in loosely if one == name_of(path)]
        if found := exactly or loosely:
            if len(found) > 1:
                stems = ", ".join(path.stem for path in found)
                raise ValueError(f"{name!r} is the name of {len(found)} models: say which of {stems}")
            return found[0]
    return None


def files_of(name: str) -> list[Path]:
    """Return the files that the model `name` has in the models folder: what is deleted when it is removed.

    All files of a split model, and what is kept beside it. ``ValueError`` for a path, or a bare name that several types
    of a model bear; ``FileNotFoundError`` for a name that is not there.
    """
    if Path(name).name != name or "\\" in name:
        raise ValueError(
            f"{name!r} is a path: only names in the models folder are taken here, llamalite list shows them"
        )
    found = find(name)
    if found is None:
        raise FileNotFoundError(f"no model {name!r} in {models_folder()}: {_what_next(Path(name))}")
    wanted = _without_suffix(name).casefold()
    if wanted not in (name_of(found).casefold(), found.stem.casefold()):
        same = [name_of(path) for path in list_models() if _bare(name_of(path)).casefold() == wanted]
        if len(same) > 1:
            raise ValueError(f"{name!r} is the name of {len(same)} models: say which of {', '.join(same)}")
    shard = shards.parse(found.stem)
    names = [f"{one}.gguf" for one in shards.all_of(shard.stem, shard.count)] if shard else [found.name]
    files = [found.with_name(name) for name in (*names, found.name + SOURCE_SUFFIX)]
    return [path for path in files if path.is_file()]


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

    `file_of` has the rule. ``FileNotFoundError`` says what lies nearest, or what to do.
    """
    if (found := file_of(model)) is not None:
        return found
    name = os.fspath(model)
    fetched = f"Model.from_pretrained({name!r})"
    if is_checkpoint(expanded(name)):
        how = f"llamalite convert {typed(name)}, or {fetched}"
        raise FileNotFoundError(f"{name} is a checkpoint, not a GGUF file: {how}")
    if name.casefold() == DEMO:
        raise FileNotFoundError(f"no model {name!r} yet: llamalite demo makes it, and so does {fetched}")
    if hub.is_repo_id(name):
        raise FileNotFoundError(f"no file {name!r}; if that is a repository of the hub, {fetched} fetches it")
    raise missing(name)


def missing(name: str, also: Iterable[str] = ()) -> FileNotFoundError:
    """Return the error that says that there is no model `name`, and what lies nearest; `also` are names there are."""
    path = expanded(name)
    if name and path.is_dir():
        inside = sorted(one.name for one in path.glob("*.gguf"))
        held = f" ({', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''})" if inside else ""
        return FileNotFoundError(f"{name} is a folder; name the GGUF file in it{held}")
    if name and path.exists():
        return FileNotFoundError(f"{name} is a pipe or a device, expected a GGUF file or a checkpoint's folder")
    if name and path.is_symlink():
        return FileNotFoundError(f"{name} is a link to {path.readlink()}, which does not exist")
    return FileNotFoundError(f"no model {name!r}: {_what_next(path, also)}")


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return `path` with a home for its ``~``; as it is where there is no such user, which shells do too."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"a model is named by a path or a name, found {path!r:.80}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def typed(name: str) -> str:
    """Return `name` as it is typed behind a command: quoted for a shell, and behind ``--`` where it begins with a dash.

    >>> typed("my llama"), typed("-llama.gguf")
    ("'my llama'", '-- -llama.gguf')
    """
    return ("-- " if name.startswith("-") else "") + shlex.quote(name)


def as_argument(path: Path) -> str:
    """Return what is typed behind a command for the model at `path`: the name that finds it, where one does."""
    try:
        name = called(path)
        return typed(name if find(name) == path else str(path))
    except (LlamaliteError, ValueError):  # a models folder that cannot be read, a name of several models
        return typed(str(path))


def is_checkpoint(path: Path) -> bool:
    """Tell whether `path` is the folder of a checkpoint, in Hugging Face's form or in Meta's."""
    return (path / "config.json").is_file() or (path / "params.json").is_file()


def _without_suffix(name: str) -> str:
    return name[: -len(".gguf")] if name.casefold().endswith(".gguf") else name


def _bare(name: str) -> str:
    """Return a model's name without its type."""
    head, _, last = name.rpartition("-")
    return head if head and last.upper() in FILE_TYPES else name


def _what_next(path: Path, also: Iterable[str] = ()) -> str:
    import difflib  # for those who mistyped

    folder = path.parent
    if path.name != str(path):
        beside = [entry.name for entry in folder.glob("*.gguf")] if folder.is_dir() else []
        if near := difflib.get_close_matches(path.name, beside, n=1):
            return f"did you mean {folder / near[0]}?"
        return "no such file" if folder.is_dir() else f"there is no folder {folder}"
    known = {name_of(one).casefold(): name_of(one) for one in list_models()}
    # The bare names are offered too, or the distance of "demmo" to "demo-Q4_K_M" would be too far.
    bare = {_bare(name).casefold(): _bare(name) for name in known.values()} | known
    bare |= {name.casefold(): name for name in also}
    here = {entry.name.casefold(): entry.name for entry in Path().glob("*.gguf")}
    if near := difflib.get_close_matches(path.name.casefold(), [*bare, *here], n=1, cutoff=0.5):
        return f"did you mean {bare.get(near[0]) or here[near[0]]}?"
    if known:
        some = ", ".join([*known.values()][:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        return f"no such file, and {models_folder()} holds {some}"
    return f"no such file, and no models in {models_folder()} yet: llamalite demo, or llamalite convert CHECKPOINT"
