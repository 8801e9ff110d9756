"""Delays freeing an object that several threads use until the last of them has finished.

    lifetime = Lifetime()
    with lifetime.hold(context.abort):       # in any thread: nothing is freed inside the ``with`` block
        decode()
    lifetime.end()                           # aborts the open blocks, waits for them, refuses new ones

This module does not import llama.cpp; a `llamalite.native.model.NativeModel` has a `Lifetime`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from llamalite.errors import GenerationCancelled, LlamaliteError
from llamalite.native.decode_thread import stop_at_exit


class Lifetime:
    """Counts who uses an object, so that `end` can abort them and wait before the object is freed.

    A thread that holds the object may hold it again, even after another thread has called `end`.
    """

    def __init__(self) -> None:
        self._holds: list[tuple[int, Callable[[], None]]] = []  # a thread's id, and what aborts its work
        self._is_ending = False

    @contextlib.contextmanager
    def hold(self, abort: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep the object alive for a ``with`` block, which should be short; `abort` is called to end it early.

        Raises ``GenerationCancelled`` if the object is being freed: before the block, or inside it once `abort` has
        ended the decode.
        """
        hold = threading.get_ident(), abort
        try:
            holds_already = self._is_held_by(hold[0])
            # `hold` appends, then reads `_is_ending`; `end` sets it, then reads the list. So at least one of the two
            # sees what the other has done.
            self._holds.append(hold)
            if self._is_ending and not holds_already:
                raise GenerationCancelled("the model is being closed")
            yield
        except GenerationCancelled:
            if self._is_ending:
                raise GenerationCancelled("the model is being closed") from None
            raise
        finally:
            with contextlib.suppress(ValueError):  # not there if an interrupt came before `append`
                self._holds.remove(hold)

    def end(self) -> None:
        """Abort the blocks that hold the object, wait for the last one, and refuse new ones.

        If `end` itself is interrupted, new ones are allowed again. Raises ``LlamaliteError`` when called inside such a
        block in the same thread: it would wait for itself forever.
        """
        if self._is_held_by(threading.get_ident()):
            raise LlamaliteError("this thread still computes with this model: close it when that has ended")
        was_ending, self._is_ending = self._is_ending, True
        try:
            while holds := list(self._holds):
                for _, abort in holds:
                    abort()
                time.sleep(0.002)
                stop_at_exit()
        except BaseException:
            self._is_ending = was_ending
            raise

    def _is_held_by(self, thread: int) -> bool:
        return any(holder == thread for holder, _ in list(self._holds))
