"""Worker processes whose own threads die or hang end themselves, and their jobs run elsewhere."""

from __future__ import annotations

import pytest

from ledger.states import State
from runtime.process import BROKEN_OFF
from tests.rig.waiting import wait_until

WORKER = "tests.acceptance.worker"
pytestmark = pytest.mark.timeout(180)
one_broker = pytest.mark.parametrize("broker_name", ["redis"], indirect=True)

#: Far below what it should be: nothing here waits for a socket.
IMPATIENT = {"WATCHDOG": "4"}
DIED, HANGS = "has died", "has made no progress for 4 s"


@one_broker
@pytest.mark.parametrize(
    ("part", "how", "reason"),
    [
        ("fetcher", "dies", f"the redis fetcher thread {DIED}"),
        ("fetcher", "hangs", f"the redis fetcher thread {HANGS}"),
        ("flusher", "hangs", f"the flusher thread {HANGS}"),
        ("keeper", "hangs", f"the keeper thread {HANGS}"),
        ("heartbeat", "dies", f"the heartbeat thread {DIED}"),
        ("publisher", "dies", f"the publisher thread {DIED}"),
        ("publisher", "hangs", f"the publisher thread {HANGS}"),
        ("event loop", "dies", f"the event loop thread {DIED}"),
        ("event loop", "hangs", f"the event loop thread {HANGS}"),
        ("worker thread", "dies", f"thread {DIED}"),
    ],
)
def test_a_process_whose_thread_dies_or_hangs_ends_itself_and_is_replaced(system, worker_process, broker_name, part, how, reason):
    worker = worker_process(WORKER, supervised=True, threads=2, env=IMPATIENT)
    wait_until(lambda: system.rows("SELECT count(*) FROM switchyard.worker") == [(1,)], 40, worker.output)
    (broken,) = worker.workers()

    system.jobs.sabotages.send(part, how)
    system.jobs.brief.send()
    wait_until(lambda: f"process {broken.pid} ended with exit code {BROKEN_OFF}" in worker.output(), 40, worker.output)

    assert reason in worker.output()
    # What comes next is done, and what was in hand comes back, except for the saboteur if its end was not written.
    assert system.ended(system.jobs.process_id.send(), 40).result != broken.pid
    assert worker.running


@one_broker
def test_under_plain_dramatiq_the_whole_command_ends_with_that_code(system, worker_process, broker_name):
    worker = worker_process(WORKER, processes=2, env=IMPATIENT)
    wait_until(lambda: system.rows("SELECT count(*) FROM switchyard.worker") == [(2,)], 40, worker.output)

    system.jobs.sabotages.send("keeper", "dies")

    assert worker.wait(40) == BROKEN_OFF
    assert f"the keeper thread {DIED}" in worker.output()


@one_broker
def test_a_long_job_and_an_idle_process_are_no_hang(system, worker_process, tmp_path, broker_name):
    go = tmp_path / "go"
    worker = worker_process(WORKER, supervised=True, threads=2, env=IMPATIENT | {"LEASE": "20"})
    long = system.jobs.wait_for_file.send(str(go))
    wait_until(lambda: system.rows("SELECT count(*) FROM effect") == [(1,)], 40, worker.output)
    (process,) = worker.workers()

    # Longer than anything may hang.
    for _ in range(6):
        assert system.ended(system.jobs.brief.send(1.0)).state is State.COMPLETED
    go.touch()

    assert system.ended(long).state is State.COMPLETED
    assert [found.pid for found in worker.workers()] == [process.pid]
    assert worker.stop() == 0


@one_broker
def test_a_job_that_keeps_the_interpreter_to_itself_does_not_keep_its_process(system, worker_process, broker_name):
    worker = worker_process(WORKER, supervised=True, processes=2, env={"WATCHDOG": "3", "LEASE": "1", "MAX_LOST": "1"})
    wait_until(lambda: system.rows("SELECT count(*) FROM switchyard.worker") == [(2,)], 40, worker.output)

    job = system.ended(system.jobs.keeps_the_interpreter.send(), 60)

    assert (job.state, job.dead_reason) == (State.DEAD, "worker_lost")
    wait_until(lambda: worker.output().count("ended with exit code 1,") == 2, 40, worker.output)
    assert "keeps_the_interpreter" in worker.output()
    assert system.ended(system.jobs.quick.send(7), 30).result == 7
