"""What worker processes write from their first line on: lines of the format that LOG_FORMAT names, and of none other."""

from __future__ import annotations

import json

import pytest

from tests.rig.waiting import wait_until

WORKER = "tests.acceptance.worker"
pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
@pytest.mark.parametrize("supervised", [True, False], ids=["switchyard worker", "dramatiq"])
def test_what_is_logged_while_a_process_boots_has_the_format_of_what_follows(system, worker_process, supervised, broker_name):
    worker = worker_process(WORKER, supervised=supervised, processes=2, env={"LOG_FORMAT": "json", "LOG_LEVEL": "INFO"})
    wait_until(lambda: len(system.rows("SELECT 1 FROM switchyard.worker")) == 2, 60, worker.output)
    assert worker.stop() == 0

    # The supervisor's own lines, and those of Dramatiq's command, are for whoever looks at it.
    lines = [line for line in worker.output().splitlines() if not line.startswith("switchyard: ") and "MainProcess" not in line]
    found = [json.loads(line) for line in lines if line.startswith("{")]
    assert [line for line in lines if not line.startswith("{")] == []
    # Said with the first heartbeat of all, which is sent before there is a worker.
    assert [line["level"] for line in found if line["event"] == "route changed"] == ["info"]
