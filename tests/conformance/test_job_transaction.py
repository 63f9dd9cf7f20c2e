"""``job.transaction()``: what the actor writes, what it sends and its completion are one commit, whatever fails around it."""

from __future__ import annotations

import threading
import uuid
from contextlib import closing

import pika
import psycopg
import pytest

import switchyard
from ledger.states import State
from tests.conformance import jobs, transaction_jobs
from tests.conformance.severed import Wire
from tests.conformance.system import System
from tests.rig.waiting import wait_until
from tests.rig.workers import Workers

TABLES = """
CREATE TABLE effects (key text, pid int, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE first (key text PRIMARY KEY, pid int, go bool DEFAULT false)
"""

#: What becomes of a transaction is Postgres' business, whichever broker carried the trigger; what comes after the commit is tried on each.
one_broker = pytest.mark.parametrize("broker_name", ["redis"], indirect=True)


def with_tables(settings):
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        connection.execute(TABLES)
    return settings


@pytest.fixture(scope="module")
def running(make_settings):
    system = System(with_tables(make_settings()), transaction_jobs.declare)
    system.start(queues={queue for queue in system.broker.queues if queue not in ("parked", "separate")})
    yield system
    system.close()


@pytest.fixture
def severed(make_settings):
    """A system whose way to Postgres is a wire, with that wire."""
    settings = with_tables(make_settings())
    wire = Wire(settings.database_url.get_secret_value())
    system = System(settings.model_copy(update={"database_url": type(settings.database_url)(wire.url)}), transaction_jobs.declare)
    system.start(threads=2, queues={"default", "counted"})
    yield system, wire
    system.close()
    wire.close()


@pytest.fixture
def workers(make_settings, tmp_path):
    """A system without a worker, and what starts real ones on its queue ``separate``."""
    settings = with_tables(make_settings())
    system = System(settings, transaction_jobs.declare)
    (tmp_path / "separate_jobs.py").write_text(
        "import switchyard\nfrom tests.conformance.transaction_jobs import declare\ndeclare(switchyard.configure())\n"
    )
    started = Workers(settings, tmp_path)
    yield system, lambda: started("separate_jobs", threads=1, queues=("separate",), path=tmp_path)
    started.close()
    system.close()


@pytest.fixture
def key():
    made = uuid.uuid4().hex
    yield made
    transaction_jobs.inside.pop(made, None)
    transaction_jobs.afterwards.pop(made, None)


def effects(system: System, key: str) -> int:
    return int(system.rows("SELECT count(*) FROM effects WHERE key = %s", key)[0][0])


def sent(system: System, key: str) -> int:
    return int(
        system.rows(
            "SELECT count(*) FROM switchyard.job WHERE actor IN ('count', 'parked') AND payload #>> '{args,0}' = %s", key
        )[0][0]
    )


def counted(system: System, *names: str) -> dict[str, int]:
    return {name: system.counters().get(name, 0) for name in names}


def after_the_ack(system: System) -> None:
    """Wait until nothing is in hand: whatever was to be written has been."""
    held = system.broker.node.held
    wait_until(lambda: not held.running and not held.settling)


def test_writes_sends_and_completion_are_one_commit(running, key):
    before = counted(running, "fenced", "leases_lost")
    seen: list[object] = []

    def look(_) -> None:
        seen.append((effects(running, key), sent(running, key)))

    transaction_jobs.inside[key] = look
    message = running.jobs.charges.send(key)

    job = running.ended(message)

    assert seen == [(0, 0)]
    assert (job.state, job.result, job.attempt) == (State.COMPLETED, {"key": key, "attempt": 1}, 1)
    assert (effects(running, key), sent(running, key)) == (1, 1)
    wait_until(lambda: jobs.seen.get(key) == [1])
    child = running.rows("SELECT parent_id::text FROM switchyard.job WHERE payload #>> '{args,0}' = %s AND actor = 'count'", key)
    assert child == [(message.message_id,)]
    after_the_ack(running)
    assert counted(running, "fenced", "leases_lost") == before


