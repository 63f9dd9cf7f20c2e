"""The process that a worker runs in: whether it is ours to end, how it asks for its successor, and what its exit codes say.

    0     stopped as it was told
    3     refused to start: a setting is wrong, the database is missing, not migrated or lacks a right, or something failed at boot
    70    broken off by the watchdog
    75    recycled: it asked for it itself, after a job that did not end, or at a limit of ``switchyard worker``

Ours are the processes that ``dramatiq`` and ``switchyard worker`` make for a worker. A worker inside somebody's own process, such as a
test's or a web server's, never ends that process, also if the server forked it.
"""

from __future__ import annotations

import gc
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Set
from typing import Final, NoReturn

REFUSED: Final = 3
BROKEN_OFF: Final = 70
RECYCLED: Final = 75

#: How long the last line may take to be written, in seconds: whoever reads it may hang as well.
_LAST_WORDS: Final = 1.0

#: The functions in which a command loads the application: Dramatiq's worker processes, the processes beside them, and periodiq.
_COMMANDS: Final = frozenset({("dramatiq.cli", "worker_process"), ("dramatiq.cli", "fork_process"), ("periodiq", "main")})

#: The function that a worker process of Dramatiq's spends its life in.
_WORKER: Final = frozenset({("dramatiq.cli", "worker_process")})
#: Where a process that ``multiprocessing`` made begins: what its stack holds beyond is a copy of its parent's.
_BEGINNING: Final = ("multiprocessing.process", "_bootstrap")

_ask: Callable[[], None] | None = None
#: The process that was found to be made for a worker; one that it forks inherits this, and is another.
_ours: int | None = None


def supervised_by(ask: Callable[[], None]) -> None:
    """This process is one of ``switchyard worker``; ``ask`` makes it stop once its supervisor knows that it needs another."""
    global _ask, _ours
    _ask, _ours = ask, os.getpid()


def worker_boots() -> None:
    """A worker starts, on the thread that this is called on. Only there, and only now, it can be told whether Dramatiq made the process for
    it: what asks later are other threads, or the process's end."""
    global _ours
    if _is_called_by(_WORKER):
        _ours = os.getpid()


def is_supervised() -> bool:
    """Whether a supervisor starts the next process before this one is gone."""
    return _ask is not None and is_ours()


def is_ours() -> bool:
    """Whether the process exists for the worker alone; known once the worker boots."""
    return _ours == os.getpid()


def is_booting() -> bool:
    """Whether a command (``dramatiq``, ``periodiq``) is loading the application, and this is called from there: on the same thread, in the
    process that the command made, forked or spawned.

    That one of their modules is loaded says nothing: an application may import them. Nor does the process's parent: a web server makes
    processes, too. ``switchyard worker`` does not need this, it is our own code that loads the application there.
    """
    return _is_called_by(_COMMANDS)


def _is_called_by(functions: Set[tuple[str, str]]) -> bool:
    """Whether one of these (module and name) is on the stack, in this process."""
    frame = inspect.currentframe()
    while frame is not None:
        function = (frame.f_globals.get("__name__", ""), frame.f_code.co_name)
        if function in functions:
            return True
        if function == _BEGINNING:
            return False
        frame = frame.f_back
    return False


def ask_to_recycle() -> None:
    """Have this process stop in order and another take its place. Under ``dramatiq`` by a SIGTERM, which in the end stops them all."""
    if _ask is not None and is_supervised():
        _ask()
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def refuse(reason: str) -> NoReturn:
    """End a process that cannot start, with one line; Dramatiq's own handling would print a traceback or go on without us."""
    sys.stderr.write(f"switchyard: {reason}\n")
    sys.stderr.flush()
    raise SystemExit(REFUSED)


def spare_last_collections() -> None:
    """The process is about to end in order, and its memory goes back as a whole: collecting what hundreds of modules hold takes a third of
    a second of a core, in which whoever restarts workers one after the other waits."""
    gc.disable()
    gc.freeze()


def break_off(reason: str) -> NoReturn:
    """End this process now, with one line and nothing else: it is not to be trusted with an orderly end."""
    line = f"switchyard: {reason}; process {os.getpid()} ends itself, its jobs run again when their leases have ended\n"

    def say() -> None:
        sys.stderr.write(line)
        sys.stderr.flush()

    words = threading.Thread(target=say, daemon=True)
    words.start()
    words.join(_LAST_WORDS)
    os._exit(BROKEN_OFF)
