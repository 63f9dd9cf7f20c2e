"""Callbacks and pipelines: what follows from the end of an execution is written in the same transaction as the end.

Effect: ``on_success`` gets (message, result) after a success; ``on_failure`` gets (message, error) after every failed attempt;
``on_retry_exhausted`` gets (message, retry info) when the job is dead for want of retries; a pipeline's next message gets the result as
its last argument. Arguments and meaning are Dramatiq's. No crash can come between a job's end and its follower, and a worker that lost
its lease starts none.
Actor and message options: ``on_success``, ``on_failure``, ``on_retry_exhausted``, ``pipe_ignore``, ``pipe_target``.
Store: the follower's row.
When a follower cannot be made (unknown actor, result that does not fit it) the job's own end stands, and the error is logged.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from dramatiq import Actor, Broker, Message, MessageProxy, Middleware
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import MiddlewareError
from structlog.stdlib import get_logger

from ledger.records import Finish, NewJob
from ledger.states import State
from runtime.claims import Claim
from runtime.options import option

logger = get_logger(__name__)


class WritesJobs(Protocol):
    """The broker, as far as this middleware needs it."""

    def new_job(self, message: Message[Any], delay: float = 0.0) -> NewJob:
        """The row of a message."""


class Callbacks(Middleware):
    """Adds followers to the noted end; stands before status and retries in the stack, so that it comes after them here."""

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"on_success", "on_failure", "on_retry_exhausted", "pipe_ignore", "pipe_target"}

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Make the followers of whatever was noted."""
        claim = cast("Claim", message.claim)
        # A job that was completed in a transaction of its own has its followers from there.
        if claim.ending is not None and claim.completion is None:
            add_followers(broker, message, claim.ending, result)


def add_followers(broker: Broker, message: MessageProxy, ending: Finish, result: Any) -> None:
    """Add the jobs that follow from an end, to be written with it."""
    actor = broker.actors.get(message.actor_name)
    if ending.state is State.COMPLETED:
        if target := message.options.get("pipe_target"):
            _follow(broker, ending, _next_step(message, actor, target, result))
        _call(broker, ending, option("on_success", message, actor), message, result)
    elif ending.outcome == "failed":
        error = {"type": ending.error_type, "message": ending.error}
        _call(broker, ending, option("on_failure", message, actor), message, error)
        if ending.dead_reason in ("max_retries", "time_limit"):
            retries = cast("Claim", message.claim).job.failures
            info = {"retries": retries, "max_retries": option("max_retries", message, actor, retries)}
            _call(broker, ending, option("on_retry_exhausted", message, actor), message, info)


def _call(broker: Broker, ending: Finish, callback: Any, message: MessageProxy, argument: Any) -> None:
    if callback is None:
        return
    name = callback.actor_name if isinstance(callback, Actor) else callback
    try:
        follower = broker.get_actor(name).message(message._message.asdict(), argument)
    except ActorNotFound:
        logger.error("callback not sent, this worker does not know its actor", callback=name)
        return
    _follow(broker, ending, follower)


def _next_step(message: MessageProxy, actor: Actor[Any, Any] | None, target: dict[str, Any], result: Any) -> Message[Any]:
    step: Message[Any] = Message(**{**target, "args": tuple(target["args"])})
    if option("pipe_ignore", message, actor, False) or step.options.get("pipe_ignore"):
        return step
    return step.copy(args=(*step.args, result))


def _follow(broker: Broker, ending: Finish, follower: Message[Any]) -> None:
    try:
        broker.emit_before("enqueue", follower, None)
        delay = (follower.options.get("delay") or 0) / 1000
        # Due at once: the relay is woken by the commit, and publishes what this process may not live to publish itself.
        ending.children.append(cast("WritesJobs", broker).new_job(follower, delay)._replace(grace=0.0))
    except MiddlewareError as error:
        logger.error("follower not sent", actor=follower.actor_name, error=str(error))
