"""``switchyard worker``: processes that die, recycle, hang or cannot start, and the command that keeps them."""

from __future__ import annotations

import signal
from time import monotonic

import psutil
import pytest

import switchyard
from ledger.states import State
from runtime.process import RECYCLED
from tests.rig.waiting import wait_until

WORKER = "tests.acceptance.worker"
pytestmark = pytest.mark.timeout(180)

#: What a process is, whatever carries its triggers; the conformance of brokers is tested elsewhere.
one_broker = pytest.mark.parametrize("broker_name", ["redis"], indirect=True)


def traces(system, what):
    return [
        (str(job), attempt) for job, attempt in system.rows("SELECT job, attempt FROM effect WHERE what = %s ORDER BY at", what)
    ]


def states(system):
    return dict(system.rows("SELECT state, count(*) FROM switchyard.job GROUP BY state"))


def registered(system):
    """The process ids of the workers that the ledger knows."""
    return {pid for (pid,) in system.rows("SELECT pid FROM switchyard.worker")}


def up(system, worker, processes):
    wait_until(lambda: f"at work: {processes} process" in worker.output() or not worker.running, 60, worker.output)
    assert worker.running, worker.output()
    return registered(system)


@one_broker
def test_a_process_that_is_killed_is_replaced_and_its_sibling_goes_on(system, worker_process, broker_name):
    worker = worker_process(WORKER, supervised=True, processes=2)
    first = up(system, worker, 2)
    killed, sibling = worker.workers()
    assert {killed.pid, sibling.pid} == first

    killed.kill()
    wait_until(lambda: len(worker.workers()) == 2 and killed.pid not in {p.pid for p in worker.workers()}, 20, worker.output)

    assert sibling.is_running()
    assert f"process {killed.pid} was ended by SIGKILL, its jobs run again" in worker.output()
    assert worker.stop() == 0


@one_broker
def test_sigterm_under_load_ends_all_processes_and_spends_no_attempt(system, worker_process, broker_name):
    switchyard.enqueue_many([system.jobs.brief.message(0.05) for _ in range(400)])
    environment = {"LEASE": "60", "SHUTDOWN_GRACE": "5"}
    first = worker_process(WORKER, supervised=True, processes=2, threads=4, env=environment)
    wait_until(lambda: states(system).get("completed", 0) > 30, 40, "they work")

    stopping = monotonic()
    assert first.stop() == 0
    assert monotonic() - stopping < 15

    assert set(states(system)) == {"completed", "pending"}
    assert system.rows("SELECT max(attempt) FROM switchyard.job WHERE state = 'pending'") == [(0,)]
    assert registered(system) == set()
    assert "stopping 2 processes" in first.output()
    # The lease is a minute long: nothing waits for it.
    worker_process(WORKER, supervised=True, processes=1, threads=8, env=environment)
    wait_until(lambda: states(system) == {"completed": 400}, 40, lambda: f"the rest runs: {states(system)}")
    assert system.rows("SELECT DISTINCT attempt, failures FROM switchyard.job") == [(1, 0)]


@one_broker
def test_a_second_signal_gives_running_jobs_back_at_once(system, worker_process, broker_name):
    message = system.jobs.stubborn.send(60.0)
    worker = worker_process(WORKER, supervised=True, env={"LEASE": "60", "SHUTDOWN_GRACE": "60"})
    wait_until(lambda: traces(system, "started"), 40, worker.output)

    worker.send(signal.SIGINT)
    wait_until(lambda: "running jobs may end within 60 s" in worker.output(), 10, worker.output)
    worker.send(signal.SIGINT)

    assert worker.wait(20) == 0
    job = system.job(message)
    assert (job.state, job.failures) == (State.PENDING, 0)
    assert [attempt.outcome for attempt in system.attempts(message)] == ["released"]


