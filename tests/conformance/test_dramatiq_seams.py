"""What Dramatiq looks for in a broker, and finds: its option names, its Results, its way to stop a send, its notice of a shutdown."""

from __future__ import annotations

import inspect
import logging
import threading
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker
from dramatiq.middleware import Interrupt, MiddlewareError, Shutdown, TimeLimitExceeded
from dramatiq.results import Results

import errors
from errors import Cancelled
from ledger.states import State
from tests.conformance import jobs
from tests.conformance.system import System
from tests.rig.waiting import wait_until

#: Marked (*) in the tree of errors: each stops a send from within a hook.
STOPPING = [errors.JobExists, errors.IdempotencyConflict, errors.PayloadError, errors.OptionError, errors.LedgerUnavailable]


def dramatiqs_own() -> list[type[dramatiq.Middleware]]:
    """Every middleware that comes with Dramatiq and reads options."""
    found = [
        entry for _, entry in inspect.getmembers(dramatiq.middleware, inspect.isclass) if issubclass(entry, dramatiq.Middleware)
    ]
    return [*found, Results]


def options_of(entry: type[dramatiq.Middleware]) -> set[str]:
    made: Any = object.__new__(entry)
    return set(made.actor_options)


def test_every_option_of_dramatiqs_own_middleware_has_somebody_who_reads_it(system):
    known = {name for entry in system.broker.middleware for name in entry.actor_options}
    wanted = {name for entry in dramatiqs_own() for name in options_of(entry)}

    assert {"max_retries", "time_limit", "max_age", "pipe_target", "on_success", "notify_shutdown", "result_ttl"} <= wanted
    assert wanted - known == set()


def test_a_returned_value_is_no_warning(system, caplog):
    caplog.set_level(logging.WARNING, "dramatiq")

    assert system.jobs.add.send(1, 2).get_result(block=True) == 3

    assert [type(entry) for entry in system.broker.middleware].count(Results) == 1
    assert [record.getMessage() for record in caplog.records if "returned a value" in record.getMessage()] == []


def test_what_is_to_stop_a_body_is_no_exception_that_it_catches_by_the_way():
    for stop in (Cancelled, TimeLimitExceeded, Shutdown):
        assert issubclass(stop, Interrupt)
        assert not issubclass(stop, Exception)


class Refuses(dramatiq.Middleware):
    """Raises what a message asks for when that is sent."""

    #: Options of messages that it reads.
    message_options = frozenset({"refuse"})

    def before_enqueue(self, broker: Broker, message: dramatiq.Message[Any], delay: int | None) -> None:
        wanted = message.options.get("refuse")
        if wanted is not None:
            kind = getattr(errors, wanted, None)
            raise ValueError(wanted) if kind is None else kind.__new__(kind)


def test_our_errors_stop_a_send_and_others_are_logged_as_in_dramatiq(fresh, caplog):
    system = fresh()
    system.broker.add_middleware(Refuses())
    before = system.count()

    for kind in STOPPING:
        with pytest.raises(kind):
            system.jobs.parked.send_with_options(refuse=kind.__name__)
        with pytest.raises(kind):
            system.broker.enqueue_many([system.jobs.parked.message_with_options(refuse=kind.__name__)])
    assert system.count() == before
    system.jobs.parked.send_with_options(refuse="ValueError")

    assert system.count() == before + 1
    assert "Unexpected failure in before_enqueue" in caplog.text


def test_the_errors_that_are_marked_are_those():
    marked = [
        line.split("(*)")[0].strip(" │├└─").split()[0] for line in errors.__doc__.splitlines() if "(*)" in line and "──" in line
    ]

    assert sorted(marked) == sorted(kind.__name__ for kind in STOPPING)
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.SwitchyardError):
            assert issubclass(kind, MiddlewareError) == (
                name in marked or kind in (errors.LedgerNotMigrated, errors.LedgerForbidden)
            )


def declare_noticing(broker: Broker) -> SimpleNamespace:
    """An actor that wants to know of a shutdown, and one that does not."""

    @dramatiq.actor(broker=broker, notify_shutdown=True)
    def told(key: str) -> None:
        wait(key)

    @dramatiq.actor(broker=broker)
    def untold(key: str) -> None:
        wait(key)

    return SimpleNamespace(told=told, untold=untold)


def wait(key: str) -> None:
    jobs.note(key)
    try:
        while not jobs.gate(key).wait(0.01):
            pass
    except Shutdown:
        jobs.note(key + " told")
        raise


# What happens to running jobs is no broker's business.
@pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)
def test_who_wants_to_know_of_a_shutdown_is_told_when_it_begins_and_due_again_at_once(make_settings, broker_name):
    system = System(make_settings(shutdown_grace=600.0), declare_noticing)
    system.start(threads=4)
    told, asked, untold = (
        system.jobs.told.send("told"),
        system.jobs.untold.send_with_options(args=("asked",), notify_shutdown=True),
        system.jobs.untold.send("untold"),
    )
    wait_until(lambda: [jobs.runs[key] for key in ("told", "asked", "untold")] == [1, 1, 1], 30, "all run")

    stopping = threading.Thread(target=system.stop)
    stopping.start()

    try:
        for message in (told, asked):
            job = system.until(message, lambda job: job.state is State.PENDING)
            assert (job.failures, job.lost) == (0, 0)
            assert [attempt.outcome for attempt in system.attempts(message)] == ["released"]
        assert [jobs.runs[key + " told"] for key in ("told", "asked", "untold")] == [1, 1, 0]
        assert system.job(untold).state is State.RUNNING
    finally:
        for key in ("told", "asked", "untold"):
            jobs.gate(key).set()
        stopping.join(60)
    assert system.job(untold).state is State.COMPLETED
    system.close()
