"""``max_age``: a job that is too old when its turn comes is dead (``expired``) instead of run.

Effect: checked once, right before the body. Age counts from the send, on the database's clock; a replayed job was asked for again and does
not expire. Actor and message option: ``max_age`` in milliseconds, none by default, as in Dramatiq. Store: none.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from dramatiq import Actor, Broker, Message, MessageProxy, Middleware
from dramatiq.middleware import SkipMessage

from ledger.records import Finish
from ledger.states import State
from runtime.claims import Claim
from runtime.options import check_numbers, option


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
        """Compare the job's age with its limit."""
        limit = option("max_age", message, broker.actors.get(message.actor_name))
        claim: Claim = message.claim
        if limit is None or claim.job.generation > 1:
            return
        now = monotonic()
        age = claim.job.claimed_ms - claim.job.created_ms + (now - claim.received) * 1000
        if age > limit:
            claim.ending = Finish(
                id=claim.job.id,
                token=claim.token,
                state=State.DEAD,
                started=now,
                finished=now,
                outcome="cancelled",
                error_type="Expired",
                error=f"the job was {age / 1000:.1f} s old when its turn came, its max_age is {limit / 1000:g} s",
                dead_reason="expired",
            )
            message.fail()
            raise SkipMessage("the job is older than its max_age")
