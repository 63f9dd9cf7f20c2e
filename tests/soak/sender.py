"""A process that sends every kind of job at a steady rate and follows up on some: ``python -m tests.soak.sender --rate 12``.

SIGTERM lets it end after the send it is at and after what it still has to follow up (cancels, replays, results). It is a user of the
product like any other, and is measured like a worker.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import monotonic
from types import SimpleNamespace
from typing import Any

import psycopg
from dramatiq import Message
from dramatiq.results import ResultMissing

import switchyard
from tests.faults.recorder import Recorder
from tests.soak.jobs import declare

#: How many of a hundred sends are of each kind. A chain is 3 jobs, a batch 4, a bulk 5: 100 sends are some 120 jobs.
MIX = {
    "plain": 20, "read": 4, "fenced": 12, "parent": 3, "flaky": 8, "doomed": 1, "slotted": 6, "metered": 6, "large": 2, "second_life": 2,
    "sleepy": 3, "stepped": 4, "once": 6, "keyed": 5, "delayed": 6, "endless": 2, "unstarted": 2, "chain": 2, "batch": 2, "bulk": 2,
    "enlisted": 3, "rolled_back": 1,
}  # fmt: skip
#: The name of the schedule, and when its jobs come.
SCHEDULE, TICKS = "soak", "*/3 * * * * *"
#: Keys that rates are counted by, and that make jobs one: few, so that they are used again and again.
KEYS = 5
#: Characters of a large payload.
LARGE = 40_000
#: Seconds between two looks at a job that is followed, and longest time that one is followed.
LOOK, PATIENCE = 0.25, 90.0


class Follower:
    """A thread that looks at jobs again later: cancels them, replays them, reads their results."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._order = count()
        self._due: list[tuple[float, int, float, Callable[[], bool]]] = []
        self._ending = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="follower")
        self._thread.start()

    def follow(self, after: float, action: Callable[[], bool]) -> None:
        """Call ``action`` in so many seconds, and every ``LOOK`` from then on until it is true."""
        now = monotonic()
        with self._turn:
            heapq.heappush(self._due, (now + after, next(self._order), now + PATIENCE, action))
            self._turn.notify()

    def finish(self) -> None:
        """Wait until nothing is left to follow. Raises: whatever ended the thread."""
        with self._turn:
            self._ending = True
            self._turn.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._go_on()
        except Exception as error:
            # What it had still to follow ends otherwise than it has to; the process ends with this.
            self._error = error

    def _go_on(self) -> None:
        while True:
            with self._turn:
                while not self._due or self._due[0][0] > monotonic():
                    if self._ending and not self._due:
                        return
                    self._turn.wait(self._due[0][0] - monotonic() if self._due else None)
                _, number, give_up_at, action = heapq.heappop(self._due)
            # A job that is never in the state it is waited for ends otherwise than it has to, which the checker sees.
            if not action() and monotonic() < give_up_at:
                with self._turn:
                    heapq.heappush(self._due, (monotonic() + LOOK, number, give_up_at, action))


