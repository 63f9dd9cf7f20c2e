"""The live switch with real workers: there and back while jobs flow, away from a broker that is dead, and two brokers at once."""

from __future__ import annotations

import threading

import pytest

from ledger import routes
from runtime.triggers import Outgoing
from tests.acceptance.jobs import TABLE, declare
from tests.conformance.system import System
from tests.rig.rabbitmq import PrivateRabbit
from tests.rig.redis import PrivateRedis
from tests.rig.waiting import wait_until
from tests.rig.workers import Workers

WORKER = "tests.acceptance.worker"


@pytest.fixture
def everywhere(redis_url, rabbitmq_url, settings):
    """Settings with the URLs of all three brokers, for a fleet of one of them."""
    return lambda broker, **fields: settings.model_copy(update={"broker": broker} | fields)


@pytest.fixture
def fleets(tmp_path):
    """Starts workers with settings of one's own: ``fleets(settings)``."""
    started = []

    def start(settings):
        workers = Workers(settings, tmp_path)
        started.append(workers)
        return workers(WORKER)

    yield start
    for workers in started:
        print(workers.logs())
        workers.close()


class Stream:
    """Sends until told otherwise: most at once, some for later."""

    def __init__(self, system):
        self._system = system
        self._stop = threading.Event()
        self.sent = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(0.02):
            self._system.jobs.traced.send_with_options(delay=700 if self.sent % 5 == 0 else None)
            self.sent += 1

    def stop(self):
        self._stop.set()
        self._thread.join()


def route(system):
    rows = system.rows("SELECT broker, version FROM switchyard.route WHERE queue = '*'")
    return rows[0] if rows else (None, 0)


def states(system):
    return dict(system.rows("SELECT state, count(*) FROM switchyard.job GROUP BY state"))


@pytest.mark.parametrize(("old", "new"), [("redis", "rabbitmq"), ("rabbitmq", "postgres"), ("postgres", "redis")])
def test_a_switch_there_and_back_while_jobs_flow_loses_none_and_runs_none_twice(everywhere, fleets, tmp_path, old, new):
    system = System(everywhere(old), declare)
    system.database.run(lambda connection: connection.execute(TABLE))
    go = tmp_path / "go"
    first = fleets(everywhere(old))
    running = system.jobs.wait_for_file.send(str(go))
    wait_until(lambda: system.rows("SELECT 1 FROM effect"), 60, "one runs")
    stream = Stream(system)
    try:
        # Both fleets at once: the new value is the route, and stays it.
        second = fleets(everywhere(new))
        wait_until(lambda: route(system) == (new, 2), 60, lambda: f"the new fleet's broker is the route: {route(system)}")
        before = stream.sent
        wait_until(lambda: stream.sent > before + 100, 60, "more were sent")
        assert route(system) == (new, 2)
        wait_until(lambda: system.broker.routes.of("default") == new, 60, "the sender follows")
        go.touch()
        assert first.stop() == 0

        fleets(everywhere(old))
        registered = "SELECT count(*) FROM switchyard.worker WHERE broker = %s"
        wait_until(lambda: system.rows(registered, old) == [(1,)], 60, "the old fleet is back")
        assert second.stop() == 0
        wait_until(lambda: route(system)[0] == old, 60, lambda: f"the old one is the route again: {route(system)}")
    finally:
        stream.stop()
        go.touch()
    total = stream.sent + 1

    wait_until(lambda: states(system) == {"completed": total}, 60, lambda: f"all run: {states(system)} of {total}")

    ran = system.rows("SELECT count(*), count(DISTINCT job) FROM effect")
    system.close()
    assert ran == [(total, total)], running


@pytest.mark.parametrize("kind", [PrivateRedis, PrivateRabbit])
def test_what_waits_in_a_broker_that_is_dead_runs_by_way_of_the_new_one(everywhere, fleets, kind):
    server = kind()
    server.start()
    old, variable = server.name, f"{server.name}_url"
    dead = {variable: type(everywhere(old).redis_url)(server.url)}
    system = System(everywhere(old, **dead), declare)
    try:
        system.database.run(lambda connection: connection.execute(TABLE))
        for number in range(100):
            system.jobs.traced.send_with_options(delay=500 if number % 4 == 0 else None)
        server.kill()

        fleets(everywhere("postgres", **dead))
        system.jobs.traced.send()

        wait_until(lambda: states(system) == {"completed": 101}, 60, lambda: f"all run: {states(system)}")
        assert system.rows("SELECT count(*), count(DISTINCT job) FROM effect") == [(101, 101)]
        assert system.rows("SELECT DISTINCT broker FROM switchyard.job") == [("postgres",)]
        # Whoever sends learns of it although nothing could be published any more.
        wait_until(lambda: system.broker.routes.of("default") == "postgres", 30, "the sender follows")
    finally:
        server.start()
        system.close()
        server.stop()