@one_broker
def test_no_process_outlives_its_supervisor(system, worker_process, broker_name):
    message = system.jobs.stubborn.send(60.0)
    worker = worker_process(WORKER, supervised=True, processes=2, env={"LEASE": "60", "SHUTDOWN_GRACE": "0"})
    up(system, worker, 2)
    wait_until(lambda: traces(system, "started"), 20, "the job runs")
    processes = worker.workers()

    worker.send(signal.SIGKILL)

    wait_until(lambda: not any(alive(process) for process in processes), 20, "they end by themselves")
    # In good order: the job is not left to its lease.
    assert (system.job(message).state, registered(system)) == (State.PENDING, set())


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_keeps_every_process_from_starting_is_said_once_and_ends_the_command(
    empty_database_url, system, worker_process, tmp_path
):
    (tmp_path / "wrong.py").write_text("import switchyard\nswitchyard.configure(lease=-1)\n")

    database = worker_process(WORKER, supervised=True, processes=3, env={"DATABASE_URL": empty_database_url})
    setting = worker_process(WORKER, supervised=True, env={"LEASE": "soon"})
    inside = worker_process("wrong", supervised=True, path=tmp_path)
    module = worker_process("nothing_here", supervised=True)

    for worker, word in ((database, "switchyard migrate"), (setting, "LEASE"), (inside, "LEASE"), (module, "nothing_here")):
        assert worker.wait(40) == 3
        (line,) = worker.output().splitlines()
        assert line.startswith("switchyard: ")
        assert word in line


@one_broker
def test_a_process_that_cannot_start_again_is_no_storm(system, worker_process, broker_name, tmp_path):
    # The module works once.
    (tmp_path / "once.py").write_text(
        "import pathlib\n"
        f"mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "if mark.exists():\n"
        "    raise SystemExit(3)\n"
        "mark.touch()\n"
        "from tests.acceptance import worker\n"
    )
    worker = worker_process("once", supervised=True, path=tmp_path)
    up(system, worker, 1)
    began = monotonic()
    worker.workers()[0].kill()

    wait_until(lambda: worker.output().count("could not start; another starts in") >= 3, 60, worker.output)

    # Half a second, one, two: whatever else took time came on top.
    assert monotonic() - began > 1.5
    assert "another starts in 1 s" in worker.output()
    assert "another starts in 2 s" in worker.output()
    assert worker.stop() == 0


@one_broker
def test_a_process_recycles_after_so_many_jobs_and_its_successor_is_there_before_it_is_gone(
    system, worker_process, tmp_path, broker_name
):
    go = tmp_path / "go"
    worker = worker_process(
        WORKER, supervised=True, threads=2, options=("--max-jobs", "5"), env={"SHUTDOWN_GRACE": "0.1", "LEASE": "30"}
    )
    (old,) = up(system, worker, 1)
    running = system.jobs.wait_for_file.send(str(go))
    wait_until(lambda: traces(system, "started"), 20, "it runs")

    def somebody_else():
        return system.ended(system.jobs.process_id.send(), 40).result != old

    wait_until(somebody_else, 60, worker.output)

    # What ran when the process recycled runs on, whatever the grace: there is somebody else to do its work.
    assert system.job(running).state is State.RUNNING
    go.touch()
    assert system.ended(running).result == 1
    wait_until(lambda: old not in {process.pid for process in worker.workers()}, 20, worker.output)
    assert f"process {old} is replaced" in worker.output()
    assert worker.stop() == 0
    assert system.rows("SELECT DISTINCT state, attempt, failures, lost FROM switchyard.job") == [("completed", 1, 0, 0)]


@one_broker
def test_a_process_recycles_when_it_uses_too_much_memory(system, worker_process, broker_name):
    worker = worker_process(WORKER, supervised=True, options=("--max-memory", "400MB"), env={"LEASE": "30"})
    up(system, worker, 1)

    fat = system.ended(system.jobs.holds_memory.send(400), 20).result
    wait_until(lambda: fat not in {process.pid for process in worker.workers()}, 40, worker.output)

    assert system.ended(system.jobs.process_id.send(), 20).result != fat
    assert "of memory, --max-memory" in worker.output()
    assert worker.stop() == 0


@one_broker
@pytest.mark.parametrize(("name", "what"), [("exits", "exits"), ("crashes", "crashes"), ("is_killed", "is killed")])
def test_a_job_that_kills_its_processes_is_dead_and_the_node_works_on(system, worker_process, broker_name, name, what):
    worker = worker_process(WORKER, supervised=True, processes=2, env={"MAX_LOST": "1"})
    up(system, worker, 2)
    good = [system.jobs.brief.send(0.01) for _ in range(20)]

    bad = getattr(system.jobs, name).send()
    good += [system.jobs.brief.send(0.01) for _ in range(20)]
    job = system.ended(bad, 60)
    good += [system.jobs.brief.send(0.01) for _ in range(20)]

    assert (job.state, job.dead_reason, job.lost) == (State.DEAD, "worker_lost", 1)
    # The first death makes suspects, the second tells which one it is.
    assert len(traces(system, what)) == 2
    assert {system.ended(message, 40).state for message in good} == {State.COMPLETED}
    assert worker.running
    assert worker.stop() == 0


