"""What MODEL means, in every command and every call: one rule, and three ways to get from there to a file.

    resolve("demo")                 .../models/demo-Q4_K_M.gguf, or FileNotFoundError: nothing is downloaded
    obtain("./TinyLlama-1.1B")      .../models/TinyLlama-1.1B-Q4_K_M.gguf, converted if necessary
    obtain("org/name-GGUF:Q8_0")    a file in the hub's cache, downloaded if necessary
    locate("./TinyLlama-1.1B")      TinyLlama-1.1B: the checkpoint itself, downloaded if necessary, not converted

The rule (`meaning_of`) is the first of these that applies:

1. ``org/name`` or ``org/name:TYPE``, if no such file and no folder ``org`` exists: a repository on the hub.
2. A GGUF file. What looks like a path (`is_path`) is tried as a path first, and then as a name in the models folder;
   anything else is tried as a name first.
3. The folder of a checkpoint.
4. ``demo`` or ``demo-TYPE``: the checkpoint that ships with llamalite.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from llamalite.errors import HubUnreachableError, RepositoryNotFoundError
from llamalite.files import source_note
from llamalite.quant_types import FILE_TYPES, type_name
from llamalite.store import conversions, hub, names
from llamalite.store.hub import Announce
from llamalite.store.preference import DEFAULT_TYPE

if TYPE_CHECKING:
    from llamalite.converters.pipeline import Progress


@dataclass(frozen=True)
class Repository:
    """A repository on the hub, and the type asked for; None if none is."""

    repo_id: str
    qtype: str | None


@dataclass(frozen=True)
class CheckpointFolder:
    """The folder of a checkpoint, and the type asked for; None if none is."""

    folder: Path
    qtype: str | None = None


Meaning: TypeAlias = Path | CheckpointFolder | Repository
"""A `Path` means a GGUF file."""


# ── the three ways to a model ───────────────────────────────────────────────────────────────────────────────────────


def resolve(model: str | os.PathLike[str]) -> Path:
    """Return the GGUF file that `model` means, which must be on this machine.

    Raises ``FileNotFoundError``, which names similar models, or says what to do.
    """
    meaning = meaning_of(model)
    if isinstance(meaning, Path):
        return meaning
    name = os.fspath(model)
    call = f"Model.from_pretrained({name!r})"
    if isinstance(meaning, Repository):
        raise FileNotFoundError(f"no file {name!r}; if that is a repository on the hub, {call} downloads it")
    if meaning != _demo(name):
        how = f"llamalite convert {names.quoted(name)}, or {call}"
        raise FileNotFoundError(f"{name} is a checkpoint, not a GGUF file: {how}")
    if meaning.qtype is None:
        raise FileNotFoundError(f"no model {name!r} yet: llamalite demo makes it, and so does {call}")
    raise FileNotFoundError(f"no model {name!r} yet: {call} makes it")


def obtain(
    model: str | os.PathLike[str],
    qtype: str | None = None,
    *,
    announce: Announce | None = None,
    bars: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Return the GGUF file that `model` means, downloaded and converted if necessary.

    `qtype` is the type to download or to convert to, unless `model` names one; without either,
    `llamalite.store.preference` decides. `bars` draws huggingface_hub's bars; `progress` is for a conversion. Raises
    ``FileNotFoundError``, which names similar models, ``HubError``, and what a conversion raises.
    """
    meaning = meaning_of(model, type_name(qtype) if qtype else None)
    if isinstance(meaning, Repository):
        return _from_hub(meaning, announce, bars, progress)
    if isinstance(meaning, CheckpointFolder):
        wanted = meaning.qtype or DEFAULT_TYPE
        return conversions.converted(meaning.folder, wanted, announce=announce, progress=progress)
    return _up_to_date(meaning, os.fspath(model), announce, progress)


def locate(model: str | os.PathLike[str], *, announce: Announce | None = None, bars: bool = False) -> Path:
    """Return the GGUF file or the checkpoint's folder that `model` means, downloaded if necessary, never converted.

    Raises ``FileNotFoundError``, which names similar models, and ``HubError``.
    """
    meaning = meaning_of(model)
    if isinstance(meaning, Repository):
        return _fetched(meaning, announce, bars)
    if isinstance(meaning, CheckpointFolder):
        return meaning.folder
    name = os.fspath(model)
    if announce is not None and not is_path(name) and is_checkpoint(expanded(name)):
        announce(f"{name} means {meaning.name} in the models folder; the checkpoint here is ./{name}")
    return meaning


# ── the rule ────────────────────────────────────────────────────────────────────────────────────────────────────────