@pytest.mark.parametrize("general", ["postgres", "redis"])
def test_a_queue_may_have_a_broker_of_its_own_and_a_worker_consumes_both(everywhere, general):
    system = System(everywhere(general, queue_brokers={"counted": "rabbitmq"})).start()
    try:
        plain, routed = system.jobs.add.send(1, 2), system.jobs.count.send(f"own {general}")
        later = system.jobs.count.send_with_options(args=(f"own {general}",), delay=300)

        for message in (plain, routed, later):
            system.ended(message, 30)

        brokers = system.rows("SELECT queue, broker FROM switchyard.job ORDER BY id")
        assert brokers == [("default", general), ("counted", "rabbitmq"), ("counted", "rabbitmq")]
        # The heartbeat says so.
        consumes = "SELECT consumes FROM switchyard.worker"
        wait_until(lambda: system.rows(consumes) == [(sorted([general, "rabbitmq"]),)], 30)
    finally:
        system.close()


def test_a_broker_that_cannot_be_reached_keeps_no_other_queue_from_its_own(everywhere):
    away = type(everywhere("redis").redis_url)("amqp://guest:guest@127.0.0.1:9/%2F")
    system = System(everywhere("redis", queue_brokers={"counted": "rabbitmq"}, rabbitmq_url=away)).start()
    try:
        waits = system.jobs.count.send("away")
        for _ in range(20):
            system.ended(system.jobs.add.send(1, 2), 30)

        assert system.job(waits).state == "pending"
    finally:
        system.close()


def test_a_sender_moves_nothing_to_a_broker_that_it_knows_to_be_down(everywhere):
    away = type(everywhere("redis").redis_url)("amqp://guest:guest@127.0.0.1:9/%2F")
    system = System(everywhere("redis", queue_brokers={"counted": "rabbitmq"}, rabbitmq_url=away))
    place = "SELECT id, broker, publish_count FROM switchyard.job WHERE queue = 'default'"
    try:
        system.jobs.count.send("away")
        wait_until(lambda: system.broker.publisher.is_open("rabbitmq"), 30, "it knows")
        system.jobs.add.send(1, 2)
        wait_until(lambda: system.broker.transport("redis").depth(["default"]) == {"default": 1}, 30, "it is published")
        assert system.database.run(lambda connection: routes.decide(connection, None, "*", "rabbitmq", "redis"))

        # It has just published that, and asks where it goes by now.
        ((id_, *before),) = system.rows(place)
        system.broker.routes.seen_at = None
        system.broker._follow_up("redis", [Outgoing(id_, "default", "add", 0)])

        # Its trigger is where workers look as long as something is there; at the other one there would be none.
        assert system.broker.routes.of("default") == "rabbitmq"
        assert system.rows(place) == [(id_, *before)]
    finally:
        system.close()


def test_a_broker_that_is_no_route_any_more_is_consumed_until_nothing_was_left_there_for_a_lease(everywhere):
    system = System(everywhere("redis", lease=3.0, sweep=0.2)).start()
    consumes = "SELECT consumes FROM switchyard.worker"
    try:
        wait_until(lambda: system.rows(consumes) == [(["redis"],)] and route(system)[0] == "redis", 30, "it consumes the one")

        def decide(connection):
            (seen,) = routes.routes(connection)
            assert routes.decide(connection, seen, "*", "postgres", "redis")

        system.database.run(decide)
        wait_until(lambda: system.rows(consumes) == [(["postgres", "redis"],)], 30, "it consumes both")
        wait_until(lambda: system.rows(consumes) == [(["postgres"],)], 30, "it consumes the other alone")
        system.ended(system.jobs.add.send(1, 2), 30)
    finally:
        system.close()
