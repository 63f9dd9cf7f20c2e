"""``switchyard broker``: the table, and draining one broker into another while nobody or somebody works."""

from __future__ import annotations

import io
import json
import re
import signal

import pytest
import redis
from click.testing import CliRunner
from rich.console import Console

from brokers.redis import queue_key
from cli import main
from cli.broker_drain import Drain, DrainRefused
from cli.broker_status import run_status
from cli.signals import Stopped
from ledger import routes
from ledger.routes import EVERY_QUEUE
from tests.acceptance.jobs import declare
from tests.conformance.system import System
from tests.rig.redis import PrivateRedis
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
    said = " ".join(console.file.getvalue().split())
    assert f"those that live follow within {system.settings.sweep:g} s (SWEEP)" in said
    assert "`switchyard broker status` shows who" in said
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


@pytest.fixture
def private_redis():
    """A Redis that the test may kill."""
    server = PrivateRedis()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def on_postgres(settings, private_redis):
    """A system of the Postgres broker with 50 jobs that wait, not started, whose Redis the test may kill."""
    url = type(settings.redis_url)(private_redis.url)
    system = System(settings.model_copy(update={"broker": "postgres", "redis_url": url}), declare)
    for number in range(50):
        system.jobs.quick.send(number)
    yield system
    system.close()


@pytest.fixture
def at_each_chunk(monkeypatch):
    """Rows are moved by ten, and the function that is set here is called with a chunk's number, once it is moved and not yet published."""
    real, calls, hooks = routes.move_pending, [], []

    def move(*arguments, **options):
        moved = real(*arguments, **options, limit=10)
        calls.append(moved)
        for hook in hooks:
            hook(len(calls))
        return moved

    monkeypatch.setattr(routes, "move_pending", move)
    return hooks


def states(system):
    return dict(system.rows("SELECT state, count(*) FROM switchyard.job GROUP BY state"))


def attempts(system):
    return system.rows("SELECT DISTINCT attempt FROM switchyard.job")


def test_ctrl_c_in_the_middle_of_a_drain_loses_nothing_and_running_it_again_completes_it(on_postgres, console, at_each_chunk):
    system, settings = on_postgres, on_postgres.settings
    at_each_chunk.append(lambda number: signal.raise_signal(signal.SIGINT) if number == 2 else None)

    with pytest.raises(Stopped):
        Drain(settings, "postgres", "redis", None, console).run()

    assert brokers_of_rows(system) == {"postgres": 30, "redis": 20}
    # What was moved is published as well: the signal waited for that.
    assert system.broker.transport("redis").depth(["default"]) == {"default": 20}
    said = " ".join(console.file.getvalue().split())
    assert "no job is lost" in said
    assert "Run the command again" in said

    at_each_chunk.clear()
    Drain(settings, "postgres", "redis", None, console).run()
    assert brokers_of_rows(system) == {"redis": 50}
    assert system.broker.transport("redis").depth(["default"]) == {"default": 50}
    system.start()
    wait_until(lambda: states(system) == {"completed": 50}, 60, lambda: str(states(system)))
    assert attempts(system) == [(1,)]


def test_ctrl_c_before_a_drain_has_decided_anything_says_so(on_postgres, console, monkeypatch):
    monkeypatch.setattr(routes, "routes", lambda connection: signal.raise_signal(signal.SIGINT))

    with pytest.raises(Stopped):
        Drain(on_postgres.settings, "postgres", "redis", None, console).run()

    monkeypatch.undo()
    assert "the routes were not changed" in console.file.getvalue()
    assert found_routes(on_postgres) == {}


def test_a_new_broker_that_dies_in_the_middle_of_a_drain_loses_nothing(on_postgres, private_redis, console, at_each_chunk):
    system, settings = on_postgres, on_postgres.settings
    at_each_chunk.append(lambda number: private_redis.kill() if number == 3 else None)

    with pytest.raises(
        DrainRefused, match=r"redis stopped answering .* no job is lost.* Run the command again once redis answers"
    ):
        Drain(settings, "postgres", "redis", None, console).run()

    assert brokers_of_rows(system) == {"postgres": 20, "redis": 30}
    # Those of the third chunk are due, whoever can reach Redis first.
    assert system.rows("SELECT count(*) FROM switchyard.job WHERE broker = 'redis' AND publish_count < 0") == [(10,)]

    at_each_chunk.clear()
    # It comes back empty.
    private_redis.start()
    Drain(settings, "postgres", "redis", None, console).run()
    assert brokers_of_rows(system) == {"redis": 50}
    system.start()
    wait_until(lambda: states(system) == {"completed": 50}, 120, lambda: str(states(system)))
    assert attempts(system) == [(1,)]