class Sender:
    """Sends one job, or one group of them, after the other; each on record before it is sent and once it is known to be stored."""

    def __init__(self, actors: SimpleNamespace, recorder: Recorder, seed: int) -> None:
        self._actors = actors
        self._recorder = recorder
        self._random = random.Random(seed)
        self._broker = actors.plain.broker
        self._follower = Follower()
        self._names = count()
        self._connection = psycopg.connect(os.environ["DATABASE_URL"])
        self.stopped = threading.Event()

    def run(self, rate: float) -> None:
        """Send at ``rate`` a second until SIGTERM, then follow up what is left."""
        switchyard.create_schedule(SCHEDULE, self._actors.ticked, TICKS)
        sent, began = 0, monotonic()
        while not self.stopped.is_set():
            (kind,) = self._random.choices(list(MIX), list(MIX.values()))
            getattr(self, f"_{kind}", self._simple(kind))()
            sent += 1
            self.stopped.wait(max(0.0, began + sent / rate - monotonic()))
            # What a busy machine held back is not made up for: the stream stays below what the workers can do.
            began = max(began, monotonic() - sent / rate - 1.0)
        switchyard.delete_schedule(SCHEDULE)
        self._follower.finish()
        self._connection.close()

    # Sending.

    def _send(self, message: Message[Any], *, delay: int | None = None, timed: bool = True) -> Message[Any]:
        """Send one; ``timed``: it has to start when it is due, and nothing but the workers can hold it up."""
        self._invoke(message, due=monotonic() + (delay or 0) / 1_000 if timed else None)
        stored: Message[Any] = self._broker.enqueue(message, delay=delay)
        if stored.message_id == message.message_id:
            self._recorder.write("ok", job=message.message_id)
        else:
            self._recorder.write("folded", job=message.message_id, into=stored.message_id)
        return stored

    def _invoke(self, message: Message[Any], due: float | None = None) -> Message[Any]:
        self._recorder.write("invoke", job=message.message_id, actor=message.actor_name, **({} if due is None else {"due": due}))
        return message

    def _ok(self, messages: list[Message[Any]]) -> None:
        for message in messages:
            self._recorder.write("ok", job=message.message_id)

    def _fresh(self, what: str) -> str:
        """A name that nobody has used: what is remembered per name grows with them."""
        return f"{what}-{os.getpid()}-{next(self._names)}"

    def _seconds(self) -> float:
        return self._random.choice((0.0, 0.0, 0.01, 0.05))

    # Kinds.

    def _simple(self, kind: str) -> Callable[[], object]:
        actor = getattr(self._actors, kind, None)
        return lambda: self._send(actor.message() if kind in BARE else actor.message(self._seconds()))

    def _flaky(self) -> None:
        self._send(self._actors.flaky.message(self._random.choice((1, 1, 2)), self._seconds()))

    def _metered(self) -> None:
        """Of a key that is used again and again, or of one that is never seen again."""
        key = self._fresh("visitor") if self._random.random() < 0.5 else f"key-{self._random.randrange(KEYS)}"
        self._send(self._actors.metered.message(key), timed=False)

    def _slotted(self) -> None:
        """Under its actor's limit, or under a key of its own that is never seen again."""
        options = {"concurrency_key": self._fresh("visitor")} if self._random.random() < 0.3 else {}
        self._send(self._actors.slotted.message_with_options(args=(self._seconds(),), **options), timed=False)

    def _large(self) -> None:
        self._send(self._actors.large.message("x" * LARGE))

    def _once(self) -> None:
        self._send(self._actors.once.message(f"key-{self._random.randrange(KEYS)}"), timed=False)

    def _delayed(self) -> None:
        self._send(self._actors.plain.message(), delay=self._random.randrange(200, 3_000))

    def _keyed(self) -> None:
        """The same thing twice, under a key of its own: one job."""
        key = self._fresh("order")
        for _ in range(2):
            self._send(self._actors.plain.message_with_options(args=(0.0,), idempotency_key=key), timed=False)

    def _read(self) -> None:
        message = self._send(self._actors.plain.message(self._seconds()))

        def read() -> bool:
            job = switchyard.get_job(message.message_id)
            # On a machine that stands still for seconds retention may be faster.
            if job is None:
                return True
            if job.state != "completed":
                return False
            with suppress(ResultMissing):
                self._recorder.write("read", job=message.message_id, token=message.get_result(block=False)["token"])
            return True

        self._follower.follow(0.05, read)

    def _second_life(self) -> None:
        id = self._send(self._actors.second_life.message()).message_id

        def replay() -> bool:
            job = switchyard.get_job(id)
            return job is None or (job.state == "dead" and switchyard.replay(id))

        self._follower.follow(LOOK, replay)

    def _endless(self) -> None:
        """One that is cancelled while it runs, as a rule."""
        id = self._send(self._actors.endless.message()).message_id
        self._follower.follow(0.5, lambda: switchyard.cancel(id))

    def _unstarted(self) -> None:
        """One that is cancelled while it waits for its time."""
        id = self._send(self._actors.endless.message(), delay=600_000, timed=False).message_id
        self._follower.follow(0.1, lambda: switchyard.cancel(id))

    def _chain(self) -> None:
        messages = [self._invoke(self._actors.link.message(number)) for number in range(3)]
        switchyard.pipeline(messages, broker=self._broker).run()
        self._ok(messages)

    def _batch(self) -> None:
        members = [self._invoke(self._actors.member.message(number)) for number in range(3)]
        last = self._invoke(self._actors.collected.message())
        switchyard.group(members, broker=self._broker, on_complete=last).run()
        self._ok(members)

    def _bulk(self) -> None:
        messages = [self._invoke(self._actors.plain.message(0.0), due=monotonic()) for _ in range(5)]
        self._ok(switchyard.enqueue_many(messages))

    def _enlisted(self, *, commit: bool = True) -> None:
        """An order and its job, both or neither."""
        message = self._invoke(self._actors.plain.message(0.0), due=monotonic() if commit else None)
        with self._connection.transaction(force_rollback=not commit), switchyard.enlist(self._connection):
            self._connection.execute("INSERT INTO soak_order (job) VALUES (%s)", [message.message_id])
            self._broker.enqueue(message)
        self._recorder.write("ok" if commit else "fail", job=message.message_id)

    def _rolled_back(self) -> None:
        self._enlisted(commit=False)


#: Actors that are called with nothing.
BARE = ("doomed", "sleepy", "stepped")


def main() -> None:
    """Parse the arguments and send."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.sender", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=12.0, help="sends a second")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()

    recorder = Recorder(os.environ["SOAK_LOG"])
    sender = Sender(declare(switchyard.configure(), recorder), recorder, chosen.seed)
    signal.signal(signal.SIGTERM, lambda *_: sender.stopped.set())
    sender.run(chosen.rate)


if __name__ == "__main__":
    main()