def test_an_exception_inside_rolls_everything_back_and_the_job_is_tried_again(running, key):
    message = running.jobs.charges.send(key, "inside")

    job = running.ended(message)

    assert (job.state, job.result, job.failures) == (State.COMPLETED, {"key": key, "attempt": 2}, 1)
    assert (effects(running, key), sent(running, key)) == (1, 1)
    assert [attempt.outcome for attempt in running.attempts(message)] == ["failed", "completed"]


@pytest.mark.parametrize("afterwards", ["after", "returns"])
def test_what_comes_afterwards_changes_nothing(running, key, afterwards, caplog):
    message = running.jobs.charges.send(key, afterwards)
    job = running.ended(message)
    wait_until(lambda: jobs.runs["after " + key])
    after_the_ack(running)

    now = running.job(message)
    assert (now.state, now.result, now.attempt, now.progress, now.error) == (
        State.COMPLETED, {"key": key, "attempt": 1}, 1, job.progress, None,
    )  # fmt: skip
    assert (effects(running, key), jobs.runs["after " + key]) == (1, 1)
    if afterwards == "after":
        assert "raised after job.transaction()" in caplog.text
        # Late progress and lines are dropped; they are no reason to stop.
        assert "ValueError: after" in caplog.text
        assert "LeaseLost" not in caplog.text
    else:
        assert "a return value after job.transaction()" in caplog.text


def test_the_callback_is_written_in_the_same_commit(running, key):
    message = running.jobs.charges_with_callback.send(key)

    running.ended(message)

    callbacks = running.rows(
        "SELECT count(*) FROM switchyard.job WHERE actor = 'on_success' AND parent_id = %s::uuid", message.message_id
    )
    assert callbacks == [(1,)]
    wait_until(lambda: jobs.seen.get("success " + message.message_id) == [key])
    after_the_ack(running)
    assert jobs.runs["success " + message.message_id] == 1


def test_followers_are_made_once(running, key, caplog):
    message = running.jobs.charges_with_callback.send_with_options(args=(key,), on_success="nobody_knows_it")

    running.ended(message)
    after_the_ack(running)

    assert caplog.text.count("does not know the actor of a callback") == 1


def test_the_next_step_of_a_pipeline_gets_the_result(running, key):
    step = running.jobs.echo.message()
    message = running.jobs.charges_with_callback.message(key)
    running.broker.enqueue(message.copy(options={"pipe_target": step.asdict()}))

    wait_until(lambda: switchyard.get_job(step.message_id) is not None)
    assert running.ended(step).result == key


def test_a_result_that_is_not_to_be_stored_goes_to_the_callback_alone(running, key):
    message = running.jobs.charges_quietly.send(key)

    assert running.ended(message).result is None
    wait_until(lambda: jobs.seen.get("success " + message.message_id) == [key])


def test_an_asynchronous_actor_may_use_it(running, key):
    message = running.jobs.charges_asynchronously.send(key)

    assert running.ended(message).result == key
    assert (effects(running, key), sent(running, key)) == (1, 1)


@pytest.mark.parametrize(
    ("how", "state", "made"),
    [("nested", State.DEAD, 0), ("after", State.COMPLETED, 1), ("after a rollback", State.COMPLETED, 1)],
)
def test_a_job_has_one_commit(running, key, how, state, made):
    message = running.jobs.twice.send(key, how)

    job = running.ended(message)
    after_the_ack(running)

    assert (job.state, effects(running, key)) == (state, made)
    if how == "nested":
        assert "open already" in job.error
    if how == "after":
        assert "completed already" in jobs.seen["refused " + key][0]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("outside", "RuntimeError"),
        ("commits", "ProgrammingError"),
        ("raw commit", "RuntimeError"),
        ("unstorable", "ValueError"),
        ("snoozes", "RuntimeError"),
        ("database error", "InFailedSqlTransaction"),
    ],
)
def test_misuse_fails_the_job_and_leaves_nothing(running, key, how, error):
    message = running.jobs.misuses.send(key, how)

    job = running.ended(message)

    assert (job.state, job.error_type, effects(running, key)) == (State.DEAD, error, 0)


