"""Callbacks and pipelines: what follows from the end of an execution is written in the same transaction as the end.

Effect: ``on_success`` gets (message, result) after a success; ``on_failure`` gets (message, error) after every failed attempt;
``on_retry_exhausted`` gets (message, retry info) when the job is dead for want of retries; a pipeline's next message gets the result as
its last argument. Arguments and meaning are Dramatiq's. The steps of ``switchyard.pipeline`` are rows already: this end makes the next
one due, or takes it along when the job is cancelled. Those of a stock pipeline are written now. No crash can come between a job's end and
its follower, and a worker that lost its lease starts none. A result that goes to a secret argument is sealed for it, here and in the job's
own row; a callback that does not keep it secret gets the mask.
Actor and message options: ``on_success``, ``on_failure``, ``on_retry_exhausted``, ``pipe_ignore``, ``pipe_target``; of messages alone
``followed``, which ``switchyard.pipeline`` sets, and ``secret_for``, see ``secret_results``.
Store: the follower's row.
A follower that this worker does not know waits for one that does; one that cannot be stored with what it was to get, or that does not take
it, is a dead job with the reason.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

from dramatiq import Actor, Broker, Message, MessageProxy, Middleware
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import MiddlewareError
from structlog.stdlib import get_logger

from errors import OptionError
from ledger.batches import MAX_FED_BYTES
from ledger.records import Finish, NewJob
from ledger.sealed import MASK, Envelope, Place
from ledger.states import State
from runtime.claims import Claim
from runtime.encoding import encode_result
from runtime.options import option

logger = get_logger(__name__)


class SealsResults(Protocol):
    """What keeps arguments secret, as far as this middleware needs it."""

    def takers(self, message: MessageProxy) -> tuple[Place, ...]:
        """The secret arguments that a job's result goes to. Raises: OptionError."""

    def seal_result(self, takers: Sequence[Place], result: Any, message_id: str) -> Envelope:
        """The result, encrypted for them. Raises: OptionError."""


class WritesJobs(Protocol):
    """The broker, as far as this middleware needs it."""

    seals: SealsResults | None

    def new_job(self, message: Message[Any], delay: float = 0.0) -> NewJob:
        """The row of a message."""


class _Sealed(NamedTuple):
    """A result that only some of those that follow may have."""

    envelope: Envelope
    actors: frozenset[str]

    def given(self, actor_name: str) -> Any:
        """What this actor gets of it."""
        return self.envelope if actor_name in self.actors else MASK


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
    """Add what follows from an end, to be written with it."""
    actor = broker.actors.get(message.actor_name)
    # What follows is stored as well.
    result = cast("Claim", message.claim).masked(result)
    sealed = _sealed(broker, message, ending, result) if ending.state is State.COMPLETED else None
    if "followed" in message.options:
        _hand_on(message, ending, result if sealed is None else sealed.envelope)
    if ending.state is State.COMPLETED:
        if target := message.options.get("pipe_target"):
            _next_step(broker, ending, actor, target, result if sealed is None else sealed.given(target["actor_name"]))
        if (callback := option("on_success", message, actor)) is not None:
            name = callback.actor_name if isinstance(callback, Actor) else callback
            _call(broker, ending, callback, message, result if sealed is None else sealed.given(name))
    elif ending.outcome == "failed":
        error = {"type": ending.error_type, "message": ending.error}
        _call(broker, ending, option("on_failure", message, actor), message, error)
        if ending.dead_reason in ("max_retries", "time_limit"):
            retries = cast("Claim", message.claim).job.failures
            info = {"retries": retries, "max_retries": option("max_retries", message, actor, retries)}
            _call(broker, ending, option("on_retry_exhausted", message, actor), message, info)


def _sealed(broker: Broker, message: MessageProxy, ending: Finish, result: Any) -> _Sealed | None:
    """The result, sealed for those that keep it secret, as it is stored from now on; None: nobody does, or it cannot be, and the job is
    dead with the reason instead: what follows must neither read it nor run without it."""
    seals = cast("WritesJobs", broker).seals
    if seals is None:
        return None
    try:
        takers = seals.takers(message)
        if not takers:
            return None
        # As it would be read back.
        value = json.loads(encode_result(result, MAX_FED_BYTES) or "null")
        envelope = seals.seal_result(takers, value, message.message_id)
    except (OptionError, ValueError) as error:
        _refuse_result(ending, error)
        return None
    if ending.result is not None:
        ending.result = json.dumps(envelope, separators=(",", ":"))
    return _Sealed(envelope, frozenset(actor for actor, _ in takers))


def _refuse_result(ending: Finish, error: Exception) -> None:
    """As in status: the work is done, and doing it again would not change what it returned."""
    ending.state, ending.outcome, ending.result = State.DEAD, "failed", None
    ending.error_type, ending.error, ending.dead_reason = "ResultUnstorable", str(error), "result_unstorable"


def _hand_on(message: MessageProxy, ending: Finish, result: Any) -> None:
    """Steps wait for this job in the ledger: they get its result, also where the job itself does not keep it."""
    ending.upstream = message.message_id
    if ending.state is not State.COMPLETED:
        return
    try:
        ending.handed = ending.result or encode_result(result, MAX_FED_BYTES) or "null"
    except ValueError as error:
        _refuse_result(ending, error)


def _call(broker: Broker, ending: Finish, callback: Any, message: MessageProxy, argument: Any) -> None:
    if callback is None:
        return
    name = callback.actor_name if isinstance(callback, Actor) else callback
    args = (message._message.asdict(), argument)
    try:
        follower = broker.get_actor(name).message(*args)
    except ActorNotFound:
        # Another worker may know it, and where; meanwhile it is on view, as a job of an unknown actor.
        logger.error("this worker does not know the actor of a callback", callback=name)
        follower = Message(queue_name=message.queue_name, actor_name=str(name), args=args, kwargs={}, options={})
    _follow(broker, ending, follower)


def _next_step(broker: Broker, ending: Finish, actor: Actor[Any, Any] | None, target: dict[str, Any], result: Any) -> None:
    step: Message[Any] = Message(**{**target, "args": tuple(target["args"])})
    if not (step.options.get("pipe_ignore") or (actor is not None and actor.options.get("pipe_ignore"))):
        step = step.copy(args=(*step.args, result))
    _follow(broker, ending, step)


def _follow(broker: Broker, ending: Finish, follower: Message[Any]) -> None:
    """Add a follower, checked when it runs: what is wrong with it then is a dead job on view, and not a line in a log."""
    delay = (follower.options.get("delay") or 0) / 1000
    follower = follower.copy(options={"piped": True})
    try:
        broker.emit_before("enqueue", follower, None)
        job = cast("WritesJobs", broker).new_job(follower, delay)
    except MiddlewareError as error:
        logger.error("a follower cannot be stored with what it was to get", actor=follower.actor_name, error=str(error))
        refused = dataclasses.replace(follower, args=(), kwargs={}, options={"refused": str(error)})
        job = cast("WritesJobs", broker).new_job(refused)
    # Due at once: the relay is woken by the commit, and publishes what this process may not live to publish itself.
    ending.children.append(job._replace(grace=0.0))
