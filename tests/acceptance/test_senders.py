"""Processes that only send: many threads, forks, an exit right after the send, and a broker that was changed before a worker came."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations

import pytest

import brokers
from settings import variables
from tests.rig.processes import ROOT, base_environment
from tests.rig.waiting import wait_until
from tests.rig.workers import Workers

WORKER = "tests.acceptance.worker"


def run(system, script):
    """Run a sending script with the system's settings, warnings as errors."""
    environment = base_environment() | variables(system.settings) | {"PYTHONPATH": str(ROOT)}
    source = "import switchyard\nfrom tests.acceptance.worker import actors\n" + script
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def states(system):
    return dict(system.rows("SELECT state, count(*) FROM switchyard.job GROUP BY state"))


def in_broker(system):
    return system.broker.transport(system.settings.broker).depth(["default"])["default"]


def test_a_script_that_ends_after_its_send_has_published_it(system, broker_name):
    run(system, "actors.quick.send(1)\nswitchyard.enqueue_many([actors.quick.message(n) for n in range(999)])")

    assert states(system) == {"pending": 1_000}
    # Not the relay's doing: no worker runs.
    assert in_broker(system) == 1_000


def test_a_forked_child_sends_as_its_parent_does(system, worker_process, broker_name):
    script = """
import os, threading
for n in range(20):
    actors.quick.send(n)
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        import sys
        for n in range(20):
            actors.quick.send(n)
        assert switchyard.list_jobs(limit=1).jobs
        sys.exit(0)
    children.append(pid)
for n in range(20):
    actors.quick.send(n)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
# The parent's connections survived its children.
for n in range(20):
    actors.quick.send(n)
"""
    run(system, script)

    assert states(system) == {"pending": 120}
    assert in_broker(system) == 120
    worker_process(WORKER)
    wait_until(lambda: states(system) == {"completed": 120}, 60, lambda: f"all run: {states(system)}")


def test_threads_send_side_by_side(system, broker_name):
    script = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(16) as pool:
    sent = list(pool.map(lambda n: actors.quick.send(n).message_id, range(800)))
assert len(set(sent)) == 800
"""
    run(system, script)

    assert states(system) == {"pending": 800}
    assert in_broker(system) == 800


@pytest.mark.parametrize(("broker_name", "new_broker"), list(permutations(brokers.TRANSPORTS, 2)), indirect=["broker_name"])
def test_jobs_sent_to_one_broker_are_run_by_workers_of_another(request, system, settings, tmp_path, broker_name, new_broker):
    system.jobs.quick.send_with_options(args=(1,), delay=200)
    for number in range(50):
        system.jobs.quick.send(number)
    update = {"broker": new_broker}
    if new_broker != "postgres":
        update[f"{new_broker}_url"] = type(settings.redis_url)(request.getfixturevalue(f"{new_broker}_url"))
    workers = Workers(settings.model_copy(update=update), tmp_path)
    try:
        workers(WORKER)
        wait_until(lambda: states(system) == {"completed": 51}, 25, lambda: f"all run: {states(system)}\n{workers.logs()}")
        assert system.rows("SELECT DISTINCT broker, attempt FROM switchyard.job") == [(new_broker, 1)]
    finally:
        workers.close()
