"""Raising an exception inside a running actor, and nowhere else.

CPython can set an exception in another thread, but delivers it at some later bytecode: in a hook, in the ack, in the next job.
So the exception is set only while the guard is armed, under the lock that disarming takes; and disarming takes back an exception
that was set but not delivered yet. An actor whose body had returned is a success, however close the interruption came: the call is
made from C code that keeps the result, because the first moment at which Python code could be interrupted after the body's last
instruction lies before the result could be stored.

    worker thread                                   another thread
      guard.run(fn)  arm ─ fn(...) ─ disarm           guard.interrupt(Shutdown)   False: not armed, nothing happened

It cannot interrupt a call that is blocked outside the interpreter; what becomes of such a job is the lease's business.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from dramatiq.middleware import Interrupt

R = TypeVar("R")

_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Guard:
    """Lets other threads interrupt one execution of an actor's body."""

    __slots__ = ("_armed", "_lock", "_sent", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed = False
        self._sent = False
        self._thread = 0

    def run(self, body: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        """Call ``body``; while it runs, ``interrupt`` works."""
        # A defaultdict calls the body and keeps what it returned, both in C.
        results: defaultdict[str, R] = defaultdict(partial(body, *args, **kwargs))
        error: BaseException | None = None
        self._thread = threading.get_ident()
        try:
            self._armed = True
            results["own"]
        except BaseException as raised:
            error = raised
        # Single instructions up to here: threads change places, and exceptions arrive, at calls only.
        self._armed = False
        if self._sent:
            try:
                self._take_back()
            except Interrupt:
                # It was delivered on the way there; there is no second one, but nothing is lost by looking.
                self._take_back()
        if error is None:
            return results["own"]
        try:
            raise error
        finally:
            # Its traceback holds this frame: without the name there is no cycle.
            del error

    def _take_back(self) -> None:
        with self._lock:
            _set_exception(ctypes.c_ulong(self._thread), None)

    def stack(self) -> traceback.StackSummary | None:
        """Where the body's thread is right now; None: that thread is gone."""
        frame = sys._current_frames().get(self._thread)
        return None if frame is None else traceback.extract_stack(frame)

    def pause(self) -> None:
        """Let nothing interrupt the body until ``resume``: for its own use, around what must not be torn.

        Raises:
            Interrupt: one that was set before.
        """
        with self._lock:
            self._armed = False
        # CPython delivers at calls and at the turns of loops: here, and not once the body has gone on.
        for _ in range(2):
            pass

    def resume(self) -> None:
        """The body may be interrupted again."""
        with self._lock:
            self._armed = True

    def interrupt(self, exception: type[Interrupt]) -> bool:
        """Raise ``exception`` in the body's thread. False: the body is not running (any more)."""
        with self._lock:
            thread, what = ctypes.c_ulong(self._thread), ctypes.py_object(exception)
            if not self._armed:
                return False
            # Nothing between this look and the call lets another thread run.
            self._sent = True
            return bool(_set_exception(thread, what))
