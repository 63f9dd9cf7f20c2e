"""Barriers for two-connection tests: go on when the other session provably waits for a lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from psycopg import Connection

from ledger.database import BoundedConnection
from tests.rig.waiting import wait_until

T = TypeVar("T")


def wait_for_lock(observer: Connection[Any], pid: int) -> None:
    """Return once the session with this backend pid waits for a lock that another session holds."""

    def blocked() -> bool:
        row = observer.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [pid]).fetchone()
        return row is not None and bool(row[0])

    wait_until(blocked, 30, f"session {pid} waits for a lock")


class Meanwhile:
    """Runs one call in a thread and hands out what it returned or raised."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # handed to the test by result()
            self._error = error

    @property
    def done(self) -> bool:
        """Whether the call has ended."""
        return not self._thread.is_alive()

    def result(self, timeout: float = 10.0) -> Any:
        """What the call returned; raises what it raised."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the call still waits"
        if self._error is not None:
            raise self._error
        return self._value


@dataclass
class Two:
    """Two sessions, and a third that looks on."""

    first: BoundedConnection
    second: BoundedConnection
    onlooker: BoundedConnection

    def waits_for(self, earlier: Callable[[], Any], later: Callable[[], Any]) -> tuple[Any, Any]:
        """The first has not committed when the second comes, waits, and goes on after the commit. What the two returned."""
        with self.first.transaction():
            before = earlier()
            meanwhile = Meanwhile(later)
            wait_for_lock(self.onlooker, self.second.info.backend_pid)
        return before, meanwhile.result()

    def passes_by(self, earlier: Callable[[], Any], later: Callable[[], Any]) -> tuple[Any, Any]:
        """The first has not committed when the second comes, which does not wait."""
        with self.first.transaction():
            before = earlier()
            after = later()
        return before, after
