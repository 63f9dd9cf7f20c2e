"""``switchyard status`` and ``workers``: every figure, every problem and its exit code, and what they say when something is away."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner, Result

from cli import main, status
from ledger import overview as look
from ledger.database import Database
from settings import Settings
from tests.conformance import control_jobs
from tests.conformance.jobs import gate, runs
from tests.conformance.system import System
from tests.rig.redis import PrivateRedis
from tests.rig.waiting import wait_until

HOUR = 3_600_000
NOWHERE = "postgresql://me:hunter2@127.0.0.1:9/nothing"


@pytest.fixture
def system(settings: Settings) -> Iterator[System]:
    """A system on the Postgres broker, not started."""
    system = System(settings.model_copy(update={"broker": "postgres"}), declare=control_jobs.declare)
    yield system
    system.close()


@pytest.fixture
def variables(system: System) -> dict[str, str]:
    """What leads a command to the system."""
    return {"DATABASE_URL": system.settings.database_url.get_secret_value(), "BROKER": "postgres", "COLUMNS": "80"}


@pytest.fixture
def run(variables: dict[str, str]) -> Callable[..., Result]:
    def run(*words: str, code: int = 0, **more: str) -> Result:
        result = CliRunner().invoke(main, ["status", *words], env=variables | more)
        assert (result.exit_code, type(result.exception) in (type(None), SystemExit)) == (code, True), result.output
        return result

    return run


@pytest.fixture
def found(run: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    def found(*words: str, code: int = 0, **more: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(run("--json", *words, code=code, **more).stdout)
        assert value["healthy"] is (code == 0)
        return value

    return found


def kinds(value: dict[str, Any], of: str = "problems") -> list[str]:
    return [entry["kind"] for entry in value[of]]


def working(system: System) -> System:
    """The same, with a worker that has said so."""
    system.start(threads=2)
    # Its first heartbeat may be older than its connection to the broker.
    wait_until(lambda: bool(system.rows("SELECT 1 FROM switchyard.worker WHERE consumes <> '{}'")), 30, "the worker has beaten")
    return system


def living(system: System, *queues: str, beat: int = 0) -> None:
    """A worker process that is not there but in the ledger, and last said so ``beat`` seconds ago."""
    system.rows(
        "INSERT INTO switchyard.worker (id, host, pid, broker, queues, consumes, threads, lease_seconds, beat_at)"
        " VALUES ('h:1:x', 'h', 1, 'postgres', %s, '{postgres}', 4, 30, now() - %s * interval '1 s') RETURNING 1",
        list(queues) or ["default", "other"],
        beat,
    )


def test_a_system_that_works_is_healthy_and_shows_what_it_does(system, run, found):
    working(system)
    system.jobs.plug.send("busy")
    wait_until(lambda: runs["busy"] > 0, 20, "it runs")
    system.jobs.echo.send_with_options(args=("k",), delay=HOUR)

    value = found()
    shown = run().stdout
    gate("busy").set()

    assert (kinds(value), kinds(value, "notes")) == ([], [])
    (worker,) = value["workers"]
    assert (worker["busy"], worker["threads"], worker["alive"], worker["consumes"]) == (1, 2, True, ["postgres"])
    queues = {queue["queue"]: queue for queue in value["queues"]}
    assert (queues["default"]["running"], queues["default"]["scheduled"], queues["default"]["workers"]) == (1, 1, 1)
    assert worker["version"] == value["version"] == version("switchyard")
    assert queues["other"] == queues["other"] | {"waiting": 0, "workers": 1, "oldest": None}
    assert [(broker["name"], broker["reachable"]) for broker in value["brokers"]] == [("postgres", True)]
    assert value["ledger"]["reachable"]
    assert value["ledger"]["bytes"] > 100_000
    assert shown.endswith("nothing is wrong\n")
    assert "hunter2" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search(r"^default +0 +1 +0 +1 +0 +0 +1$", shown, re.MULTILINE)
    assert re.search(rf"^{worker['id']} +{worker['host']} +{worker['pid']} +1/2 ", shown, re.MULTILINE)


def test_versions_that_differ_are_a_note_while_their_workers_live(system, variables, run, found):
    working(system)
    assert kinds(found(), "notes") == []
    system.rows(
        "INSERT INTO switchyard.worker (id, host, pid, broker, queues, consumes, threads, lease_seconds, counters)"
        " VALUES ('old', 'h', 1, 'postgres', '{default}', '{postgres}', 4, 30, '{}'),"
        " ('new', 'h', 2, 'postgres', '{default}', '{postgres}', 4, 30, '{\"stale\": 1, \"version\": \"9.9\"}') RETURNING 1"
    )

    (note,) = found()["notes"]
    workers = CliRunner().invoke(main, ["workers"], env=variables | {"COLUMNS": "200"}).stdout

    assert note["kind"] == "mixed_versions"
    assert note["text"].endswith(f": {version('switchyard')} (1), 9.9 (1), one that does not say which (1)")
    assert re.search(r"^new +h +2 .* postgres +9\.9 +default$", workers, re.MULTILINE)
    system.rows("DELETE FROM switchyard.worker WHERE id = 'old' RETURNING 1")
    system.rows("UPDATE switchyard.worker SET beat_at = now() - interval '40 s' WHERE id = 'new' RETURNING 1")
    assert kinds(found(), "notes") == ["worker_silent"]


def test_an_empty_ledger_without_a_worker_has_one_problem_and_says_what_to_do(run):
    result = run(code=1)

    assert "no queue is in use" in result.stdout
    assert "PROBLEM  no worker lives\n         start one: `switchyard worker`\n" in result.stdout


def test_a_queue_that_nobody_consumes_is_a_problem_once_a_job_has_waited_for_a_minute(system, found):
    living(system)
    insert_waiting(system, "lonely", 59)
    assert kinds(found()) == []

    insert_waiting(system, "lonely", 61)

    value = found(code=1)
    assert kinds(value) == ["queue_without_workers"]
    assert "2 jobs in queue lonely" in value["problems"][0]["text"]
    advice = value["problems"][0]["advice"]
    assert "whose modules declare an actor on it" in advice
    assert "`switchyard worker -Q lonely MODULE`" in advice
    assert "docs/howto/dead-letters.md" in advice
    system.rows("INSERT INTO switchyard.pause (queue, actor) VALUES ('lonely', '*') RETURNING 1")
    paused = found()
    assert kinds(paused, "notes") == ["paused"]
    assert paused["notes"][0]["advice"] == "`switchyard resume --queue lonely` ends it"


def insert_waiting(system: System, queue: str, seconds: int) -> None:
    """A pending job that has been due for so long, of an actor that the worker has."""
    system.rows(
        "INSERT INTO switchyard.job (message_id, queue, actor, state, payload, broker, created_at, run_at) VALUES (gen_random_uuid(), %s,"
        " 'echo', 'pending', '{\"args\": [\"k\"], \"kwargs\": {}}', 'postgres', now() - %s * interval '1 s', now() - %s * interval '1 s')"
        " RETURNING 1",
        queue,
        seconds,
        seconds,
    )


def test_a_job_that_waits_longer_than_was_asked_for_is_a_problem(system, found):
    living(system, "lonely")
    insert_waiting(system, "lonely", 100)

    assert kinds(found()) == []
    assert kinds(found("--max-wait", "2m")) == []
    assert kinds(found("--max-wait", "90s", code=1)) == ["waits_too_long"]


def test_a_worker_that_fell_silent_is_a_note_and_its_jobs_are_a_problem_while_nobody_rescues_them(system, found):
    living(system, beat=120)
    system.jobs.echo.send("k")
    system.rows(
        "UPDATE switchyard.job SET state = 'running', attempt = 1, token = gen_random_uuid(), worker = 'h:1:x',"
        " lease_until = now() - interval '61 seconds', next_publish_at = NULL RETURNING 1"
    )

    value = found(code=1)

    assert kinds(value) == ["no_workers", "not_rescued"]
    assert kinds(value, "notes") == ["worker_silent"]
    assert value["workers"][0]["silence"] > 100
    assert not value["workers"][0]["alive"]
    # Whoever is silent consumes nothing.
    assert [queue["workers"] for queue in value["queues"]] == [0]


@pytest.mark.parametrize(
    ("statement", "kind", "said"),
    [
        (
            "UPDATE switchyard.job SET wait_reason = 'unknown_actor', wait_since = now() - interval '61 s' RETURNING 1",
            "unknown_actor",
            "1 job of actor echo, which no worker knows",
        ),
        (
            "INSERT INTO switchyard.schedule (name, actor, payload, expression, timezone, catch_up, window_seconds, jitter_seconds,"
            " source, next_tick_at, due_at) VALUES ('late', 'echo', '{}', '* * * * *', 'UTC', 'skip', 1, 0, 'created', now(),"
            " now() - interval '61 s') RETURNING 1",
            "schedule_overdue",
            "schedule late has been due since",
        ),
        (
            "INSERT INTO switchyard.duty (name, due_at) VALUES ('samples', now() - interval '61 s') RETURNING 1",
            "no_keeper",
            "nobody has kept the ledger for 1m",
        ),
    ],
    ids=["unknown actor", "overdue", "no keeper"],
)
def test_what_nobody_sees_to_is_a_problem(system, found, statement, kind, said):
    system.jobs.echo.send("k")
    system.rows(statement)

    value = found(code=1)

    (problem,) = [entry for entry in value["problems"] if entry["kind"] == kind]
    assert problem["text"].startswith(said)


def test_dead_letters_are_a_note(system, found):
    living(system)
    message = system.jobs.echo.send_with_options(args=("k",), delay=HOUR)
    system.rows(
        "UPDATE switchyard.job SET state = 'dead', dead_reason = 'expired', finished_at = now(), next_publish_at = NULL RETURNING 1"
    )

    value = found()

    assert system.job(message).state == "dead"
    assert value["dead"] == {"count": 1, "at_least": False, "last_hour": 1}
    assert kinds(value, "notes") == ["dead_letters"]


def test_a_broker_in_use_that_does_not_answer_is_a_problem_and_any_other_is_none(system, found):
    living(system)
    redis = PrivateRedis()
    redis.start()
    here = {"REDIS_URL": redis.url, "RABBITMQ_URL": "amqp://guest:guest@127.0.0.1:9/%2F"}
    system.rows("INSERT INTO switchyard.route (queue, broker) VALUES ('other', 'redis') RETURNING 1")
    reachable = found(**here)
    redis.stop()

    value = found(code=1, **here)

    assert [(broker["name"], broker["reachable"]) for broker in reachable["brokers"]] == [("postgres", True), ("redis", True)]
    assert [(broker["name"], broker["reachable"]) for broker in value["brokers"]] == [("postgres", True), ("redis", False)]
    assert kinds(value) == ["broker_unreachable"]
    assert "REDIS_URL" in value["problems"][0]["advice"]


def test_a_queue_that_its_broker_refuses_is_a_problem_and_named_with_the_way_out(system, found, run):
    living(system)
    server = PrivateRedis()
    server.start()
    here = {"REDIS_URL": server.url, "RABBITMQ_URL": "amqp://guest:guest@127.0.0.1:9/%2F", "BROKER_PREFIX": "mine"}
    system.rows("INSERT INTO switchyard.route (queue, broker) VALUES ('default', 'redis') RETURNING 1")
    with redis.Redis.from_url(server.url) as client:
        client.set("mine:{q}:default", "not a queue")

        value = found(code=1, **here)
        shown = CliRunner().invoke(main, ["broker", "status"], env=here | {"DATABASE_URL": value_of(system), "COLUMNS": "200"})

        assert kinds(value) == ["queue_refused"]
        assert "default" in value["problems"][0]["text"]
        assert "mine:{q}:default" in value["problems"][0]["advice"]
        (asked,) = (broker for broker in value["brokers"] if broker["name"] == "redis")
        assert (asked["reachable"], [refused["queue"] for refused in asked["refused"]]) == (True, ["default"])
        assert "redis refuses the queue default: mine:{q}:default: WRONGTYPE" in shown.output
        client.delete("mine:{q}:default")
        assert kinds(found(**here)) == []
    server.stop()


def value_of(system: System) -> str:
    return system.settings.database_url.get_secret_value()


def test_an_operators_decision_about_a_route_is_a_note(system, found):
    living(system)
    system.rows("INSERT INTO switchyard.route (queue, broker, overruled) VALUES ('*', 'postgres', '{redis}') RETURNING 1")

    assert kinds(found(), "notes") == ["route_decided"]


def test_a_database_that_is_away_is_the_one_problem_and_no_password_is_shown(run, found):
    value = found(code=1, DATABASE_URL=NOWHERE)
    result = run(code=1, DATABASE_URL=NOWHERE)

    assert kinds(value) == ["ledger_unavailable"]
    assert value["ledger"] == {"reachable": False, "revision": None}
    assert result.stdout.startswith("PROBLEM  DATABASE_URL: nobody answers at 127.0.0.1:9")
    assert "hunter2" not in result.output


def test_a_database_that_is_not_migrated_is_the_one_problem(system, run, found, empty_database_url):
    value = found(code=1, DATABASE_URL=empty_database_url)

    assert kinds(value) == ["ledger_not_migrated"]
    assert value["ledger"] == {"reachable": True, "revision": None}
    assert "run `switchyard migrate`" in run(code=1, DATABASE_URL=empty_database_url).stdout
    system.rows("UPDATE switchyard.alembic_version SET version_num = '0001' RETURNING 1")
    assert "is at migration 0001, this code needs" in found(code=1)["problems"][0]["text"]


def test_too_many_to_count_are_told_from_the_last_sample_or_as_a_lower_bound(system, monkeypatch):
    for _ in range(5):
        system.jobs.echo.send_with_options(args=("k",), delay=HOUR)

    exact = system.database.run(look.overview)
    bound = system.database.run(lambda connection: look.overview(connection, bound=3))
    system.rows(
        "INSERT INTO switchyard.sample (at, queue, scheduled, pending, running, retrying) VALUES (now(), 'default', 4711, 0, 0, 0)"
        " RETURNING 1"
    )
    sampled = system.database.run(lambda connection: look.overview(connection, bound=3))
    system.rows("UPDATE switchyard.sample SET at = now() - interval '1 hour' RETURNING 1")
    stale = system.database.run(lambda connection: look.overview(connection, bound=3))

    assert [(o.queues[0].scheduled, o.at_least, o.as_of is None) for o in (exact, bound, sampled, stale)] == [
        (5, False, True), (3, True, True), (4711, False, False), (3, True, True),
    ]  # fmt: skip


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_goes_on_through_an_outage_and_ends_well_with_ctrl_c(system, variables, monkeypatch, as_json):
    """Looks are counted; the third is interrupted as Ctrl-C does it."""
    looks: list[bool] = []
    real = status.look

    def look_and_count(settings: Settings, database: Any, max_wait: float | None) -> status.Report:
        looks.append(True)
        if len(looks) == 2:
            away = Database(NOWHERE)
            try:
                return real(settings, away, max_wait)
            finally:
                away.close()
        if len(looks) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(settings, database, max_wait)

    monkeypatch.setattr(status, "look", look_and_count)
    words = ["status", "--watch", "--every", "0.5s", *(["--json"] if as_json else [])]

    result = CliRunner().invoke(main, words, env=variables)

    assert result.exit_code == 0, result.output
    assert len(looks) == 3
    if as_json:
        assert [kinds(json.loads(line)) for line in result.stdout.splitlines()] == [["no_workers"], ["ledger_unavailable"]]
    else:
        assert "no worker lives" in result.stdout
        assert "nobody answers at 127.0.0.1:9" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--every", "0.1s"], "500ms is the shortest"),
        (["--every", "often"], "is no duration"),
        (["--max-wait", "soon"], "is no duration"),
    ],
)
def test_what_is_typed_wrongly_is_a_usage_error(run, words, said):
    assert said in run(*words, code=2).stderr


def test_workers_are_listed(system, variables):
    none = CliRunner().invoke(main, ["workers"], env=variables)
    working(system)
    listed = CliRunner().invoke(main, ["workers"], env=variables)
    (worker,) = json.loads(CliRunner().invoke(main, ["workers", "--json"], env=variables).stdout)["workers"]

    assert (none.exit_code, none.stdout) == (0, "no worker lives: start one with `switchyard worker`\n")
    assert worker["id"] in listed.stdout
    assert "default, other" in listed.stdout
    assert (worker["queues"], worker["threads"]) == (["default", "other"], 2)


def test_commands_say_in_one_line_that_the_database_is_not_migrated(variables, empty_database_url):
    with psycopg.connect(empty_database_url):
        result = CliRunner().invoke(main, ["workers"], env=variables | {"DATABASE_URL": empty_database_url})

    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.endswith("run `switchyard migrate`")
