"""Downloads models from the Hugging Face hub through huggingface_hub into its cache: the only use of the network.

    folder = fetch_checkpoint("HuggingFaceTB/SmolLM2-135M")      # then converters.convert(folder, ...)
    path = fetch_model("bartowski/Llama-3.2-1B-Instruct-GGUF", "Q4_K_M")

Only what a conversion reads is downloaded: config, tokenizer, model card, and the weights in one format, safetensors if
there are any. huggingface_hub checks, resumes and keeps the files, draws its own progress bars, and obeys ``HF_HOME``,
``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``. It is imported, and the network used, only when one of these
functions is called with an ``org/name``. This module does not read the files.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamalite.errors import HubError, HubUnreachableError, RepositoryNotFoundError
from llamalite.files import shards
from llamalite.files.weights import weight_files
from llamalite.quant_types import FILE_TYPES, file_type, type_name
from llamalite.store.preference import DEFAULT_TYPE, preferred

_logger = logging.getLogger(__name__)

Announce = Callable[[str], None]
"""Called with one line before the hub is asked (a `Question`), and before something is downloaded or converted."""


class Question(str):
    """A line that says what the hub is asked; it is of interest only until the answer arrives."""


# Slightly stricter than huggingface_hub's own rule (validate_repo_id): no leading dot or dash, no paths.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"{_PART}/{_PART}")

_SMALL_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "README.md"),
    *("chat_template.json", "chat_template.jinja", "additional_chat_templates/*.jinja"),
)
_META_WEIGHTS = "consolidated.[0-9][0-9].pth"
_CONFIGS = ("config.json", "params.json")  # every checkpoint has one of them


@dataclass(frozen=True)
class _Listing:
    """The files of a repository, with their sizes if the hub reports them."""

    files: dict[str, int | None]

    def matching(self, patterns: Iterable[str]) -> list[str]:
        return [name for name in self.files if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def n_bytes(self, names: Iterable[str]) -> int:
        return sum(self.files[name] or 0 for name in names)

    def weights(self) -> list[str]:
        """Return the files of weights that a conversion reads, in the one format that counts."""
        if chosen := weight_files([name for name in self.files if "/" not in name]):
            return [*([chosen.index] if chosen.index else []), *chosen.files]
        weights = self.matching([_META_WEIGHTS])
        return ["params.json", *weights] if weights and "params.json" in self.files else weights


def is_repo_id(source: str | os.PathLike[str]) -> bool:
    """Return whether `source` is ``org/name`` and not a path: no such file, and no folder ``org``, exists.

    >>> is_repo_id("meta-llama/Llama-3.2-1B"), is_repo_id("./model"), is_repo_id("a/b/c"), is_repo_id("../b")
    (True, False, False, False)
    """
    text = os.fspath(source)
    if not _REPO_ID.fullmatch(text) or ".." in text or "--" in text or text.endswith((".git", ".gguf")):
        return False
    return not os.path.lexists(text) and not Path(text).parent.is_dir()


def split_type(reference: str) -> tuple[str, str | None]:
    """Split ``org/name-GGUF:Q4_K_M`` into ``("org/name-GGUF", "Q4_K_M")``; the type is None if none is given."""
    repo_id, colon, qtype = reference.partition(":")
    return repo_id, type_name(qtype) if colon else None


def fetch_checkpoint(
    repo_id: str, revision: str | None = None, *, announce: Announce | None = None, progress: bool = False
) -> Path:
    """Return the folder in the hub's cache with the checkpoint of `repo_id` at `revision` (a branch, tag or commit).

    Files that are in the cache are not downloaded again. Without the network, or with ``HF_HUB_OFFLINE=1``, only the
    cache is used. `progress` draws huggingface_hub's bars. ``HubError`` says what is missing and what to do.
    """
    return _fetch(repo_id, revision, lambda listing: _checkpoint(repo_id, listing), _CONFIGS, announce, progress)


def fetch_model(
    repo_id: str,
    qtype: str | None = None,
    revision: str | None = None,
    *,
    announce: Announce | None = None,
    progress: bool = False,
) -> Path:
    """Return the path in the hub's cache of the GGUF file of type `qtype` in `repo_id`; the first of a split model.

    Without `qtype`, the order of `llamalite.store.preference` decides. If the repository has no such file, but has
    weights to convert, the result is the folder of the checkpoint. ``HubError`` says what the repository has.
    """
    chosen: list[str] = []

    def wanted(listing: _Listing) -> list[str]:
        ggufs = listing.matching(["*.gguf"])
        if not ggufs or (listing.weights() and not _has_type(ggufs, qtype)):
            file_type(qtype or DEFAULT_TYPE)  # an unknown type is refused before the download
            return _checkpoint(repo_id, listing)
        chosen[:] = _choose_gguf(repo_id, ggufs, qtype)
        return chosen

    folder = _fetch(repo_id, revision, wanted, ("*.gguf", "*/*.gguf", *_CONFIGS), announce, progress)
    if not chosen:  # it is a checkpoint, or offline: then the cache decides
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.gguf"))]
        if not names or (any((folder / name).exists() for name in _CONFIGS) and not _has_type(names, qtype)):
            return folder
        chosen = _choose_gguf(repo_id, names, qtype)
    return folder / chosen[0]


def _checkpoint(repo_id: str, listing: _Listing) -> list[str]:
    """Return the files of `repo_id` that a conversion reads."""
    if weights := listing.weights():
        return [*listing.matching(_SMALL_FILES), *weights]
    if ggufs := listing.matching(["*.gguf"]):
        raise HubError(
            f"{repo_id} has GGUF files ({_shortened(ggufs)}) and nothing to convert: llamalite run {repo_id}"
        )
    raise HubError(
        f"{repo_id} has no model*.safetensors, pytorch_model*.bin or consolidated.*.pth at its top level "
        f"(found {_shortened(listing.files)}): name a repository with a model's weights, or with GGUF files"
    )


def _fetch(
    repo_id: str,
    revision: str | None,
    wanted: Callable[[_Listing], Sequence[str]],
    cached: Sequence[str],
    announce: Announce | None,
    progress: bool,
) -> Path:
    """Download the files that `wanted` selects from the listing, and return the folder of the revision.

    Offline, return the folder in the cache if it has a file that matches one of the patterns `cached`.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise ValueError(f"{repo_id!r} is not a repository on the hub: expected org/name")
    import huggingface_hub
    from huggingface_hub import constants, errors

    def say(line: str) -> None:
        _logger.info("%s", line)
        if announce is not None:
            announce(line)

    # The base class of its HTTP library's errors: that library was requests, is httpx, and may change again.
    unreachable: tuple[type[Exception], ...] = (OSError, errors.HfHubHTTPError.__bases__[0])
    options: dict[str, Any] = {"repo_id": repo_id, "revision": revision}
    if not progress:
        options["tqdm_class"] = _silent_bars()
    try:
        if not constants.HF_HUB_OFFLINE:
            say(Question(f"asking {constants.ENDPOINT} for {repo_id}"))
        try:
            repository = huggingface_hub.HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except unreachable as error:
            return _from_cache(options, cached, error)
        listing = _Listing({file.rfilename: file.size for file in repository.siblings or []})
        names = wanted(listing)
        size = f", {listing.n_bytes(names) / 1e9:.2f} GB" if any(listing.files.values()) else ""
        say(f"fetching {len(names)} files of {repo_id}{size}, into {constants.HF_HUB_CACHE}, unless they are there")
        return Path(huggingface_hub.snapshot_download(allow_patterns=[glob.escape(name) for name in names], **options))
    except unreachable as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise  # a disk's error, which says so itself
        raise _as_hub_error(repo_id, revision, error) from error


