"""Failpoints: the named instants of the protocol at which a process can be made to die, to hang, or to raise.

    FAILPOINT=after_claim_commit:crash:3        the third time this process passes the point, it gets a SIGKILL
    FAILPOINT=before_finish_commit:sleep=4      the first time, it sleeps 4 s there
    FAILPOINT=after_fetch:raise                 the first time, it raises

The product knows nothing of this: ``install`` wraps the functions at whose edges the points lie, in the processes that the rig starts,
before they begin to work. A function that is not there any more fails the installation, so that no point is lost by a renaming.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from time import sleep
from typing import Any

from psycopg.pq import TransactionStatus

import ledger.schedules
import ledger.write
from brokers.postgres import PostgresTransport
from brokers.rabbitmq import RabbitmqTransport
from brokers.redis import RedisTransport
from brokers.transport import Transport
from ledger.states import State
from runtime.node import WorkerNode
from runtime.workqueue import WorkQueue
from tests.faults.recorder import Recorder

#: Points in a process that sends.
SENDING = ("before_insert_commit", "after_insert_commit", "after_publish")
#: Points in a worker.
WORKING = (
    "relay_after_commit",
    "relay_mid_batch",
    "after_fetch",
    "after_claim_commit",
    "after_ack",
    "in_actor",
    "after_actor",
    "before_finish_commit",
    "after_finish_commit",
    "retry_commit",
    "dead_commit",
    "release_on_sigterm",
)

#: Points in whoever makes the jobs of schedules.
SCHEDULING = ("tick_commit",)

#: The transports that carry triggers.
CARRIERS: tuple[type[Transport], ...] = (RedisTransport, RabbitmqTransport)
SENDERS: tuple[type[Transport], ...] = (PostgresTransport, RedisTransport, RabbitmqTransport)

Function = Callable[..., Any]


class FailpointHit(RuntimeError):
    """What ``raise`` raises."""


class _Armed:
    """One failpoint of this process."""

    def __init__(self, text: str, recorder: Recorder) -> None:
        name, action, *rest = text.split(":")
        if name not in SENDING + WORKING + SCHEDULING:
            raise ValueError(f"FAILPOINT: {name} is no failpoint")
        self.name = name
        self.action, _, argument = action.partition("=")
        self.seconds = float(argument or 0)
        self._left = int(rest[0]) if rest else 1
        self._lock = threading.Lock()
        self._recorder = recorder

    def passed(self) -> None:
        with self._lock:
            self._left -= 1
            hit = self._left == 0
        if not hit:
            return
        self._recorder.write("failpoint", name=self.name, action=self.action)
        if self.action == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        elif self.action == "sleep":
            sleep(self.seconds)
        else:
            raise FailpointHit(self.name)


_armed: dict[str, _Armed] = {}


def fire(name: str) -> None:
    """The process passes a point."""
    armed = _armed.get(name)
    if armed is not None:
        armed.passed()


def arm(text: str, recorder: Recorder) -> None:
    """Arm the failpoints that a text names (by comma), instead of those armed before."""
    _armed.clear()
    for part in filter(None, text.split(",")):
        armed = _Armed(part, recorder)
        _armed[armed.name] = armed


def install(recorder: Recorder) -> None:
    """Put every point in its place, and arm those that FAILPOINT names; without that variable there are none."""
    arm(os.environ.get("FAILPOINT", ""), recorder)
    if "FAULTS_COUNT" in os.environ:
        for transport in CARRIERS:
            _wrap(transport, "sender", lambda make: _with_count(make, recorder))
    if "FAILPOINT" not in os.environ:
        return
    _wrap(ledger.schedules, "pass_on", lambda pass_on: _after(pass_on, "tick_commit", always=True))
    _wrap(ledger.write, "enqueue", _around_insert)
    _wrap(ledger.write, "enqueue_many", _around_insert)
    _wrap(ledger.write, "relay_due", lambda relay_due: _after(relay_due, "relay_after_commit"))
    _wrap(ledger.write, "claim_by_id", lambda claim: _after(claim, "after_claim_commit"))
    _wrap(ledger.write, "claim_next", lambda claim: _after(_uncommitted(claim, "after_fetch"), "after_claim_commit"))
    _wrap(ledger.write, "finish", _around_finish)
    _wrap(ledger.write, "release_unstarted", lambda release: _uncommitted(release, "release_on_sigterm"))
    _wrap(WorkerNode, "begin_shutdown", lambda begin: _after(begin, "release_on_sigterm", always=True))
    _wrap(WorkerNode, "finish", lambda finish: _before(finish, "after_actor"))
    for transport in SENDERS:
        _wrap(transport, "sender", _with_publish)
    for transport in CARRIERS:
        _wrap(transport, "receiver", _with_fetch_and_settle)
    if os.environ.get("BROKER") == PostgresTransport.name:
        # Nothing is acknowledged there: what follows the claim is handing it to a thread.
        _wrap(WorkQueue, "hand_over", lambda hand_over: _before(hand_over, "after_ack"))


def _wrap(owner: Any, name: str, around: Callable[[Function], Function]) -> None:
    setattr(owner, name, around(getattr(owner, name)))


def _before(function: Function, point: str) -> Function:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        fire(point)
        return function(*args, **kwargs)

    return wrapped


def _after(function: Function, point: str, *, always: bool = False) -> Function:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if result or always:
            fire(point)
        return result

    return wrapped


def _uncommitted(function: Function, point: str) -> Function:
    """Pass the point when the statement is done and its commit is not, if it did anything."""

    def wrapped(connection: Any, *args: Any, **kwargs: Any) -> Any:
        if point not in _armed:
            return function(connection, *args, **kwargs)
        with connection.transaction():
            result = function(connection, *args, **kwargs)
            if result:
                fire(point)
            return result

    return wrapped


def _around_insert(enqueue: Function) -> Function:
    return _after(_uncommitted(enqueue, "before_insert_commit"), "after_insert_commit")


def _around_finish(finish: Function) -> Function:
    def points(finishes: Sequence[Any]) -> list[str]:
        states = {entry.state for entry in finishes}
        found = ["before_finish_commit"] if "before_finish_commit" in _armed else []
        found += ["retry_commit"] if State.RETRYING in states and "retry_commit" in _armed else []
        return found + (["dead_commit"] if State.DEAD in states and "dead_commit" in _armed else [])

    def wrapped(connection: Any, finishes: Any) -> Any:
        entries = list(finishes)
        reached = points(entries)
        if reached:
            with connection.transaction():
                done = finish(connection, entries)
                for point in reached:
                    fire(point)
        else:
            done = finish(connection, entries)
        # Inside job.transaction() the commit is still to come.
        if done and connection.info.transaction_status == TransactionStatus.IDLE:
            fire("after_finish_commit")
        return done

    return wrapped


def _with_publish(make: Function) -> Function:
    def wrapped(self: Any) -> Any:
        sender = make(self)
        publish = sender.publish

        def publish_and_pass(batch: Sequence[Any]) -> Any:
            if len(batch) > 1 and "relay_mid_batch" in _armed:
                publish(batch[: len(batch) // 2])
                fire("relay_mid_batch")
            failed = publish(batch)
            fire("after_publish")
            return failed

        sender.publish = publish_and_pass
        return sender

    return wrapped


def _with_fetch_and_settle(make: Function) -> Function:
    def wrapped(self: Any) -> Any:
        receiver = make(self)
        fetch, settle = receiver.fetch, receiver.settle

        def fetch_and_pass(*args: Any) -> Any:
            fetched = fetch(*args)
            if fetched.triggers:
                fire("after_fetch")
            return fetched

        def settle_and_pass(triggers: Sequence[Any]) -> None:
            settle(triggers)
            fire("after_ack")

        receiver.fetch, receiver.settle = fetch_and_pass, settle_and_pass
        return receiver

    return wrapped


def _with_count(make: Function, recorder: Recorder) -> Function:
    """Have every batch that is published counted in the record."""

    def wrapped(self: Any) -> Any:
        sender = make(self)
        publish = sender.publish

        def publish_and_count(batch: Sequence[Any]) -> Any:
            recorder.write("published", triggers=len(batch))
            return publish(batch)

        sender.publish = publish_and_count
        return sender

    return wrapped
