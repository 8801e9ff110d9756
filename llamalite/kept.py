"""What a reference means, and checkpoints that are converted once: MODEL of every verb, and ``Model.from_pretrained``.

    obtain("demo")                  .../models/demo-Q4_K_M.gguf, made of the checkpoint that ships with llamalite
    obtain("./TinyLlama-1.1B")      .../models/TinyLlama-1.1B-Q4_K_M.gguf, converted if need be
    obtain("org/name-GGUF:Q8_0")    a file in the hub's cache, fetched if need be
    obtain("x.gguf"), obtain("x")   a path, or a name in the models folder, as `llamalite.store` finds it

Beside a file that was made of a checkpoint lies ``NAME.gguf.source``, JSON: the checkpoint's folder, the type, and
name, size and time of change of every file that a conversion reads. As long as they are the same the file is used as
it is. A file that was made otherwise, or of another folder of that name, is never replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamalite import hub, shards, store
from llamalite.errors import HubError, LlamaliteError
from llamalite.hub import Announce
from llamalite.quant_types import FILE_TYPES, file_type, type_name

USUAL = "Q4_K_M"
_READ = {".safetensors", ".bin", ".pth", ".json", ".model", ".jinja"}  # suffixes of the files that a conversion reads

Progress = Callable[[int, int], None]
"""Called with the bytes that a conversion has done, and with all of them."""


def obtain(
    reference: str | os.PathLike[str],
    qtype: str | None = None,
    *,
    announce: Announce | None = None,
    bars: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Return the GGUF file that `reference` means, fetched and converted where need be.

    `reference` is a path, a name in the models folder, a checkpoint's folder, ``demo`` (or ``demo-TYPE``), or
    ``org/name[:TYPE]``; `qtype` is the type to convert to, or to fetch, Q4_K_M unless it says otherwise. `bars` draws
    huggingface_hub's bars, `progress` is for a conversion. Raises ``FileNotFoundError`` with what lies nearest,
    ``HubError``, and what a conversion raises.
    """
    name, qtype = os.fspath(reference), type_name(qtype) if qtype else None
    repo_id, named = hub.split_type(name)
    if hub.is_repo_id(repo_id):
        return _of_the_hub(repo_id, named or qtype, announce, bars, progress)
    folder = store.expanded(name)
    if qtype is not None and name and store.is_checkpoint(folder):  # not what lies in the models folder in another type
        return _keep(folder, qtype, announce, progress)
    found = locate(f"{name}-{qtype}" if qtype and name.casefold() == store.DEMO else name)
    if found.is_file():
        made_of = _Source.read(found)
        if made_of and made_of.folder in (_absolute(name), _demo_folder(name)) and store.find(name) == found:
            source = folder if made_of.folder == _absolute(name) else Path(made_of.folder)  # a link keeps its own name
            return _keep(source, made_of.qtype, announce, progress)  # if its files have changed
        if announce and made_of and store.find(name) == found and store.is_checkpoint(folder):
            announce(f"{found.name} of the models folder was made of {made_of.folder}; ./{name} is another checkpoint")
        return found
    return _keep(found, _type_named(name) or qtype or USUAL, announce, progress)


def locate(reference: str | os.PathLike[str]) -> Path:
    """Return what `reference` means on this machine: a GGUF file, or the folder of a checkpoint. Nothing is made."""
    if (found := store.file_of(reference)) is not None:
        return found
    name = os.fspath(reference)
    if name and store.is_checkpoint(folder := store.expanded(name)):
        return folder
    if _demo_folder(name):
        return store.demo_checkpoint()
    raise store.missing(name, also=[store.DEMO])


def _demo_folder(name: str) -> str | None:
    """Return the folder of the demo's checkpoint where `name` is ``demo`` or ``demo-TYPE``."""
    return _absolute(store.demo_checkpoint()) if name.casefold() == store.DEMO or _type_named(name) else None


def _type_named(name: str) -> str | None:
    head, _, last = name.rpartition("-")
    qtype = type_name(last)
    return qtype if head.casefold() == store.DEMO and qtype in FILE_TYPES else None


def _absolute(path: str | os.PathLike[str]) -> str:
    return str(store.expanded(path).resolve())


