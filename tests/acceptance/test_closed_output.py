"""A worker whose output nobody reads any more ends at the end of its grace all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psycopg
import pytest

from settings import variables
from tests.rig.processes import ROOT, base_environment
from tests.rig.waiting import wait_until

JOBS = """
import sys, time
import dramatiq, switchyard
switchyard.configure()

@dramatiq.actor(time_limit=None)
def stubborn():
    # Not flushed: it is still there when the process wants to end.
    sys.stdout.write("some words ")
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue
"""


@pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)
def test_words_that_nobody_reads_do_not_keep_a_process(settings, broker_name, tmp_path, database_url):
    (tmp_path / "deaf_jobs.py").write_text(JOBS)
    changed = settings.model_copy(update={"shutdown_grace": 1.0})
    environment = base_environment() | variables(changed) | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    sent = subprocess.run(
        [sys.executable, "-c", "import deaf_jobs; deaf_jobs.stubborn.send()"],
        env=environment,
        cwd=tmp_path,
        timeout=60,
        check=True,
    )
    assert sent.returncode == 0
    reading, writing = os.pipe()
    log = (tmp_path / "log").open("wb")
    command = [sys.executable, "-m", "cli", "worker", "deaf_jobs", "-p", "1", "-t", "1"]
    worker = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=writing, stderr=log)
    os.close(writing)
    try:
        with psycopg.connect(database_url, autocommit=True) as ledger:
            wait_until(
                lambda: ledger.execute("SELECT count(*) FROM switchyard.job WHERE state = 'running'").fetchone() == (1,),
                60,
                "it runs",
            )
        os.close(reading)
        worker.send_signal(signal.SIGTERM)
        worker.wait(40)
    finally:
        worker.kill()
        log.close()
    said = (tmp_path / "log").read_text()
    assert "SIGKILL" not in said, said
    assert worker.returncode == 0, said
