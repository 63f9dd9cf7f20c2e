"""A process that sends jobs and says what it knows of each: ``python -m tests.faults.producer --mix mixed --rate 40``.

SIGTERM lets it end after the send it is at. With ``--fork N`` each N sends are a child's, which has the failpoints of the environment
armed anew, so that a thousand deaths cost a thousand forks and not a thousand starts of Python.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
from time import monotonic
from types import SimpleNamespace
from typing import Any

from dramatiq import Message

import switchyard
from errors import JobExists, LedgerUnavailable
from tests.faults import failpoints
from tests.faults.jobs import declare
from tests.faults.recorder import Recorder

#: Weights of the kinds of jobs, by the name of a mix.
MIXES: dict[str, dict[str, int]] = {
    "mixed": {"plain": 20, "fenced": 20, "flaky": 40, "delayed": 10, "doomed": 3, "parent": 7},
    "short": {"plain": 50, "fenced": 50},
    "fenced": {"fenced": 100},
    "instant": {"instant": 100},
    "long": {"fenced": 40, "plain": 40, "slow": 20},
    "slow": {"slow": 100},
    "delayed": {"delayed": 100},
    "minute": {"minute": 100},
    "newer": {"newer": 100},
    "slotted": {"slotted": 100},
    # For a switch of brokers: a stream and a backlog, in two queues.
    "routed": {"plain": 20, "fenced": 20, "aside": 20, "flaky": 20, "delayed": 10, "doomed": 3, "parent": 7},
    "waiting": {"fenced": 65, "aside": 20, "delayed": 15},
}
#: How long a send of unknown outcome is repeated, in seconds.
PERSIST = 60.0


class Producer:
    """Sends jobs of a mix."""

    def __init__(self, actors: SimpleNamespace, recorder: Recorder, mix: str, seed: int) -> None:
        self._actors = actors
        self._recorder = recorder
        self._random = random.Random(seed)
        self._mix = mix
        self.stopped = threading.Event()

    def message(self) -> tuple[Message[Any], int | None]:
        """The next message, and its delay in milliseconds."""
        draw, actors = self._random, self._actors
        if self._mix.startswith("poison="):
            return actors.poison.message(self._mix.removeprefix("poison=")), None
        weights = MIXES[self._mix]
        (kind,) = draw.choices(list(weights), list(weights.values()))
        seconds = draw.choice((0.0, 0.0, 0.01, 0.05, 0.3))
        if kind == "delayed":
            return actors.plain.message(seconds), draw.randrange(200, 2_000)
        if kind == "minute":
            return actors.fenced.message(0.0), 3_600_000
        if kind == "flaky":
            return actors.flaky.message(draw.choice((1, 1, 2)), seconds), None
        if kind == "slow":
            return draw.choice((actors.plain, actors.fenced)).message(draw.uniform(0.1, 4.0)), None
        if kind == "instant":
            return actors.plain.message(0.0), None
        if kind == "doomed":
            return actors.doomed.message(), None
        return getattr(actors, kind).message(seconds), None

    def send(self, bulk: int = 1) -> None:
        """Send one message, or ``bulk`` of them in one transaction, and persist until the outcome is known."""
        pairs = [self.message() for _ in range(bulk)]
        messages = [m if delay is None else m.copy(options={"delay": delay}) for m, delay in pairs] if bulk > 1 else [pairs[0][0]]
        delay = pairs[0][1] if bulk == 1 else None
        for message in messages:
            self._recorder.write("invoke", job=message.message_id, actor=message.actor_name)
        give_up_at = monotonic() + PERSIST
        while True:
            try:
                if bulk > 1:
                    switchyard.enqueue_many(messages)
                else:
                    self._actors.plain.broker.enqueue(messages[0], delay=delay)
            except LedgerUnavailable as error:
                self._note("info", messages, str(error))
                if self.stopped.wait(0.2) or monotonic() > give_up_at:
                    return
            except JobExists:
                # An earlier try was committed, and its job has even ended by now.
                self._note("ok", messages, "exists")
                return
            except Exception as error:
                self._note("fail", messages, f"{type(error).__name__}: {error}")
                return
            else:
                self._note("ok", messages)
                return

    def _note(self, kind: str, messages: list[Message[Any]], text: str = "") -> None:
        for message in messages:
            self._recorder.write(kind, job=message.message_id, **({"text": text} if text else {}))

    def run(self, *, rate: float, limit: int, bulk: int) -> None:
        """Send ``limit`` messages (0: until SIGTERM) at ``rate`` a second (0: as fast as it goes)."""
        sent, began = 0, monotonic()
        while not self.stopped.is_set() and (not limit or sent < limit):
            size = min(bulk, limit - sent) if limit else bulk
            self.send(size)
            sent += size
            if rate:
                self.stopped.wait(max(0.0, began + sent / rate - monotonic()))
                # What an outage held back is not made up for.
                began = max(began, monotonic() - sent / rate - 1.0)


def _in_children(producer: Producer, recorder: Recorder, per_child: int, rate: float) -> None:
    """Let one forked child after the other send ``per_child`` messages, with failpoints that it may die by."""
    draw = random.Random(os.getpid())
    points = os.environ.get("FORKED_FAILPOINTS", ",".join(failpoints.SENDING)).split(",")
    while not producer.stopped.is_set():
        armed, passage = draw.choice(points), draw.randrange(1, per_child + 1)
        pid = os.fork()
        if pid == 0:
            failpoints.arm(f"{armed}:crash:{passage}", recorder)
            producer._random.seed(os.getpid())
            producer.run(rate=rate, limit=per_child, bulk=1)
            # Not os._exit: what a normal exit publishes is part of what is tried.
            sys.exit(0)
        _, status = os.waitpid(pid, 0)
        recorder.write("child", died=os.WIFSIGNALED(status), point=armed)


def main() -> None:
    """Parse the arguments and send."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.producer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mix", default="mixed")
    parser.add_argument("--rate", type=float, default=40.0, help="messages a second; 0: as fast as it goes")
    parser.add_argument("--limit", type=int, default=0, help="how many; 0: until SIGTERM")
    parser.add_argument("--bulk", type=int, default=1, help="messages per transaction")
    parser.add_argument("--fork", type=int, default=0, help="have children send this many each")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()

    recorder = Recorder(os.environ["FAULTS_LOG"])
    failpoints.install(recorder)
    broker = switchyard.configure()
    producer = Producer(declare(broker, recorder), recorder, chosen.mix, chosen.seed)
    signal.signal(signal.SIGTERM, lambda *_: producer.stopped.set())
    if chosen.fork:
        _in_children(producer, recorder, chosen.fork, chosen.rate)
    else:
        producer.run(rate=chosen.rate, limit=chosen.limit, bulk=chosen.bulk)


if __name__ == "__main__":
    main()