def test_the_next_borrower_finds_no_traces(running, key):
    first = running.ended(running.jobs.leaves_traces.send(key)).result
    after_the_ack(running)
    backends = {first["pid"]}
    for _ in range(20):
        job = running.ended(running.jobs.finds_traces.send())
        pid, search_path, traces = job.result
        backends.add(pid)
        if pid == first["pid"]:
            break
    else:
        raise AssertionError(f"the connection was not used again: {backends}")

    assert (search_path, traces) == ('"$user", public', None)
    assert running.rows("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711") == [(0,)]


@one_broker
def test_neither_heartbeat_nor_rescue_minds_a_transaction_that_locks_the_row_for_long(running, key):
    """Longer than a lease: nobody may take the job away, and nobody may believe that it was."""
    before = counted(running, "fenced", "leases_lost")
    over = threading.Event()

    def lock(connection) -> None:
        connection.execute(
            "SELECT 1 FROM switchyard.job WHERE state = 'running' AND payload #>> '{args,0}' = %s FOR UPDATE", (key,)
        )
        beats = beats_of(running)
        wait_until(lambda: beats_of(running) >= beats + 5, 30)
        over.set()

    transaction_jobs.inside[key] = lock
    message = running.jobs.charges.send(key)

    job = running.ended(message)

    assert over.is_set()
    assert (job.state, job.attempt, effects(running, key)) == (State.COMPLETED, 1, 1)
    assert counted(running, "fenced", "leases_lost") == before


@one_broker
def test_no_heartbeat_after_the_commit_takes_the_lease_for_lost(running, key):
    before = counted(running, "fenced", "leases_lost")

    def linger() -> None:
        beats = beats_of(running)
        wait_until(lambda: beats_of(running) >= beats + 2, 30)

    transaction_jobs.afterwards[key] = linger
    message = running.jobs.charges.send(key)
    running.ended(message)
    after_the_ack(running)

    assert counted(running, "fenced", "leases_lost") == before


def beats_of(system: System) -> int:
    """How many thirds of a lease the worker has beaten through."""
    return int(
        system.rows("SELECT extract(epoch FROM max(beat_at) - max(started_at))::float8 FROM switchyard.worker")[0][0] * 3 / 2
    )


@one_broker
@pytest.mark.parametrize("fault", ["undelivered", "unanswered"])
def test_a_lost_reply_to_the_commit_is_looked_up(severed, key, fault):
    system, wire = severed
    wire.strike(fault)

    message = system.jobs.charges.send(key)
    job = system.ended(message, timeout=30)

    assert wire.struck.is_set()
    delivered = fault == "unanswered"
    assert (job.state, job.attempt, job.failures) == (State.COMPLETED, 1 if delivered else 2, 0 if delivered else 1)
    assert (effects(system, key), sent(system, key)) == (1, 1)
    wait_until(lambda: jobs.runs["after " + key] == 1)


@one_broker
def test_a_commit_on_its_way_cannot_be_interrupted(severed, key):
    """Its time limit passes while the commit is held up; had it been torn, the effect would be there and the job tried again."""
    system, wire = severed
    wire.strike("held")

    message = system.jobs.charges_in_time.send(key)
    job = system.ended(message)

    assert wire.struck.is_set()
    wait_until(lambda: jobs.runs["rested " + key] == 1)
    after_the_ack(system)
    assert (job.state, job.attempt, effects(system, key)) == (State.COMPLETED, 1, 1)
    assert system.counters().get("leases_lost", 0) == 0


@one_broker
def test_a_client_that_vanishes_before_the_commit_does_not_keep_the_row(severed, key):
    """The server gives its transaction up by itself; with the row locked neither heartbeat nor rescue could do anything."""
    system, wire = severed
    wire.strike("swallowed")

    message = system.jobs.charges.send(key)
    job = system.ended(message, timeout=30)

    assert wire.struck.is_set()
    assert (job.state, job.attempt, effects(system, key)) == (State.COMPLETED, 2, 1)


