"""``switchyard broker``: the table, and draining one broker into another while nobody or somebody works."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from cli.broker_drain import Drain, DrainRefused
from cli.broker_status import run_status
from ledger import routes
from ledger.routes import EVERY_QUEUE
from tests.acceptance.jobs import declare
from tests.conformance.system import System
from tests.rig.waiting import wait_until


@pytest.fixture
def system(settings, redis_url):
    """A system of Redis, not started."""
    system = System(settings.model_copy(update={"broker": "redis"}), declare)
    yield system
    system.close()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=160)


def found_routes(system):
    return {route.queue: (route.broker, route.overruled) for route in system.database.run(routes.routes)}


def brokers_of_rows(system):
    return dict(system.rows("SELECT broker, count(*) FROM switchyard.job WHERE state = 'pending' GROUP BY broker"))


def test_a_drain_moves_everything_without_any_worker_and_holds_against_those_that_come(system, console):
    for number in range(50):
        system.jobs.quick.send(number)

    Drain(system.settings, "redis", "postgres", None, console).run()

    assert brokers_of_rows(system) == {"postgres": 50}
    assert found_routes(system) == {EVERY_QUEUE: ("postgres", ["redis"])}
    assert "50/50" in console.file.getvalue()
    # Its BROKER is redis still.
    system.start()
    wait_until(lambda: brokers_of_rows(system) == {}, 60, "all run")
    assert found_routes(system)[EVERY_QUEUE][0] == "postgres"


def test_a_drain_to_a_broker_that_does_not_answer_changes_nothing(system, console):
    system.jobs.quick.send(1)

    with pytest.raises(DrainRefused, match="RABBITMQ_URL"):
        Drain(system.settings, "redis", "rabbitmq", None, console).run()

    assert found_routes(system) == {}
    assert brokers_of_rows(system) == {"redis": 1}


def test_one_queue_alone_can_be_drained(system, console):
    import dramatiq

    other = dramatiq.actor(broker=system.broker, queue_name="exports", actor_name="export")(lambda: None)
    other.send()
    system.jobs.quick.send(1)

    Drain(system.settings, "redis", "postgres", "exports", console).run()

    assert system.rows("SELECT queue, broker FROM switchyard.job ORDER BY queue") == [
        ("default", "redis"),
        ("exports", "postgres"),
    ]


def test_a_queue_that_goes_to_a_third_broker_is_left_alone(system, console):
    Drain(system.settings, "redis", "postgres", "exports", console).run()

    with pytest.raises(DrainRefused, match="exports goes to postgres, not to redis"):
        Drain(system.settings, "redis", "rabbitmq", "exports", console)._to_decide(
            {route.queue: route for route in system.database.run(routes.routes)}
        )


def test_the_status_tells_routes_depths_and_what_cannot_be_reached(system, console, capsys):
    for number in range(3):
        system.jobs.quick.send(number)
    system.broker.publisher.close()
    Drain(system.settings, "redis", "postgres", "exports", console).run()

    run_status(system.settings, console, as_json=False)
    run_status(system.settings, console, as_json=True)

    brokers = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["brokers"]}
    assert (brokers["redis"]["pending"], brokers["redis"]["depth"]) == (3, 3)
    assert brokers["redis"]["oldest_seconds"] > 0
    assert [route["queue"] for route in brokers["postgres"]["routes"]] == ["exports"]
    assert brokers["rabbitmq"]["depth"] is None
    assert "unreachable" in console.file.getvalue()
    assert "an operator decided for postgres" in console.file.getvalue()