def _from_cache(options: dict[str, Any], cached: Sequence[str], error: Exception) -> Path:
    """Return the folder that the cache has for the repository; where it has none, `error` is raised."""
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(allow_patterns=["config.json"], local_files_only=True, **options)
        )
    except OSError:
        raise error from None
    if not any(any(folder.glob(pattern)) for pattern in cached):
        raise error
    _logger.info("the hub is out of reach: %s is taken from the cache", options["repo_id"])
    return folder


def _silent_bars() -> type[Any]:
    from huggingface_hub.utils.tqdm import tqdm

    bar: Any = tqdm

    class Silent(bar):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))

    return Silent


def _as_hub_error(repo_id: str, revision: str | None, error: Exception) -> HubError:
    """Return the error that says why nothing was downloaded, and what to do about it."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{repo_id} is gated: accept its terms at {page}, then log in with `hf auth login` or set HF_TOKEN to a "
            "token of that account"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return RepositoryNotFoundError(
            f"{constants.ENDPOINT} has no model {repo_id}, or it is private: check the name at {page}; for a private "
            "model log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo_id} has no revision {revision!r}: see the branches and tags at {page}/tree/main")
    if constants.HF_HUB_OFFLINE:
        return HubError(
            f"{repo_id} is not complete in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set: unset it to download it"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return HubError(f"{constants.ENDPOINT} refuses access to {repo_id} ({status}): check HF_TOKEN, or log in again")
    if status is not None:
        return HubError(f"{constants.ENDPOINT} answers {status} for {repo_id}: try again later, or check HF_ENDPOINT")
    reason = (str(error) or type(error).__name__).strip().split("\n")[0]
    return HubUnreachableError(
        f"{constants.ENDPOINT} cannot be reached for {repo_id} ({reason}): check the network, or HF_ENDPOINT; models "
        "in the cache work without it"
    )


def _by_type(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the files of each model among `names` by its type, the first shard first."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if not Path(name).name.lower().startswith(("mmproj", "imatrix")):
            models.setdefault(shards.stem_of(name.removesuffix(".gguf")), []).append(name)
    by_type: dict[str, list[str]] = {}
    for stem, files in models.items():
        by_type.setdefault(_type_of(stem) or stem, files)
    return by_type


def _has_type(names: Iterable[str], qtype: str | None) -> bool:
    by_type = _by_type(names)
    return bool(by_type) if qtype is None else qtype.upper() in by_type


def _choose_gguf(repo_id: str, names: Sequence[str], qtype: str | None) -> list[str]:
    """Return the files of the model of type `qtype` among `names`, the first shard first."""
    by_type = _by_type(names)
    if not by_type:
        raise HubError(f"{repo_id} has no GGUF file of a model ({_shortened(names)})")
    if qtype is not None:
        if qtype.upper() not in by_type:
            raise HubError(f"{repo_id} has no {qtype.upper()}, only {', '.join(by_type)}")
        return by_type[qtype.upper()]
    return by_type[preferred(by_type) or next(iter(by_type))]


def _type_of(stem: str) -> str | None:
    """Return the type at the end of a file's name, as in ``Llama-3.2-1B-Instruct-Q4_K_M`` or ``tiny.f16``."""
    last = type_name(re.split(r"[-.]", stem)[-1])
    return last if last in FILE_TYPES else None


def _shortened(names: Iterable[str], n: int = 6) -> str:
    listed = sorted(names)
    return ", ".join(listed[:n]) + (", ..." if len(listed) > n else "") if listed else "nothing"
