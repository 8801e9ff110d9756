"""Who computes with a model: one thread, whoever asks; and nothing is freed while somebody uses it.

    thread, users = DecodeThread(), Users()
    with users.hold(context.abort):                  # in any thread: what is used stays for the ``with`` block
        thread.run(decode, context.abort)            # in the one thread; Ctrl-C in this one aborts it, and is raised
    users.end()                                      # aborts those who hold, waits for the last, lets nobody in again

The module knows no llama.cpp: what is computed is a function, and what aborts it is another.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

from llamalite.errors import GenerationCancelled, LlamaliteError

T = TypeVar("T")


class _Task(Generic[T]):
    """One call for the thread, whose end can be waited for again after an interrupt.

    Not a ``threading.Event``: it is written in Python, and an interrupt inside it leaves its lock in disorder.
    """

    def __init__(self, call: Callable[[], T], abort: Callable[[], None]) -> None:
        self._call, self.abort = call, abort
        self._returned: T | None = None
        self._raised: BaseException | None = None
        self._has_begun = self._has_ended = self._is_withdrawn = False
        self._wake = threading.Lock()
        self._wake.acquire()

    def run(self) -> None:
        self._has_begun = True  # first this, then the look; `stop` does it the other way round, and one sees the other
        if not self._is_withdrawn:
            try:
                self._returned = self._call()
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                self._raised = error
        self._has_ended = True
        self._wake.release()

    def wait(self) -> None:
        while not self._has_ended:
            self._wake.acquire(timeout=0.1)  # in steps: Windows wakes no wait for a signal

    def result(self) -> T:
        """Return what the call returned, or raise what it raised."""
        raised, self._raised = self._raised, None
        if raised is not None:
            try:
                raise raised
            finally:
                del raised  # its traceback holds this frame
        return cast("T", self._returned)

    def stop(self) -> None:
        """Return when the call does not run and never will, whether or not it was handed over."""
        while True:
            with contextlib.suppress(BaseException):  # what a second signal raises must not leave the call running
                self._is_withdrawn = True
                if self._has_begun:
                    self.abort()
                    self.wait()
                return


class DecodeThread:
    """The one thread that computes for a model, whatever thread asks: every decode, long or short, of draft models too.

    Python delivers signals to the main thread between bytecodes: inside one C call of seconds it would hear no Ctrl-C.
    And OpenMP, which llama.cpp's CPU backend runs on, keeps a team of threads for every thread that ever called it. As
    soon as the teams have more threads than the machine has cores, GCC's runtime no longer spins at barriers but sleeps
    (``gomp_throttled_spin_count_var``, libgomp), and every operation of a graph ends at one: with prompts read in one
    thread and answers in another, two cores generated 5% slower with a 1.1B model, and half as fast with one of 7M.
    Handing a call over costs about 0.03 ms.

    When the interpreter ends, what runs is aborted and nothing more is computed: llama.cpp's library is taken down, and
    a thread inside it would take the process with it. A thread does not survive a fork.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Task[Any] | None] | None = None  # None: no thread was needed yet
        self._process = 0  # the id of the process that has the thread
        self._tasks: list[_Task[Any]] = []  # handed over, and not at their end

    def run(self, call: Callable[[], T], abort: Callable[[], None]) -> T:
        """Return what `call` returns there, after the calls of other threads that came before.

        When this thread is interrupted meanwhile, the call is aborted, its end waited for, and the exception raised.
        """
        stop_at_the_end()
        tasks = self._queue or self._start()
        if self._process != os.getpid():
            raise LlamaliteError(
                "this process was forked from one in which the model had computed, and threads are not inherited: load "
                "the model in this process, or start it otherwise (multiprocessing's spawn)"
            )
        task = _Task(call, abort)
        try:
            self._tasks.append(task)
            tasks.put(task)
            task.wait()
        except BaseException:
            task.stop()
            raise
        finally:
            if task in self._tasks:  # else interrupted before it was there
                self._tasks.remove(task)
        stop_at_the_end()
        return task.result()

    def _start(self) -> queue.SimpleQueue[_Task[Any] | None]:
        """Return the queue of a new thread; one whose start is interrupted ends, and is not heard of again."""
        tasks: queue.SimpleQueue[_Task[Any] | None] = queue.SimpleQueue()
        with _starting:
            if self._queue is not None:  # of another thread that asked at the same time
                return self._queue
            try:
                threading.Thread(target=self._work, args=(tasks,), name="llamalite-decode", daemon=True).start()
                self._queue, self._process = tasks, os.getpid()
                _threads.add(self)
                weakref.finalize(self, tasks.put, None).atexit = False  # a model that nobody closed ends its thread too
            except BaseException:
                self._queue = None
                tasks.put(None)
                raise
        return tasks

    @staticmethod
    def _work(tasks: queue.SimpleQueue[_Task[Any] | None]) -> None:
        while (task := tasks.get()) is not None:
            task.run()
            del task  # it holds its reader, which a thread that waits must not keep

    def close(self) -> None:
        """End the thread; the next call would start another."""
        tasks, self._queue = self._queue, None
        if tasks is not None:
            tasks.put(None)

    def park(self) -> None:
        """Abort what was handed over, and leave the thread where it does no harm: waiting, for ever."""
        if self._queue is None or self._process != os.getpid():
            return
        arrived = threading.Lock()
        arrived.acquire()

        def stay() -> None:
            arrived.release()
            _stay()

        self._queue.put(_Task(stay, lambda: None))
        while True:
            for task in list(self._tasks):
                task.abort()
            if arrived.acquire(timeout=0.1):
                return


