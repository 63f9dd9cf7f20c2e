"""Status tracking: a finished execution is noted on its claim, with its result, and leaves the process with the ack.

Effect: a body that returned makes the job ``completed``; its return value becomes the job's result. Enqueue and start need nothing here:
the row is written by ``enqueue`` and the claim itself is the start. A result that is not JSON, or too large, makes the job dead with
``result_unstorable``: the work is done, and doing it again would not change its result.
Actor options: ``store_results`` (default True; False drops the return value), ``result_ttl`` (accepted; a result lasts as long as its row).
Store: none; the flusher writes. With Postgres away the noted end waits in the flusher.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from dramatiq import Broker, MessageProxy, Middleware

from ledger.records import Finish
from ledger.states import State
from runtime.claims import Claim
from runtime.encoding import encode_result
from runtime.options import option


class Status(Middleware):
    """Notes successes. What failed is noted by ``retries``."""

    def __init__(self, *, max_result_bytes: int) -> None:
        self._max_result_bytes = max_result_bytes

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"store_results", "result_ttl"}

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Note that the job is completed, unless it failed or something else was noted before (a snooze)."""
        claim: Claim = message.claim
        if exception is not None or claim.ending is not None:
            return
        now = monotonic()
        started = claim.started if claim.started is not None else now
        if result is not None and not option("store_results", message, broker.actors.get(message.actor_name), True):
            result = None
        try:
            encoded = encode_result(claim.masked(result), self._max_result_bytes)
        except ValueError as error:
            claim.ending = Finish(
                id=claim.job.id,
                token=claim.token,
                state=State.DEAD,
                started=started,
                finished=now,
                outcome="failed",
                error_type="ResultUnstorable",
                error=str(error),
                dead_reason="result_unstorable",
            )
            return
        claim.ending = Finish(
            id=claim.job.id, token=claim.token, state=State.COMPLETED, started=started, finished=now, result=encoded
        )