@pytest.fixture
def spoil(on_postgres):
    """Puts something else in the place of the queue in Redis, and what was there back again."""
    settings = on_postgres.settings
    key = queue_key(settings.broker_prefix, "default")
    client = redis.Redis.from_url(settings.redis_url.get_secret_value())

    def spoilt(on=True):
        if on:
            if client.exists(key):
                client.rename(key, f"{key} aside")
            client.set(key, "not a queue")
        else:
            client.delete(key)
            if client.exists(f"{key} aside"):
                client.rename(f"{key} aside", key)

    yield spoilt
    client.close()


def test_a_drain_to_a_broker_that_refuses_a_queue_changes_nothing(on_postgres, console, spoil):
    spoil()

    for queue in (None, "default"):
        with pytest.raises(
            DrainRefused, match=r"redis refuses the queue default .*WRONGTYPE.* nothing was changed; the key .* rename"
        ):
            Drain(on_postgres.settings, "postgres", "redis", queue, console).run()

    assert found_routes(on_postgres) == {}
    assert brokers_of_rows(on_postgres) == {"postgres": 50}
    # Its refusal keeps no other queue.
    Drain(on_postgres.settings, "postgres", "redis", "images", console).run()
    assert found_routes(on_postgres) == {"images": ("redis", ["postgres"])}


def test_a_queue_that_is_refused_in_the_middle_of_a_drain_stops_it_and_loses_nothing(on_postgres, console, at_each_chunk, spoil):
    system, settings = on_postgres, on_postgres.settings
    at_each_chunk.append(lambda number: spoil() if number == 3 else None)

    with pytest.raises(DrainRefused, match=r"redis refuses the queue default .* no job is lost.* run the command again"):
        Drain(settings, "postgres", "redis", None, console).run()

    assert brokers_of_rows(system) == {"postgres": 20, "redis": 30}
    assert system.rows("SELECT count(*) FROM switchyard.job WHERE broker = 'redis' AND publish_count < 0") == [(10,)]

    at_each_chunk.clear()
    spoil(on=False)
    Drain(settings, "postgres", "redis", None, console).run()
    assert brokers_of_rows(system) == {"redis": 50}
    system.start()
    wait_until(lambda: states(system) == {"completed": 50}, 60, lambda: str(states(system)))
    assert attempts(system) == [(1,)]


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

    run_status(system.settings, as_json=False)
    table = " ".join(capsys.readouterr().out.split())
    run_status(system.settings, as_json=True)

    brokers = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["brokers"]}
    assert (brokers["redis"]["pending"], brokers["redis"]["depth"]) == (3, 3)
    assert brokers["redis"]["oldest_seconds"] > 0
    assert [route["queue"] for route in brokers["postgres"]["routes"]] == ["exports"]
    assert brokers["rabbitmq"]["depth"] is None
    assert "unreachable" in table
    assert "an operator decided for postgres" in table


def test_every_other_queue_is_said_where_there_are_others(system, redis_url):
    variables = {
        "DATABASE_URL": system.settings.database_url.get_secret_value(),
        "REDIS_URL": redis_url,
        "BROKER": "redis",
        "COLUMNS": "120",
    }

    def carried(command):
        return CliRunner().invoke(main, command, env=variables).stdout

    system.rows("INSERT INTO switchyard.route (queue, broker) VALUES ('*', 'redis') RETURNING 1")
    assert re.search(r"^redis .* every queue$", carried(["broker", "status"]), re.MULTILINE)
    assert re.search(r"^redis .* carries every queue$", carried(["status"]), re.MULTILINE)

    system.rows("INSERT INTO switchyard.route (queue, broker) VALUES ('exports', 'postgres') RETURNING 1")
    assert re.search(r"^redis .* every other queue$", carried(["broker", "status"]), re.MULTILINE)
    assert re.search(r"^redis .* carries every other queue$", carried(["status"]), re.MULTILINE)


def test_a_drain_to_itself_is_typed_wrongly_and_one_of_a_queue_that_nothing_knows_is_refused(system, redis_url):
    variables = {"DATABASE_URL": system.settings.database_url.get_secret_value(), "REDIS_URL": redis_url, "BROKER": "redis"}
    system.jobs.quick.send(1)

    itself = CliRunner().invoke(main, ["broker", "drain", "redis", "--to", "redis"], env=variables)
    mistyped = CliRunner().invoke(main, ["broker", "drain", "redis", "--to", "postgres", "--queue", "defualt"], env=variables)

    assert (itself.exit_code, "redis cannot be drained to itself" in itself.stderr) == (2, True)
    assert mistyped.exit_code == 2
    assert "--queue: nothing knows queue 'defualt'" in mistyped.stderr
    assert mistyped.stderr.endswith(", so nothing was changed; did you mean default?\n")
    # No command takes a route back.
    assert found_routes(system) == {}