@one_broker
def test_a_job_that_may_not_be_lost_twice_runs_once(system, worker_process, broker_name):
    worker = worker_process(WORKER, supervised=True, processes=2)
    up(system, worker, 2)

    job = system.ended(system.jobs.exits_once.send(), 40)

    assert (job.state, job.dead_reason, job.lost) == (State.DEAD, "worker_lost", 1)
    assert len(traces(system, "exits")) == 1
    assert worker.stop() == 0


@one_broker
def test_a_job_that_runs_out_of_memory_fails_and_takes_nobody_along(system, worker_process, broker_name):
    worker = worker_process(WORKER, supervised=True, env={"LEASE": "30"})
    (pid,) = up(system, worker, 1)

    job = system.ended(system.jobs.swells.send(2**28), 40)

    assert (job.state, job.dead_reason, job.error_type) == (State.DEAD, "max_retries", "MemoryError")
    assert system.ended(system.jobs.process_id.send()).result == pid
    assert worker.stop() == 0


@one_broker
def test_a_job_that_no_exception_reaches_is_given_up_and_its_process_replaced(system, worker_process, tmp_path, broker_name):
    go = tmp_path / "go"
    worker = worker_process(WORKER, supervised=True, threads=2, env={"LEASE": "60", "SHUTDOWN_GRACE": "60"})
    (old,) = up(system, worker, 1)
    hanging = system.jobs.hangs_in_c.send(120.0)
    other = system.jobs.wait_for_file.send(str(go))
    wait_until(lambda: len(traces(system, "started")) == 2, 20, "both run")

    job = system.until(hanging, lambda job: job.state is not State.RUNNING, 30)
    following = [system.jobs.process_id.send() for _ in range(10)]
    pids = {system.ended(message, 40).result for message in following}
    go.touch()

    # A failure with the reason, and not a loss: the other job of the process has the attempt it began with.
    assert (job.state, job.failures, job.lost, job.error_type) == (State.RETRYING, 1, 0, "TimeLimitExceeded")
    (attempt,) = system.attempts(hanging)
    assert "usleep" in attempt.traceback
    assert system.ended(other, 30).result == 1
    assert old not in pids
    wait_until(lambda: old not in {process.pid for process in worker.workers()}, 30, worker.output)
    assert "does not end and keeps its thread" in worker.output()
    assert traces(system, "returned") == []
    assert worker.stop() == 0


@one_broker
def test_under_plain_dramatiq_a_job_that_is_given_up_ends_the_command_and_the_others_are_released(
    system, worker_process, broker_name
):
    worker = worker_process(WORKER, threads=2, env={"LEASE": "60", "SHUTDOWN_GRACE": "1"})
    hanging, other = system.jobs.hangs_in_c.send(120.0), system.jobs.stubborn.send(120.0)
    wait_until(lambda: len(traces(system, "started")) == 2, 60, worker.output)

    assert worker.wait(60) == RECYCLED

    job = system.job(hanging)
    assert (job.state, job.failures, job.lost, job.error_type) == (State.RETRYING, 1, 0, "TimeLimitExceeded")
    job = system.job(other)
    assert (job.state, job.failures, job.lost) == (State.PENDING, 0, 0)
    assert [attempt.outcome for attempt in system.attempts(other)] == ["released"]
    assert registered(system) == set()


def test_a_queue_that_no_actor_is_on_is_said(system, worker_process):
    worker = worker_process(WORKER, supervised=True, options=("-Q", "default,defaul"))

    up(system, worker, 1)

    assert "no actor is declared on the queue defaul; did you mean default?" in worker.output()
    assert worker.stop() == 0


def test_queues_that_no_actor_is_on_are_no_start(worker_process):
    worker = worker_process(WORKER, supervised=True, options=("-Q", "defaul,nothing"))

    assert worker.wait(60) == 3
    assert "--queues: no actor is declared on the queue defaul, nothing; did you mean default?; name one of" in worker.output()
