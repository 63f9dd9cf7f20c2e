"""Worker processes that are killed, paused, stopped or kill themselves: every job still ends, exactly once where it is promised."""

from __future__ import annotations

import itertools
import signal
from time import monotonic

import pika
import pytest

import switchyard
from brokers.amqp import queue_name
from ledger.states import State
from tests.rig.waiting import wait_until

WORKER = "tests.acceptance.worker"


def traces(system, what):
    """Job and attempt of each trace, in order."""
    return [
        (str(job), attempt) for job, attempt in system.rows("SELECT job, attempt FROM effect WHERE what = %s ORDER BY at", what)
    ]


def states(system):
    return dict(system.rows("SELECT state, count(*) FROM switchyard.job GROUP BY state"))


def consumers(system):
    """How many consumers the default queue has in RabbitMQ; the other brokers push nothing."""
    if system.settings.broker != "rabbitmq":
        return 0
    connection = pika.BlockingConnection(pika.URLParameters(system.settings.rabbitmq_url.get_secret_value()))
    try:
        declared = connection.channel().queue_declare(queue_name(system.settings.broker_prefix, "default"), passive=True)
        return declared.method.consumer_count
    finally:
        connection.close()


def test_the_jobs_of_a_killed_worker_run_again_within_a_lease_and_a_sweep(system, worker_process, tmp_path, broker_name):
    go = tmp_path / "go"
    running = [system.jobs.wait_for_file.send(str(go)) for _ in range(4)]
    first = worker_process(WORKER, threads=4)
    wait_until(lambda: len(traces(system, "started")) == 4, 60, "all four run")
    waiting = [system.jobs.quick.send(n) for n in range(20)]
    second = worker_process(WORKER, threads=8)
    wait_until(lambda: system.rows("SELECT count(*) FROM switchyard.worker") == [(2,)], 60, "the second is up")

    killed = monotonic()
    first.kill()
    wait_until(lambda: len(traces(system, "started")) == 5, 60, "the first of them runs again")
    recovery = monotonic() - killed
    # They are suspects now, and run one at a time.
    go.touch()

    for message in (*running, *waiting):
        assert system.ended(message, 60).state is State.COMPLETED
    assert [system.job(m).result for m in running] == [2] * 4
    # It takes a lease and a sweep; a busy machine is given the time of several.
    assert recovery < system.settings.lease + system.settings.sweep + 10
    assert [a.outcome for a in system.attempts(running[0])] == ["lost", "completed"]
    assert second.running


def test_a_worker_paused_beyond_its_lease_cannot_overwrite_the_newer_result(system, worker_process, tmp_path, broker_name):
    go = tmp_path / "go"
    message = system.jobs.wait_for_file.send(str(go))
    # Its one thread is busy, so it consumes no more: RabbitMQ would go on handing triggers to a frozen consumer.
    first = worker_process(WORKER, threads=1)
    wait_until(lambda: traces(system, "started") and not consumers(system), 60, "it runs, and consumes no more")
    first.freeze()
    second = worker_process(WORKER)
    wait_until(lambda: len(traces(system, "started")) == 2, 60, "it runs again")

    go.touch()
    job = system.ended(message)
    first.thaw()
    wait_until(lambda: "lease lost" in first.output() or "late result" in first.output(), 60, "the paused one learns of it")
    assert first.stop() == 0

    assert (job.state, job.result) == (State.COMPLETED, 2)
    assert system.job(message) == job
    assert [line.line for line in switchyard.logs(message.message_id)] == ["done in attempt 2"]
    assert [a.outcome for a in system.attempts(message)] == ["lost", "completed"]
    assert second.stop() == 0


@pytest.mark.timeout(180)
def test_one_job_that_kills_its_worker_among_a_thousand_good_ones(system, worker_process, broker_name):
    good = [system.jobs.quick.message(n) for n in range(1_000)]
    bad = system.jobs.exits.message()
    switchyard.enqueue_many([*good[:500], bad, *good[500:]])

    workers = [worker_process(WORKER, env={"MAX_LOST": "2"})]
    wanted = {"completed": 1_000, "dead": 1}
    while states(system) != wanted:
        wait_until(lambda: not workers[-1].running or states(system) == wanted, 60, lambda: f"it goes on: {states(system)}")
        # The test stands in for the supervisor: a plain dramatiq ends as a whole when its process dies.
        if not workers[-1].running:
            workers.append(worker_process(WORKER, env={"MAX_LOST": "2"}))

    job = system.job(bad)
    assert (job.state, job.dead_reason, job.lost) == (State.DEAD, "worker_lost", 2)
    # The first death makes suspects, the next two tell which one it is.
    assert len(workers) - 1 == len(traces(system, "exits")) == 3
    assert system.rows("SELECT max(lost) FROM switchyard.job WHERE state = 'completed'") == [(0,)]
    assert workers[-1].stop() == 0


def test_sigterm_gives_back_what_has_not_started_and_spends_no_attempt(system, worker_process, broker_name):
    messages = switchyard.enqueue_many([system.jobs.brief.message(0.05) for _ in range(200)])
    first = worker_process(WORKER, threads=4)
    wait_until(lambda: states(system).get("completed", 0) > 20, 60, "it works")

    stopping = monotonic()
    assert first.stop() == 0
    # SHUTDOWN_GRACE is 25 s.
    assert monotonic() - stopping < 20

    left = states(system)
    assert set(left) == {"completed", "pending"}
    assert system.rows("SELECT max(attempt) FROM switchyard.job WHERE state = 'pending'") == [(0,)]
    worker_process(WORKER, threads=8)
    wait_until(lambda: states(system) == {"completed": 200}, 60, lambda: f"the rest runs: {states(system)}")
    assert system.rows("SELECT DISTINCT attempt FROM switchyard.job") == [(1,)]
    assert system.rows("SELECT count(*) FROM switchyard.attempt") == [(0,)]
    assert len(messages) == 200


