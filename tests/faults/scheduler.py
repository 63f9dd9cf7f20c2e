"""One keeper's ticks, again and again, by a clock that stands in a file: ``python -m tests.faults.scheduler CLOCK``.

What a keeper does in a worker is done here alone, in a process that may be killed at any time, and with a time that the scenario sets.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from time import sleep
from typing import Any

import dramatiq
import psycopg

import switchyard
from brokers.broker import SwitchyardBroker
from errors import LedgerUnavailable
from keeper import schedule
from tests.faults import failpoints, mutations
from tests.faults.jobs import declare
from tests.faults.recorder import Recorder

#: Seconds between two turns.
PAUSE = 0.005


class Witness(dramatiq.Middleware):
    """Writes down which jobs are about to be made."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def before_enqueue(self, broker: dramatiq.Broker, message: dramatiq.Message[Any], delay: int | None) -> None:
        self._recorder.write("invoke", job=message.message_id, actor=message.actor_name)


def main(clock: Path) -> None:
    """Take turns until somebody ends this process."""
    recorder = Recorder(os.environ["FAULTS_LOG"])
    failpoints.install(recorder)
    mutations.install()
    broker = switchyard.configure()
    assert isinstance(broker, SwitchyardBroker)
    declare(broker, recorder)
    broker.add_middleware(Witness(recorder))
    recorder.write("scheduler")
    connection = None
    while True:
        try:
            if connection is None or connection.closed:
                connection = broker.database.dedicated("scheduler")
            schedule.tick(connection, broker, datetime.fromisoformat(clock.read_text()))
        except (psycopg.Error, LedgerUnavailable):
            connection = None
        sleep(PAUSE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
