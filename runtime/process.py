"""The process that a worker runs in: whether it is ours to end, how it asks for its successor, and what its exit codes say.

    0     stopped as it was told
    3     refused to start: a setting is wrong, the database is missing or not migrated
    70    broken off by the watchdog
    75    recycled: it asked for it itself, after a job that did not end, or at a limit of ``switchyard worker``

Ours are the processes that ``dramatiq`` and ``switchyard worker`` start. A worker inside somebody's own process, such as a test's, never
ends that process.
"""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Final, NoReturn

REFUSED: Final = 3
BROKEN_OFF: Final = 70
RECYCLED: Final = 75

#: How long the last line may take to be written, in seconds: whoever reads it may hang as well.
_LAST_WORDS: Final = 1.0

#: The functions in which a command loads the application: Dramatiq's worker processes, the processes beside them, and periodiq.
_COMMANDS: Final = frozenset({("dramatiq.cli", "worker_process"), ("dramatiq.cli", "fork_process"), ("periodiq", "main")})

_ask: Callable[[], None] | None = None


def supervised_by(ask: Callable[[], None]) -> None:
    """This process is one of ``switchyard worker``; ``ask`` makes it stop once its supervisor knows that it needs another."""
    global _ask
    _ask = ask


def is_supervised() -> bool:
    """Whether a supervisor starts the next process before this one is gone."""
    return _ask is not None


def is_ours() -> bool:
    """Whether the process exists for the worker alone."""
    return is_supervised() or multiprocessing.parent_process() is not None


def is_booting() -> bool:
    """Whether a command (``dramatiq``, ``periodiq``) is loading the application, and this is called from there: on the same thread, in the
    process that the command made, forked or spawned.

    That one of their modules is loaded says nothing: an application may import them. Nor does the process's parent: a web server makes
    processes, too. ``switchyard worker`` does not need this, it is our own code that loads the application there.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) in _COMMANDS:
            return True
        frame = frame.f_back
    return False


def ask_to_recycle() -> None:
    """Have this process stop in order and another take its place. Under ``dramatiq`` by a SIGTERM, which in the end stops them all."""
    if _ask is not None:
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