# ── the hub ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_the_hub(
    repo_id: str, qtype: str | None, announce: Announce | None, bars: bool, progress: Progress | None
) -> Path:
    """Return a ready-made file of the repository; where it has none, its checkpoint, converted once."""
    name = repo_id.replace("/", "--")
    if (qtype or USUAL) in FILE_TYPES and (kept := store.default_output(name, qtype or USUAL)).is_file():
        return kept
    try:
        found = hub.fetch_model(repo_id, qtype, announce=announce, progress=bars)
    except HubError as error:
        if " has no model " in str(error) or " cannot be reached " in str(error):
            raise HubError(f"there is no file {repo_id}, and {error}") from error
        raise
    if found.is_file():
        return found
    return _convert(found, store.default_output(name, qtype or USUAL), qtype or USUAL, repo_id, announce, progress)


# ── conversions that are kept ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Source:
    """What a file was made of: `files` are [size, time of change in ns] by name, `plain` is by its type alone."""

    folder: str
    qtype: str
    files: dict[str, list[int]]
    plain: bool

    @classmethod
    def of(cls, folder: Path, qtype: str, *, plain: bool = True) -> _Source:
        paths = [one for one in folder.iterdir() if one.suffix in _READ or one.name == "README.md"]
        paths += folder.glob("additional_chat_templates/*.jinja")
        # A link that leads nowhere is no file: a conversion that needs it says so.
        files = {one.relative_to(folder).as_posix(): _stamp(one) for one in sorted(paths) if one.is_file()}
        return cls(_absolute(folder), qtype, files, plain)

    @classmethod
    def read(cls, model: Path) -> _Source | None:
        """Return what is written beside `model`; None where nothing is, nothing intelligible, or of an earlier file."""
        import json

        try:
            found = json.loads(_beside(model).read_text(encoding="utf-8"))
            if found["made"] != _stamp(model):
                return None
            return cls(str(found["folder"]), str(found["qtype"]), dict(found["files"]), found["plain"] is True)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, model: Path) -> None:
        import json

        facts = {"made": _stamp(model), "plain": self.plain, "qtype": self.qtype, "folder": self.folder}
        text = json.dumps(facts | {"files": self.files}, indent=1)
        _beside(model).write_text(text + "\n", encoding="utf-8")


def _stamp(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _beside(model: Path) -> Path:
    return model.with_name(model.name + store.SOURCE_SUFFIX)


def note(model: Path, folder: Path, qtype: str, *, plain: bool) -> None:
    """Write down that `model` was made of the checkpoint in `folder`; `plain` if by its type alone, so that it may be
    made again without asking."""
    if folder.is_dir():
        _Source.of(folder, qtype, plain=plain).write(model)
    suffix = f".gguf{store.SOURCE_SUFFIX}"
    for beside in shards.lying_in(model.parent, store.name_of(model), suffix):  # that this one replaces
        if not beside.with_suffix("").exists():
            beside.unlink()


def _keep(folder: Path, qtype: str, announce: Announce | None, progress: Progress | None) -> Path:
    """Return the file of type `qtype` made of `folder`: made now if there is none, or if the folder has changed."""
    import zlib

    from llamalite.converters.checkpoints import model_name

    name, qtype = model_name(folder), file_type(qtype).name
    now = _Source.of(folder, qtype)
    own = f"{zlib.crc32(now.folder.encode()):08x}"[:6]  # where another model has the plain name
    for out in (store.default_output(name, qtype), store.default_output(f"{name}-{own}", qtype)):
        if not out.exists():
            return _convert(folder, out, qtype, str(folder), announce, progress)
        before = _Source.read(out)
        if before is None or (before.folder, before.qtype) != (now.folder, now.qtype):
            continue
        if before.files == now.files:
            return out
        if before.plain:
            changed = sorted(file for file in before.files.keys() | now.files.keys()
                             if before.files.get(file) != now.files.get(file))  # fmt: skip
            some = changed[0] + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
            return _convert(folder, out, qtype, f"{folder}, which has changed ({some}),", announce, progress)
    how = f"llamalite convert -o FILE.gguf {store.typed(str(folder))}"
    raise LlamaliteError(f"{out} stands, and was not made of {folder}: give it a file of its own, {how}")


def _convert(
    folder: Path, out: Path, qtype: str, what: str, announce: Announce | None, progress: Progress | None
) -> Path:
    from llamalite.converters import convert

    source = _Source.of(folder, qtype)  # of before: what changes meanwhile is converted next time
    if announce is not None:
        announce(f"converting {what} to {qtype}, once: {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    convert(folder, out, qtype=qtype, force=True, progress=progress)  # where it fails, the old file and its note stay
    source.write(out)
    return out