class Users:
    """Who uses something that another thread may free: they are ended, or waited for, before that.

    A thread that is in may hold again, also when the end has begun.
    """

    def __init__(self) -> None:
        self._uses: list[tuple[int, Callable[[], None]]] = []  # a thread, and what aborts what it does
        self._is_ending = False

    @contextlib.contextmanager
    def hold(self, abort: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep what is used for the ``with`` block, which should be short: `abort` is called to end it early.

        ``GenerationCancelled`` when the end has begun, and in place of what the abort made a decode raise.
        """
        use = threading.get_ident(), abort
        try:
            is_in = self._has(use[0])
            self._uses.append(
                use
            )  # first this, then the look; `end` does it the other way round, and one sees the other
            if self._is_ending and not is_in:
                raise GenerationCancelled("the model is being closed")
            yield
        except GenerationCancelled:
            if self._is_ending:
                raise GenerationCancelled("the model is being closed") from None
            raise
        finally:
            with contextlib.suppress(ValueError):  # interrupted before it was there
                self._uses.remove(use)

    def end(self) -> None:
        """Abort whoever holds, wait for the last one, and let nobody in again; interrupted, it lets them in again.

        ``LlamaliteError`` where this thread itself holds: it would wait for ever.
        """
        if self._has(threading.get_ident()):
            raise LlamaliteError("this thread still computes with this model: close it when that has ended")
        was_ending, self._is_ending = self._is_ending, True
        try:
            while uses := list(self._uses):
                for _, abort in uses:
                    abort()
                time.sleep(0.002)
                stop_at_the_end()
        except BaseException:
            self._is_ending = was_ending
            raise

    def _has(self, thread: int) -> bool:
        return any(one == thread for one, _ in list(self._uses))


_starting = threading.Lock()
_threads: weakref.WeakSet[DecodeThread] = weakref.WeakSet()
_interpreter_ends = False


@atexit.register
def _park_all() -> None:
    global _interpreter_ends
    _interpreter_ends = True
    for thread in list(_threads):
        thread.park()


def is_left_behind() -> bool:
    """Tell whether the interpreter ends and this thread, a daemon, does not: it must not even free what it has."""
    return _interpreter_ends and threading.current_thread() is not threading.main_thread()


def stop_at_the_end() -> None:
    """Raise ``GenerationCancelled`` when the interpreter ends; a thread that it leaves behind stays here."""
    if _interpreter_ends:
        if is_left_behind():
            _stay()
        raise GenerationCancelled("the interpreter is ending")


def _stay() -> None:
    for_ever = threading.Lock()
    for_ever.acquire()
    for_ever.acquire()