# What becomes of running jobs is no broker's business: one is enough.
@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_sigterm_lets_running_jobs_end_within_the_grace(system, worker_process, tmp_path, broker_name):
    go = tmp_path / "go"
    message = system.jobs.wait_for_file.send(str(go))
    worker = worker_process(WORKER, env={"LEASE": "60", "SHUTDOWN_GRACE": "60"})
    wait_until(lambda: traces(system, "started"), 60, "it runs")

    worker.terminate()
    wait_until(lambda: "Shutting down" in worker.output() or "shut" in worker.output().lower(), 20, "it stops")
    assert system.job(message).state is State.RUNNING
    go.touch()

    assert worker.wait(40) == 0
    job = system.job(message)
    assert (job.state, job.result) == (State.COMPLETED, 1)
    assert system.rows("SELECT count(*) FROM switchyard.worker") == [(0,)]


def test_jobs_longer_than_the_grace_are_released_and_wait_for_no_lease(system, worker_process, tmp_path, broker_name):
    slow, stuck = system.jobs.wait_for_file.send(str(tmp_path / "go")), system.jobs.stubborn.send(60.0)
    environment = {"LEASE": "120", "SHUTDOWN_GRACE": "1"}
    first = worker_process(WORKER, env=environment)
    wait_until(lambda: len(traces(system, "started")) == 2, 60, "both run")

    stopping = monotonic()
    assert first.stop(30) == 0
    assert monotonic() - stopping < 30

    for message in (slow, stuck):
        job = system.job(message)
        assert (job.state, job.failures) == (State.PENDING, 0)
        assert [a.outcome for a in system.attempts(message)] == ["released"]
    (tmp_path / "go").touch()
    began = monotonic()
    second = worker_process(WORKER, env=environment)
    assert system.ended(slow, 45).result == 2
    wait_until(lambda: len(traces(system, "started")) == 4, 45, "both run again")
    # LEASE is 120 s.
    assert monotonic() - began < 50
    second.kill()


def test_a_worker_without_postgres_ends_with_one_clear_line(system, worker_process):
    worker = worker_process(WORKER, env={"DATABASE_URL": "postgresql://postgres@127.0.0.1:9/nothing"})

    assert worker.wait(60) != 0
    assert "Traceback" not in worker.output()
    lines = [line for line in worker.output().splitlines() if line.startswith("switchyard: ")]
    assert len(lines) == 1
    assert lines[0].startswith("switchyard: DATABASE_URL: ")


@pytest.mark.parametrize(
    ("variable", "value"), [("BROKER", "nonsense"), ("LEASE", "soon"), ("RABBITMQ_URL", "amqp://me:secret@127.0.0.1:port/")]
)
def test_a_worker_with_a_wrong_setting_ends_with_one_line_that_names_it(worker_process, settings, variable, value):
    worker = worker_process("actors", env={"BROKER": "rabbitmq"} | {variable: value})

    assert worker.wait(60) != 0
    assert "Traceback" not in worker.output()
    assert "secret" not in worker.output()
    (line,) = [line for line in worker.output().splitlines() if line.startswith("switchyard: ")]
    assert line.startswith(f"switchyard: {variable}: ")


def test_a_worker_on_an_unmigrated_database_names_the_command(empty_database_url, system, worker_process):
    worker = worker_process(WORKER, env={"DATABASE_URL": empty_database_url})

    assert worker.wait(60) != 0
    assert "Traceback" not in worker.output()
    (line,) = [line for line in worker.output().splitlines() if line.startswith("switchyard: ")]
    assert "switchyard migrate" in line


def test_an_idle_worker_is_quick_to_start_a_job_and_costs_next_to_nothing(system, worker_process, broker_name):
    worker = worker_process(WORKER, threads=8)
    system.ended(system.jobs.quick.send(), 60)
    (process, *_) = [child for child in worker.children() if child.num_threads() > 8]

    for n in itertools.count(1):
        message = system.jobs.traced.send()
        wait_until(lambda n=n: len(traces(system, "ran")) == n, interval=0.005)
        if n == 20:
            break
    assert system.ended(message).state is State.COMPLETED
    waits = sorted(
        float(row[0])
        for row in system.rows(
            "SELECT extract(epoch FROM e.at - j.created_at) FROM effect e JOIN switchyard.job j ON j.message_id = e.job"
        )
    )
    process.cpu_percent()
    busy = process.cpu_percent(3.0)

    print(f"{broker_name}: started {waits[10] * 1000:.1f} ms after the commit (median), idle at {busy:.1f} % of a core")
    # It is woken; whoever only looks now and then is later, or busier.
    assert waits[10] < 0.25
    assert busy < 10


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_a_killed_worker_process_takes_its_dramatiq_along_and_nothing_is_lost(system, worker_process, broker_name):
    messages = switchyard.enqueue_many([system.jobs.brief.message(0.02) for _ in range(300)])
    first = worker_process(WORKER, processes=2, threads=4)
    wait_until(lambda: states(system).get("completed", 0) > 30, 60, "they work")

    children = first.children()
    busiest = max(children, key=lambda child: child.num_threads())
    # Those that work at jobs, among them the sibling.
    assert len(children) >= 2
    busiest.send_signal(signal.SIGKILL)
    first.wait(60)
    wait_until(lambda: not any(child.is_running() for child in children), 30, "its sibling ends with it")
    worker_process(WORKER, threads=8)

    wait_until(lambda: states(system) == {"completed": 300}, 60, lambda: f"all end: {states(system)}")
    assert len(messages) == 300
