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
import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from llamalite.errors import OutOfMemoryError
from llamalite.native import installed, verdict

T = TypeVar("T")
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
            if self._level < logging.ERROR and not _logger.isEnabledFor(self._level):
                self._line = ""  # a load tells thousands of lines that usually nobody wants to see
                return
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


_stderr = threading.Lock()  # file descriptor 2 is one for the whole process


@contextlib.contextmanager
def stderr_of_c() -> Iterator[list[str]]:
    """Collect the lines that C writes to standard error inside the ``with`` block, past llama.cpp's own log.

    llama.cpp's grammar parser tells why it fails in no other way (``llama_grammar_parser::parse``, llama-grammar.cpp).
    Keep the block short: what other threads write meanwhile is collected too, and shown after it.
    """
    import tempfile

    told: list[str] = []
    try:
        before = os.dup(2)
    except OSError:  # a program without a console has no standard error
        yield told
        return
    with _stderr, tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield told
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            told += file.read().decode("utf-8", "replace").splitlines()


@functools.cache
def llama() -> Any:
    """Return llama-cpp-python's low-level module, with the log taken over and the backends initialised.

    Raises ``ModelLoadError`` where the library would end the process (`llamalite.native.verdict`).
    """
    verdict.current().require()
    installed.package()
    lib: Any = importlib.import_module("llama_cpp.llama_cpp")
    # llama_log_set keeps a bare pointer: the callback object has to live as long as the library.
    lib._llamalite_log_callback = lib.llama_log_callback(_log)
    lib.llama_log_set(lib._llamalite_log_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib


@functools.cache
def ggml_base() -> ctypes.CDLL:
    """Return libggml-base, which holds ggml's quantization kernels; llama-cpp-python ships it beside libllama.

    It works on where only models cannot be computed. Raises ``ModelLoadError`` where not even that is so.
    """
    verdict.current().require(("features", "quantization"))
    return installed.library("ggml-base")


def ggml() -> ctypes.CDLL:
    """Return libggml, which knows the backends and their devices."""
    return installed.library("ggml")


def version() -> str:
    """Return the versions of llama-cpp-python and of the llama.cpp inside it, for reports and bug reports."""
    import importlib.metadata

    ours = importlib.metadata.version("llama-cpp-python")
    return f"llama-cpp-python {ours}, llama.cpp {llama().llama_version().decode()}"


_stack_size = threading.Lock()  # threading.stack_size is one setting for the whole process


def on_deep_stack(n_bytes: int, call: Callable[[], T]) -> T:
    """Return what `call` returns, called in a thread whose stack has `n_bytes` (rounded up; memory only as it is used).

    Raises ``OutOfMemoryError`` where the system gives no such stack.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="llamalite-deep-stack", daemon=True)
    with _stack_size:
        before = threading.stack_size(-(-n_bytes >> 20) << 20)
        try:
            thread.start()
        except RuntimeError as error:
            raise OutOfMemoryError(f"no thread with a stack of {n_bytes >> 20} MiB can be started: {error}") from None
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
