"""Compiles kernels, or loads those that an earlier process compiled.

Machine code is kept in ``NUMBA_CACHE_DIR``, else in the user's cache folder, in a folder named by a digest of this
package's sources: Numba alone notices changes in the file that defines a kernel, but not in those that it imports from.
The package's own folder is never written to. Numba keeps the code of different processors apart.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import types

from llamalite.converters.kernels.fast.contractions import Contraction
from llamalite.files.user_folders import cache_folder

_logger = logging.getLogger(__name__)

_BYTES = types.Array(types.uint8, 1, "C")
_READ_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_READ_FLOATS = types.Array(types.float32, 1, "C", readonly=True)


def compiled(
    function: Callable[..., Any], contraction: Contraction, settings: tuple[Any, ...], *, weighted: bool
) -> Callable[..., Any]:
    """Compile a kernel.

    Its arguments are (contraction, source, kind, n_blocks, [scratch, importance,] *settings, out); only a `weighted`
    kernel has scratch and importance. `contraction` is a `Contraction`; source, scratch and out are bytes, importance
    and settings float32, the rest integers. The kernel runs without the GIL and has no fast-math. If no folder can be
    written to, it is compiled in every process.
    """
    arguments = [numba.typeof(contraction), _READ_BYTES, types.int64, types.int64]
    arguments += [_BYTES, _READ_FLOATS] if weighted else []
    arguments += [types.int64 if isinstance(setting, int) else _READ_FLOATS for setting in settings]
    return _compiled(function, types.void(*arguments, _BYTES))


def _compiled(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    options = {"nogil": True, "error_model": "numpy"}
    log = logging.getLogger("numba")
    root, level = numba.config.CACHE_DIR, log.level
    try:
        log.setLevel(max(logging.INFO, level))  # at DEBUG Numba logs every step of every function
        numba.config.CACHE_DIR = str(_writable(kernel_folder()))  # Numba reads it when a function is decorated
        kernel: Callable[..., Any] = numba.njit(signature, cache=True, **options)(function)
    except OSError as error:
        _logger.info("compiled kernels are not kept for the next run: %s", error)
        kernel = numba.njit(signature, **options)(function)
    finally:
        numba.config.CACHE_DIR = root
        log.setLevel(level)
    return kernel


def _writable(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


@functools.cache
def kernel_folder() -> Path:
    """Return the folder for the machine code of these sources; it need not exist yet."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    root = numba.config.CACHE_DIR
    return (Path(root) if root else cache_folder()) / f"kernels-{digest.hexdigest()[:16]}"
