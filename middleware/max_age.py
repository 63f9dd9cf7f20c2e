"""``max_age``: a job that is too old when its turn comes is dead (``expired``) instead of run.

Effect: checked once, right before the body; what waits for longer than that is buried by ``keeper.expiry``, whether a worker consumes its
queue or not. Age counts from the send, after a replay from then, on the database's clock. Actor and message option: ``max_age`` in
milliseconds, none by default, as in Dramatiq; what it is when the job is sent counts. Store: ``job.expires_at``, which came with the claim.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from dramatiq import Actor, Broker, Message, MessageProxy, Middleware
from dramatiq.middleware import SkipMessage

from ledger.records import Finish
from ledger.states import State
from runtime.claims import Claim
from runtime.options import check_numbers


class MaxAge(Middleware):
    """Buries what comes too late."""

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"max_age"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Check the actor's limit."""
        check_numbers(actor.actor_name, actor.options, {"max_age": "milliseconds"})

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check the message's own limit."""
        if message.options:
            check_numbers(message.actor_name, message.options, {"max_age": "milliseconds"})

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Compare the time with the job's end."""
        claim: Claim = message.claim
        if claim.job.expires_ms is None:
            return
        now = monotonic()
        late = claim.job.claimed_ms - claim.job.expires_ms + (now - claim.received) * 1000
        if late > 0:
            claim.ending = Finish(
                id=claim.job.id,
                token=claim.token,
                state=State.DEAD,
                started=now,
                finished=now,
                outcome="cancelled",
                error_type="Expired",
                error=f"its turn came {late / 1000:.1f} s after its max_age",
                dead_reason="expired",
            )
            message.fail()
            raise SkipMessage("the job is older than its max_age")
