"""Loads and initialises llama.cpp, and receives its log.

`llama()` is the low-level module of llama-cpp-python, `ggml_base()` the library with ggml's own kernels. llama.cpp
writes its log to stderr unless there is a callback. Ours passes each line to `logging`, under ``llamalite.llama_cpp``,
and collects the errors of a call, so that an exception can quote llama.cpp.
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

from llamalite.errors import ModelLoadError, OutOfMemoryError
from llamalite.native import installed, verdict

T = TypeVar("T")
_logger = logging.getLogger("llamalite.llama_cpp")
# Without a handler, Python itself would write warnings to stderr in an application that has not set up logging.
logging.getLogger("llamalite").addHandler(logging.NullHandler())
# ggml_log_level (ggml.h): none, debug, info, warn, error, and 5 for the continuation of a line.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUATION = 5


class _Log:
    """Joins llama.cpp's fragments into lines, logs them, and collects the errors of a call.

    llama.cpp's info lines are logged as debug lines, since users of llamalite rarely want to see them.
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
                self._line = ""  # a load logs thousands of lines
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
        errors: collections.deque[str] = collections.deque(maxlen=8)
        with self._lock:
            self._listeners.append(errors)
        try:
            yield errors
        finally:
            with self._lock:
                self._listeners = [listener for listener in self._listeners if listener is not errors]


_log = _Log()


def collect_errors() -> contextlib.AbstractContextManager[collections.deque[str]]:
    """Collect the last eight error lines that llama.cpp logs inside the ``with`` block, newest last."""
    return _log.errors()


def error_text(errors: Iterable[str]) -> str:
    """Return llama.cpp's error lines as one sentence, without its function names and repetitions."""
    lines = []
    for line in errors:
        where, colon, rest = line.lstrip("- ").partition(": ")
        lines.append(rest if colon and where.isidentifier() else line.lstrip("- "))
    reasons = [line for line in lines if line != "failed to load model"] or lines
    return "; ".join(line.rstrip(":") for line in dict.fromkeys(reasons)) or "it gave no reason"


_stderr = threading.Lock()  # the whole process shares file descriptor 2


@contextlib.contextmanager
def stderr_of_c() -> Iterator[list[str]]:
    """Collect the lines that C writes to standard error, not to llama.cpp's log, inside the ``with`` block.

    llama.cpp's grammar parser reports its errors only in this way (``llama_grammar_parser::parse``, llama-grammar.cpp).
    Keep the block short: lines that other threads write meanwhile are collected too.
    """
    import tempfile

    lines: list[str] = []
    try:
        before = os.dup(2)
    except OSError:  # a program without a console has no standard error
        yield lines
        return
    with _stderr, tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            lines += file.read().decode("utf-8", "replace").splitlines()


@functools.cache
def llama() -> Any:
    """Return llama-cpp-python's low-level module, with our log callback and its backends initialised.

    Raises ``ModelLoadError`` if the library cannot be loaded, or would crash the process (`llamalite.native.verdict`).
    """
    verdict.current().require()
    installed.package()
    try:
        lib: Any = importlib.import_module("llama_cpp.llama_cpp")
    except (OSError, RuntimeError) as error:  # a file is missing, or is for another system
        raise ModelLoadError(f"llama-cpp-python cannot be loaded: {error}. {verdict.repair()}") from None
    # llama_log_set keeps only a pointer, so the callback object has to live as long as the library.
    lib._llamalite_log_callback = lib.llama_log_callback(_log)
    lib.llama_log_set(lib._llamalite_log_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib


@functools.cache
def ggml_base() -> ctypes.CDLL:
    """Return libggml-base, with ggml's quantization kernels; llama-cpp-python installs it beside libllama.

    It may work even if models cannot be computed. Raises ``ModelLoadError`` if it does not.
    """
    verdict.current().require(("features", "quantization"))
    return installed.library("ggml-base")


def ggml() -> ctypes.CDLL:
    """Return libggml, which has the list of backends and devices."""
    return installed.library("ggml")


def version() -> str:
    """Return the versions of llama-cpp-python and of the llama.cpp inside it, for reports and bug reports."""
    import importlib.metadata

    ours = importlib.metadata.version("llama-cpp-python")
    return f"llama-cpp-python {ours}, llama.cpp {llama().llama_version().decode()}"


_stack_size = threading.Lock()  # the whole process shares threading.stack_size


def on_deep_stack(n_bytes: int, call: Callable[[], T]) -> T:
    """Run `call` in a thread with a stack of `n_bytes`, and return its result. Only used pages of it take memory.

    Raises ``OutOfMemoryError`` if the system refuses such a stack.
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
