"""Arguments are private: whatever becomes of a job, and however much is logged, no worker prints them."""

from __future__ import annotations

import pytest

from ledger.states import State
from tests.acceptance.secret_jobs import declare

WORKER = "tests.acceptance.secrets_worker"
CANARY = "canary-4711-tweet"


# The lines are Dramatiq's and ours, no broker's.
@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_worker_s_output_never_holds_an_argument(system, worker_process, broker_name, log_format):
    actors = declare(system.broker)
    fine, keyword = actors.keeps.send(CANARY), actors.keeps.send(secret=[{CANARY: CANARY}])
    ends = {
        State.COMPLETED: [fine, keyword],
        State.DEAD: [
            actors.breaks.send(CANARY),
            actors.leaves.send(CANARY),
            actors.returns_too_much.send(CANARY),
            actors.old.send(CANARY),
        ],
        State.CANCELLED: [actors.skips.send(CANARY)],
    }

    worker = worker_process(WORKER, env={"LOG_LEVEL": "DEBUG", "LOG_FORMAT": log_format})

    for state, messages in ends.items():
        assert [system.ended(message, 60).state for message in messages] == [state] * len(messages)
    assert worker.stop() == 0
    output = worker.log.read_text()
    assert "Received message" in output, "it is Dramatiq's own lines that the filter is for"
    assert "Failed to process message" not in output, "the retries middleware has said it"
    assert "a bug" in output
    assert fine.message_id in output
    assert CANARY not in output
