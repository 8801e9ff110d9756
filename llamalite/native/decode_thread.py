"""The single thread in which a model computes, whichever thread calls it.

    thread = DecodeThread()
    thread.run(decode, context.abort)        # waits for `decode`; Ctrl-C meanwhile calls `abort`, and is then raised

This module does not import llama.cpp: the work and its abort are functions. `llamalite.native.lifetime` decides when a
model may be freed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from llamalite.errors import GenerationCancelled, LlamaliteError

T = TypeVar("T")


class _Task(Generic[T]):
    """One call for the decode thread. After an interrupt, the caller can wait for its end again.

    A plain lock rather than a ``threading.Event``: Event is written in Python, and an interrupt inside it leaves its
    lock in an undefined state.
    """

    def __init__(self, call: Callable[[], T], abort: Callable[[], None]) -> None:
        self._call, self.abort = call, abort
        self._result: T | None = None
        self._error: BaseException | None = None
        self._has_begun = self._has_ended = self._is_withdrawn = False
        self._wake = threading.Lock()
        self._wake.acquire()

    def run(self) -> None:
        # `run` sets `_has_begun`, then reads `_is_withdrawn`; `stop` sets and reads them in the opposite order. So at
        # least one of the two sees what the other has set.
        self._has_begun = True
        if not self._is_withdrawn:
            try:
                self._result = self._call()
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                self._error = error
        self._has_ended = True
        self._wake.release()

    def wait(self) -> None:
        while not self._has_ended:
            self._wake.acquire(timeout=0.1)  # with a timeout: on Windows a signal does not wake a waiting thread

    def result(self) -> T:
        """Return what the call returned, or raise what it raised."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame: a reference cycle
        return cast("T", self._result)

    def stop(self) -> None:
        """Make sure that the call is not running and never will, whether or not it reached the queue."""
        while True:
            with contextlib.suppress(BaseException):  # a second signal must not leave the call running
                self._is_withdrawn = True
                if self._has_begun:
                    self.abort()
                    self.wait()
                return


class DecodeThread:
    """The thread that runs every decode of a model: of all its contexts, and of its draft model.

    There are two reasons for it. Python handles signals in the main thread, between bytecodes: during one C call that
    takes seconds, Ctrl-C would not be handled. And OpenMP, on which llama.cpp's CPU backend runs, keeps a team of
    threads for every thread that ever called it. As soon as the teams together have more threads than the machine has
    cores, GCC's runtime sleeps at barriers instead of spinning (``gomp_throttled_spin_count_var``, libgomp), and every
    operation of a graph ends at a barrier: with prompts read in one thread and answers generated in another, a machine
    of two cores generated 5% slower with a 1.1B model and half as fast with a 7M one. Passing a call to the thread
    costs about 0.03 ms.

    When the interpreter ends, the running call is aborted and no other is started: llama.cpp's library is about to be
    unloaded, and a thread inside it would crash the process. Threads do not survive a fork.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Task[Any] | None] | None = None  # None: the thread is not started yet
        self._process = 0  # the id of the process that has the thread
        self._worker: threading.Thread | None = None
        self._tasks: list[_Task[Any]] = []  # queued or running

    @property
    def is_current(self) -> bool:
        """Whether this is the calling thread."""
        return self._worker is not None and threading.get_ident() == self._worker.ident

    def run(self, call: Callable[[], T], abort: Callable[[], None]) -> T:
        """Run `call` in the thread, after the calls that are queued already, and return what it returns.

        If the calling thread is interrupted meanwhile, the call is aborted, and the exception is raised once it has
        ended. In the thread itself, the call runs at once.
        """
        stop_at_exit()
        if self.is_current:
            return call()
        self.check_process()
        tasks = self._queue or self._start()
        task = _Task(call, abort)
        try:
            self._tasks.append(task)
            tasks.put(task)
            task.wait()
        except BaseException:
            task.stop()
            raise
        finally:
            if task in self._tasks:  # not there if the interrupt came before `append`
                self._tasks.remove(task)
        stop_at_exit()
        return task.result()

    def submit(self, call: Callable[[], None], abort: Callable[[], None]) -> None:
        """Queue `call`, which handles its own exceptions, and return; `abort` ends it when the interpreter ends."""
        self.check_process()
        tasks = self._queue or self._start()

        def call_and_forget() -> None:
            try:
                call()
            finally:
                self._tasks.remove(task)

        task = _Task(call_and_forget, abort)
        self._tasks.append(task)
        tasks.put(task)

    def check_process(self) -> None:
        """Raise ``LlamaliteError`` in a process that was forked after the thread had started."""
        if self._queue is not None and self._process != os.getpid():
            raise LlamaliteError(
                "this process was forked from one in which the model had computed, and threads are not inherited: load "
                "the model in this process, or start the process in another way (multiprocessing's spawn)"
            )

    def _start(self) -> queue.SimpleQueue[_Task[Any] | None]:
        """Start the thread and return its queue; if the start is interrupted, the new thread ends again."""
        tasks: queue.SimpleQueue[_Task[Any] | None] = queue.SimpleQueue()
        with _starting:
            if self._queue is not None:  # another thread has started it meanwhile
                return self._queue
            try:
                worker = threading.Thread(target=self._work, args=(tasks,), name="llamalite-decode", daemon=True)
                worker.start()
                self._worker, self._queue, self._process = worker, tasks, os.getpid()
                _threads.add(self)
                weakref.finalize(self, tasks.put, None).atexit = False  # ends the thread of a model that is not closed
            except BaseException:
                self._queue = None
                tasks.put(None)
                raise
        return tasks

    @staticmethod
    def _work(tasks: queue.SimpleQueue[_Task[Any] | None]) -> None:
        while (task := tasks.get()) is not None:
            task.run()
            del task  # it refers to its context, which this thread must not keep alive while it waits

    def close(self) -> None:
        """End the thread; the next `run` starts another."""
        tasks, self._queue = self._queue, None
        if tasks is not None:
            tasks.put(None)

    def park(self) -> None:
        """Abort all calls and make the thread wait forever, so that it can do no harm."""
        if self._queue is None or self._process != os.getpid():
            return
        parked = threading.Lock()
        parked.acquire()

        def wait_here() -> None:
            parked.release()
            _wait_forever()

        self._queue.put(_Task(wait_here, lambda: None))
        while True:
            for task in list(self._tasks):
                task.abort()
            if parked.acquire(timeout=0.1):
                return


_starting = threading.Lock()
_threads: weakref.WeakSet[DecodeThread] = weakref.WeakSet()
_is_exiting = False


@atexit.register
def _park_all() -> None:
    global _is_exiting
    _is_exiting = True
    for thread in list(_threads):
        thread.park()


def is_daemon_at_exit() -> bool:
    """Tell whether the interpreter is ending and this is a daemon thread, which then must not even free memory."""
    return _is_exiting and threading.current_thread() is not threading.main_thread()


def stop_at_exit() -> None:
    """Raise ``GenerationCancelled`` when the interpreter is ending; in a daemon thread, never return."""
    if _is_exiting:
        if is_daemon_at_exit():
            _wait_forever()
        raise GenerationCancelled("the interpreter is ending")


def _wait_forever() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