def test_the_time_limit_holds_again_after_the_commit(running, key):
    message = running.jobs.charges_in_time.send(key, 60.0)

    job = running.ended(message)
    after_the_ack(running)

    assert (job.state, running.job(message).attempt, effects(running, key)) == (State.COMPLETED, 1, 1)
    assert jobs.runs["rested " + key] == 0


def wait_until_nothing_is_pushed(system: System) -> None:
    """RabbitMQ hands triggers to whoever has an idle thread; to a process frozen with one also the one that this job needs."""
    if system.settings.broker != "rabbitmq":
        return
    with closing(pika.BlockingConnection(pika.URLParameters(system.settings.rabbitmq_url.get_secret_value()))) as connection:
        channel = connection.channel()
        queue = f"{system.settings.broker_prefix}.separate.p10"
        wait_until(lambda: channel.queue_declare(queue, passive=True).method.consumer_count == 0, 30)


@one_broker
def test_a_worker_paused_beyond_its_lease_commits_nothing(workers, key):
    system, start = workers
    message = system.jobs.charges_slowly.send(key)
    slow = start()
    wait_until(lambda: system.rows("SELECT 1 FROM first WHERE key = %s", key), 30)
    wait_until_nothing_is_pushed(system)
    slow.freeze()
    start()

    job = system.ended(message, timeout=30)
    (holder,) = [pid for (pid,) in system.rows("SELECT pid FROM effects WHERE key = %s", key)]
    system.database.run(lambda c: c.execute("UPDATE first SET go = true"))
    slow.thaw()
    wait_until(lambda: "LeaseLost" in slow.output(), 30, slow.output)

    (first,) = [pid for (pid,) in system.rows("SELECT pid FROM first")]
    assert first != holder
    assert (job.state, effects(system, key), sent(system, key)) == (State.COMPLETED, 1, 1)
    assert system.job(message) == job


@one_broker
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_killed_around_the_commit(workers, key, moment):
    system, start = workers
    message = system.jobs.charges_and_dies.send(key, moment)
    start()
    wait_until(lambda: system.rows("SELECT 1 FROM first WHERE key = %s", key), 30)
    if moment == "after":
        job = system.ended(message)
    else:
        assert effects(system, key) == 0
        start()
        job = system.ended(message, timeout=30)

    assert (job.state, effects(system, key), sent(system, key)) == (State.COMPLETED, 1, 1)
    assert job.attempt == (1 if moment == "after" else 2)


def test_callbacks_survive_a_worker_that_dies_right_after_the_commit(workers, key, tmp_path):
    system, _ = workers
    message = system.jobs.charges_with_callback.send(key, True)
    started = Workers(system.settings, tmp_path)
    try:
        started("separate_jobs", threads=1, queues=("default",), path=tmp_path)
        job = system.ended(message, timeout=30)
        callbacks = system.rows("SELECT state FROM switchyard.job WHERE actor = 'on_success'")
        assert (job.state, job.attempt, len(callbacks)) == (State.COMPLETED, 1, 1)
    finally:
        started.close()


def test_a_unit_test_gives_its_own_connection(database_url):
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TEMP TABLE spent (amount int)")
        with switchyard.job_context(connection=connection) as job:
            with pytest.raises(psycopg.errors.DivisionByZero), job.transaction() as inner:
                inner.execute("INSERT INTO spent VALUES (1 / 0)")
            assert not job.completed
            with job.transaction() as inner:
                inner.execute("INSERT INTO spent VALUES (2)")
                job.result = "paid"
            assert (job.completed, job.result) == (True, "paid")
            with pytest.raises(RuntimeError, match="completed already"), job.transaction():
                pass
        assert connection.execute("SELECT amount FROM spent").fetchall() == [(2,)]


def test_a_unit_test_without_a_connection_is_told_what_to_do():
    with (
        switchyard.job_context() as job,
        pytest.raises(RuntimeError, match=r"job_context\(connection=\.\.\.\)"),
        job.transaction(),
    ):
        pass