def meaning_of(model: str | os.PathLike[str], qtype: str | None = None) -> Meaning:
    """Return what `model` means. This looks at names only: nothing is downloaded, converted or opened.

    With a `qtype`, a checkpoint's folder takes precedence over the models folder, whose file may be of another type.
    Raises ``FileNotFoundError``, which names similar models.
    """
    path, name = expanded(model), os.fspath(model)
    repo_id, named_type = hub.split_type(name)
    if hub.is_repo_id(repo_id):
        return Repository(repo_id, named_type or qtype)
    if qtype is not None and name and is_checkpoint(path):
        return CheckpointFolder(path, qtype)
    demo = _demo(name, qtype)
    if demo is not None and demo.qtype is not None:
        name = f"{names.DEMO}-{demo.qtype}"
    is_name = isinstance(model, str) and not is_path(name)
    file = path if path.is_file() else None
    file = (names.find(name) or file) if is_name else (file or names.find(name))
    if file is not None:
        return file
    if name and is_checkpoint(path):
        return CheckpointFolder(path)
    if demo is not None:
        return demo
    if name and (path / "adapter_config.json").is_file():
        from llamalite.converters.checkpoints import adapter

        adapter.refuse(path)
    raise _not_found(name, path)


def is_path(model: str) -> bool:
    """Return whether `model` looks like a path: it has a separator, begins with ``~``, or ends with ``.gguf``.

    >>> is_path("./llama"), is_path("llama.gguf"), is_path("llama")
    (True, True, False)
    """
    return Path(model).name != model or model.startswith("~") or model.casefold().endswith(".gguf")


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` is the folder of a checkpoint, in Hugging Face's format or in Meta's."""
    return (path / "config.json").is_file() or (path / "params.json").is_file()


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return `path` with its ``~`` expanded; unchanged if there is no such user, as in a shell."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"a model is named by a path or a name, found {path!r:.80}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _demo(name: str, qtype: str | None = None) -> CheckpointFolder | None:
    """Return the checkpoint that ships with llamalite if `name` is ``demo`` or ``demo-TYPE``."""
    if name.casefold() == names.DEMO:
        return CheckpointFolder(names.demo_checkpoint(), qtype)
    head, _, last = name.rpartition("-")
    named_type = type_name(last)
    if head.casefold() == names.DEMO and named_type in FILE_TYPES:
        return CheckpointFolder(names.demo_checkpoint(), named_type)
    return None


def _not_found(name: str, path: Path) -> FileNotFoundError:
    """Return the error that says why `name` is not a model, and names similar ones."""
    if name and path.is_dir():
        inside = sorted(file.name for file in path.glob("*.gguf"))
        listed = f" ({', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''})" if inside else ""
        return FileNotFoundError(f"{name} is a folder; name the GGUF file in it{listed}")
    if name and path.exists():
        return FileNotFoundError(f"{name} is a pipe or a device, expected a GGUF file or a checkpoint's folder")
    if name and path.is_symlink():
        return FileNotFoundError(f"{name} is a link to {path.readlink()}, which does not exist")
    return FileNotFoundError(f"no model {name!r}: {names.nearest(path, also=[names.DEMO])}")


# ── from a meaning to a file ────────────────────────────────────────────────────────────────────────────────────────


def _up_to_date(file: Path, name: str, announce: Announce | None, progress: Progress | None) -> Path:
    """Return `file`, converted again if `name` also names its checkpoint and that has changed."""
    note = source_note.read_current(file)
    if note is None or names.find(name) != file:
        return file
    here, demo = expanded(name), _demo(name)
    if note.folder == source_note.absolute(here):  # `here`, not the note's path: a link gives the model its name
        return conversions.converted(here, note.qtype, announce=announce, progress=progress)
    if demo is not None and note.folder == source_note.absolute(demo.folder):
        return conversions.converted(Path(note.folder), note.qtype, announce=announce, progress=progress)
    if announce is not None and is_checkpoint(here):
        announce(f"{file.name} in the models folder was made from {note.folder}; ./{name} is another checkpoint")
    return file


def _from_hub(repository: Repository, announce: Announce | None, bars: bool, progress: Progress | None) -> Path:
    """Return a GGUF file of the repository; if it has none, its checkpoint converted to one, once."""
    repo_id, qtype = repository.repo_id, repository.qtype or DEFAULT_TYPE
    name = repo_id.replace("/", "--")
    if qtype in FILE_TYPES and (out := names.default_output(name, qtype)).is_file():
        return out
    fetched = _fetched(repository, announce, bars)
    if fetched.is_file():
        return fetched
    out = names.default_output(name, qtype)
    return conversions.convert_to(out, fetched, qtype, repo_id, announce=announce, progress=progress)


def _fetched(repository: Repository, announce: Announce | None, bars: bool) -> Path:
    """Return the GGUF file of the repository in the hub's cache, or the folder of its checkpoint."""
    repo_id = repository.repo_id
    try:
        return hub.fetch_model(repo_id, repository.qtype, announce=announce, progress=bars)
    except (RepositoryNotFoundError, HubUnreachableError) as error:  # `repo_id` may be a mistyped path
        raise type(error)(f"there is no file {repo_id}, and {error}") from error
