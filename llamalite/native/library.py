"""The one place where llama.cpp is loaded, initialised and listened to.

`llama()` is the low-level module of llama-cpp-python, `ggml_base()` the library with ggml's own kernels. llama.cpp
writes its log to stderr unless a callback takes it: ours hands each line to `logging` under ``llamalite.llama_cpp``,
and keeps the last errors, so that a failure can be told in llama.cpp's own words.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_logger = logging.getLogger("llamalite.llama_cpp")
# Silent until the application sets logging up: without a handler Python would write warnings to stderr itself.
logging.getLogger("llamalite").addHandler(logging.NullHandler())
# ggml_log_level (ggml.h): none, debug, info, warn, error, and 5 for the continuation of a line.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUATION = 5


class _Log:
    """Joins llama.cpp's fragments into lines, logs them, and lets callers collect the errors of one call.

    llama.cpp's own info lines are of debug interest to users of llamalite, and are logged as such.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line = ""
        self._level = logging.DEBUG
        self._listeners: list[collections.deque[str]] = []

    def __call__(self, level: int, text: bytes | None, _user_data: Any) -> None:
        with self._lock:
            if level != _CONTINUATION:
                self._level = _LEVELS.get(level, logging.DEBUG)
            self._line += (text or b"").decode("utf-8", "replace")
            *lines, self._line = self._line.split("\n")
            for line in lines:
                if line.strip():
                    if self._level >= logging.ERROR:
                        for listener in self._listeners:
                            listener.append(line.strip())
                    _logger.log(self._level, "%s", line.rstrip())

    @contextlib.contextmanager
    def errors(self) -> Iterator[collections.deque[str]]:
        heard: collections.deque[str] = collections.deque(maxlen=8)
        with self._lock:
            self._listeners.append(heard)
        try:
            yield heard
        finally:
            with self._lock:
                self._listeners = [one for one in self._listeners if one is not heard]


_log = _Log()


def errors_heard() -> contextlib.AbstractContextManager[collections.deque[str]]:
    """Collect the error lines that llama.cpp logs inside the ``with`` block, newest last, eight at the most."""
    return _log.errors()


def in_its_words(heard: Iterable[str]) -> str:
    """Return llama.cpp's error lines as one sentence, without the names of its functions and without its refrain."""
    lines = []
    for line in heard:
        where, colon, rest = line.lstrip("- ").partition(": ")
        lines.append(rest if colon and where.isidentifier() else line.lstrip("- "))
    told = [line for line in lines if line != "failed to load model"] or lines
    return "; ".join(line.rstrip(":") for line in dict.fromkeys(told)) or "it gave no reason"


@functools.cache
def llama() -> Any:
    """Return llama-cpp-python's low-level module, with the log taken over and the backends initialised."""
    from llama_cpp import llama_cpp as lib

    # llama_log_set keeps a bare pointer: the callback object has to live as long as the library.
    lib._llamalite_log_callback = lib.llama_log_callback(_log)
    lib.llama_log_set(lib._llamalite_log_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib


@functools.cache
def ggml_base() -> ctypes.CDLL:
    """Return libggml-base, which holds ggml's quantization kernels; llama-cpp-python ships it beside libllama."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")
    for path in (folder / name for name in names):
        if path.exists():
            return ctypes.CDLL(str(path))
    found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
    raise FileNotFoundError(f"no ggml-base library in {folder}, found {found}: reinstall llama-cpp-python")


def version() -> str:
    """Return the versions of llama-cpp-python and of the llama.cpp inside it, for reports and bug reports."""
    import llama_cpp

    return f"llama-cpp-python {llama_cpp.__version__}, llama.cpp {llama().llama_version().decode()}"
