"""Cancellation: a job that is asked to stop before its body begins does not begin.

Effect: while a body runs, ``Cancelled`` is raised in it and nowhere else (``runtime.orders`` asks its guard to); of an async actor the
task is cancelled by that. What the exception ends in is noted by ``retries``. A body that no exception reaches, because it blocks outside
the interpreter, can ask ``current_job().cancelled``; one that does not, ends when it ends: in success as completed, in any other way as
cancelled, which the statement that writes the end decides by ``job.cancel_requested_at``. Between a claim and its body stands this hook.
Actor options: none. Store: the job's row; with Postgres away a request cannot be made, and one that was made waits.
"""

from __future__ import annotations

from dramatiq import Broker, MessageProxy, Middleware
from dramatiq.middleware import SkipMessage

from errors import Cancelled
from middleware.retries import cancelled
from runtime.claims import Claim


class Cancellation(Middleware):
    """Keeps a cancelled job from beginning."""

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Look for a request that came while the job was on its way to this thread."""
        claim: Claim = message.claim
        if claim.cancel_requested:
            claim.ending = cancelled(claim, Cancelled())
            raise SkipMessage("the job was cancelled")
