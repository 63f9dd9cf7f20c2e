"""Results live in the job's row, so ``message.get_result()`` asks the ledger.

Dramatiq's worker looks for its own ``Results`` class in the stack and warns about every returned value if it is missing; so it is
there, with a backend that stores nothing (the status middleware does, together with the state) and knows how to ask.
"""

from __future__ import annotations

import time
from typing import Any, Final

from dramatiq import Message
from dramatiq.common import current_millis
from dramatiq.results import ResultBackend, ResultFailure, ResultMissing, ResultTimeout

from ledger.database import Database
from ledger.sealed import Envelope, replaced
from ledger.sql import SQL
from runtime.secrets import Keyring

#: Dramatiq's own default of ``get_result(block=True)``, in milliseconds.
DEFAULT_TIMEOUT_MS: Final = 10_000
#: First and longest pause between two looks, in seconds.
POLL_MIN: Final = 0.005
POLL_MAX: Final = 0.25


def _where_it_is(message: Message[Any], row: Any) -> str:
    """Why there is no result yet; without the arguments, which an exception's text has no business to spread."""
    if row is None:
        return f"no job has the id {message.message_id}"
    why = f" ({row[4].replace('_', ' ')})" if row[4] else ""
    return f"job {message.message_id} of actor {message.actor_name!r} is still {row[0]}{why}"


class LedgerResults(ResultBackend):
    """Dramatiq's result backend over the ledger: results last as long as their job's row."""

    def __init__(self, database: Database, keys: Keyring) -> None:
        super().__init__(namespace="switchyard")
        self._database = database
        self._keys = keys

    def get_result(self, message: Message[Any], *, block: bool = False, timeout: int | None = None) -> Any:
        """The result of a message.

        Parameters:
            block: wait for it.
            timeout: how long, in milliseconds; 10 seconds by default.

        Raises:
            ResultMissing: not blocking, and the job has not ended (or is unknown).
            ResultTimeout: blocking, and it has not ended in time.
            ResultFailure: the job is dead or cancelled; says with what error.
            SecretUnreadable: it goes to a secret argument, and no key of SECRET_KEYS opens it.
        """
        deadline = current_millis() + (DEFAULT_TIMEOUT_MS if timeout is None else timeout)
        pause = POLL_MIN
        while True:
            row = self._database.run(lambda c: c.execute(SQL["result"], {"message_id": message.message_id}).fetchone())
            if row is not None and row[0] == "completed":
                return replaced(row[1], self._opened)
            if row is not None and row[0] in ("dead", "cancelled"):
                raise ResultFailure(
                    f"actor raised {row[2] or row[0]}: {row[3] or ''}".rstrip(": "), row[2] or row[0], row[3] or ""
                )
            if not block:
                raise ResultMissing(message)
            if current_millis() + pause * 1000 > deadline:
                raise ResultTimeout(_where_it_is(message, row))
            time.sleep(pause)
            pause = min(pause * 1.5, POLL_MAX)

    def _opened(self, envelope: Envelope) -> Any:
        return self._keys.open(envelope["actor"], envelope["field"], envelope)

    def store_result(self, message: Any, result: Any, ttl: int) -> None:
        """Nothing to do: the flusher writes the result together with the state."""

    def store_exception(self, message: Any, exception: BaseException, ttl: int) -> None:
        """Nothing to do: the flusher writes the error together with the state."""
