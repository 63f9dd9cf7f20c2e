"""A second signal to a worker: Dramatiq's command leaves without stopping anything, and what it ran is given back all the same."""

from __future__ import annotations

import signal

import pytest

from ledger.states import State
from tests.rig.waiting import wait_until

WORKER = "tests.acceptance.worker"


# What becomes of running jobs is no broker's business: one is enough.
@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
# Dramatiq says the first at the first signal, and begins to stop the worker, saying the second, up to a second later.
@pytest.mark.parametrize("said", ["Stopping worker process", "Shutting down"])
def test_a_second_signal_ends_the_grace_and_running_jobs_are_due_again_at_once(
    system, worker_process, tmp_path, broker_name, said
):
    willing, stubborn = system.jobs.wait_for_file.send(str(tmp_path / "go")), system.jobs.stubborn.send(600.0)
    worker = worker_process(WORKER, env={"LEASE": "600", "SHUTDOWN_GRACE": "600"})
    wait_until(lambda: system.rows("SELECT count(*) FROM effect WHERE what = 'started'") == [(2,)], 60, "both run")
    worker.terminate()
    wait_until(lambda: said in worker.output(), 60, "the first signal arrived", interval=0.002)

    worker.send(signal.SIGINT)

    worker.wait(60)
    assert "Killing worker process" in worker.output()
    for message in (willing, stubborn):
        job = system.job(message)
        assert (job.state, job.failures, job.lost) == (State.PENDING, 0, 0)
        assert [attempt.outcome for attempt in system.attempts(message)] == ["released"]
    # Waiting for no lease: due at once, unless the keeper of the leaving process has published them already.
    assert system.rows("SELECT DISTINCT token, lease_until, run_at <= clock_timestamp() FROM switchyard.job") == [
        (None, None, True)
    ]
    assert system.rows("SELECT count(*) FROM switchyard.worker") == [(0,)]
