"""What does a backlog cost while nobody works on it, how often is it published again, and how soon is it back after a FLUSHALL?

    python -m loadtest.backlog --broker redis --jobs 1000000

Three phases, each with the keeper of one process that consumes nothing:

    backlog   N jobs are sent in bulk and published, then made an hour old, and the keeper watches for as long as an hour of rounds takes:
              the pauses between rounds and sweeps are left out (compressed time), nothing else. Published is what the rows say, against N
    lost      K triggers are taken out of the broker (Redis); how many of them became due, and how many others
    flush     the broker's data are wiped (Redis: the keys of this run; RabbitMQ: its queue); from then until every row is published again

Exit code 1 when more than 1.1 times N were published in the backlog, or anything is missing at the end.

Caveats. Everything shares the machine, so the times are upper bounds. The processor time is that of this process, without the servers; the
wall-clock time of a round has all of them in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from time import monotonic, process_time
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dramatiq
import pika

import switchyard
from brokers.amqp import queue_name
from brokers.broker import SwitchyardBroker
from brokers.redis import queue_key
from keeper import watch as watching
from keeper.relay import relay
from keeper.watch import Watch
from ledger.database import BoundedConnection
from loadtest.report import machine, table
from loadtest.stand import QUEUE, LoadtestFailed, Stand, stand

#: Jobs per call of ``enqueue_many``.
BULK: Final = 10_000
#: Most times that a backlog may be published.
MOST: Final = 1.1
#: Time between two looks at the broker, in seconds.
LOOK: Final = 0.1


class Backlog:
    """One run: a broker of this process, and a watch whose clock the run moves."""

    def __init__(self, place: Stand, jobs: int, timeout: float) -> None:
        settings = place.settings
        broker = switchyard.configure(**{name: getattr(settings, name) for name in type(settings).model_fields})
        assert isinstance(broker, SwitchyardBroker)
        self.place, self.broker, self.jobs, self.timeout = place, broker, jobs, timeout
        self.transport = broker.transport(settings.broker)
        self.connection: BoundedConnection = broker.database.dedicated("backlog")
        self.watch = Watch(self.transport, settings)

    def fill(self) -> float:
        """Send and publish everything. Returns the seconds it took."""

        @dramatiq.actor(broker=self.broker)
        def waits() -> None:
            """Never run: nobody consumes."""

        began = monotonic()
        for first in range(0, self.jobs, BULK):
            switchyard.enqueue_many(waits.message() for _ in range(min(BULK, self.jobs - first)))
            self._until(first + BULK // 2)
        self._until(self.jobs)
        return monotonic() - began

    def turn(self) -> tuple[int, bool]:
        """One turn of the watch, and of the relay behind it."""
        due, more = self.watch.turn(self.connection, [QUEUE])
        settings = self.place.settings
        relay(self.connection, self.broker.publisher, own=settings.broker, carriers=self.broker.carriers, grace=settings.lease)
        return due, more

    def wait_an_hour(self, most: int) -> dict[str, float]:
        """The watch over an hour, its pauses left out."""
        self.turn()
        self.place.database.execute("UPDATE switchyard.job SET next_publish_at = next_publish_at - interval '1 hour'")
        settings = self.place.settings
        pause = max(watching.ROUND_PAUSE * settings.lease, watching.ROW_PAUSE * self.jobs)
        # The rows became overdue at once, which is one look at each; then come the rounds.
        rounds, hour, longest = min(most, max(2, round(3600 / pause))), 0.0, 0.0
        done, cpu = 0, process_time()
        began = monotonic()
        while done < rounds and monotonic() - began < self.timeout:
            before = monotonic()
            self.turn()
            longest = max(longest, monotonic() - before)
            if self.watch.resting:
                done, hour = done + 1, hour + pause
                self.watch.hurry()
        took = monotonic() - began
        return {
            "rounds": done,
            "hours": hour / 3600,
            "seconds per round": took / max(1, done),
            "CPU s per round": (process_time() - cpu) / max(1, done),
            "longest turn, s": longest,
            "published, times": self._published(),
        }

    def lose(self, count: int) -> dict[str, float]:
        """Take triggers out of Redis, and see that these become due and no others."""
        if self.place.settings.broker != "redis" or not count:
            return {}
        key = queue_key(self.place.settings.broker_prefix, QUEUE)
        members: Any = self.place.redis.zrandmember(key, count)
        self.place.redis.zrem(key, *members)
        before, began = self._published(), monotonic()
        self.watch.hurry()
        while self._depth() < self.jobs:
            self.turn()
            if self.watch.resting:
                self.watch.hurry()
            self._check(began, "the lost triggers are not back")
        return {"lost": len(members), "published for them": round((self._published() - before) * self.jobs)}

    def wipe(self) -> dict[str, float]:
        """Remove everything from the broker, and have all of it back."""
        settings = self.place.settings
        before = self._published()
        if settings.broker == "redis":
            self.place.redis.delete(*self.place.redis.scan_iter(f"{settings.broker_prefix}*"))
        else:
            connection = pika.BlockingConnection(pika.URLParameters(settings.rabbitmq_url.get_secret_value()))
            connection.channel().queue_delete(queue_name(settings.broker_prefix, QUEUE))
            connection.close()
        began = monotonic()
        while self._depth() < self.jobs:
            self.turn()
            self._check(began, "the wiped triggers are not back")
        return {"back after, s": monotonic() - began, "published for it, times": self._published() - before}

    def close(self) -> None:
        """Close every connection."""
        self.watch.close()
        self.connection.close()
        self.broker.close()

    def _published(self) -> float:
        """How often the rows were published, on average."""
        (total,) = self.place.query("SELECT sum(abs(publish_count))::float8 FROM switchyard.job")
        return float(total) / self.jobs

    def _depth(self) -> int:
        return self.transport.depth([QUEUE])[QUEUE]

    def _until(self, depth: int) -> None:
        began = monotonic()
        while self._depth() < min(depth, self.jobs):
            self._check(began, "the triggers are not published")
            time.sleep(LOOK)

    def _check(self, began: float, complaint: str) -> None:
        if monotonic() - began > self.timeout:
            raise LoadtestFailed(f"{complaint} within {self.timeout:g} s (--timeout): {self._depth()} of {self.jobs}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All phases. Raises: LoadtestFailed."""
    with stand(options.broker) as place:
        facts = machine(place)
        backlog = Backlog(place, options.jobs, options.timeout)
        try:
            filled = backlog.fill()
            figures = {"sent and published, s": filled, **backlog.wait_an_hour(options.rounds)}
            if figures["published, times"] > MOST:
                raise LoadtestFailed(f"the backlog was published {figures['published, times']:.2f} times")
            figures |= backlog.lose(options.lost)
            figures |= backlog.wipe()
        finally:
            backlog.close()
    return {"options": vars(options), "machine": facts, "switchyard": figures}


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    rows = [["", f"{result['options']['jobs']:,} jobs, {result['options']['broker']}"]]
    rows += [[name, f"{value:,.3f}".rstrip("0").rstrip(".")] for name, value in result["switchyard"].items()]
    return f"{facts}\n\n{table(rows)}"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="loadtest.backlog", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], required=True)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs that wait (default 10000)")
    parser.add_argument("--lost", type=int, default=100, help="triggers taken out of Redis (default 100)")
    parser.add_argument("--rounds", type=int, default=240, help="most rounds of that hour (default 240: all)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that one phase may take (default 300)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(words)
    if not 1 <= options.jobs <= 2_000_000 or not 0 <= options.lost <= options.jobs:
        parser.error("--jobs: 1 to 2,000,000, and no more --lost than that")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the load test. Returns the exit code."""
    options = arguments(words)
    try:
        result = run(options)
    except LoadtestFailed as error:
        print(f"loadtest.backlog: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if options.json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
