"""What the soak's worker processes import: ``switchyard worker tests.soak.worker``."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq import Broker, Message

import switchyard
from tests.faults.recorder import Recorder
from tests.soak import leaks
from tests.soak.jobs import declare


class Witness(dramatiq.Middleware):
    """Writes down the jobs that a schedule is about to make: nobody else sends them."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if message.actor_name == "ticked":
            self._recorder.write("invoke", job=message.message_id, actor=message.actor_name)


recorder = Recorder(os.environ["SOAK_LOG"])
broker = switchyard.configure()
actors = declare(broker, recorder)
broker.add_middleware(Witness(recorder))
leaks.install(broker, os.environ.get("SOAK_LEAK", ""))
