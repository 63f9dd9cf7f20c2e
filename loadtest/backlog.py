"""What does a backlog cost in an hour, how often is it published again, and how soon is it back when its broker was wiped?

    python -m loadtest.backlog --broker redis --jobs 1000000 --no-wipe

The rows lie there as after an hour of sends, each with its trigger in the broker. Then, with the keeper of one process:

    hour      as many sweeps as an hour has, with all the rounds that fall into it; only the pauses between the sweeps are left out
    lost      K triggers are taken out of the broker (Redis); how many of them became due, and how many others
    wipe      the broker's data are wiped (Redis: the keys of this run; RabbitMQ: its queue); from then until every row is published again
    work      a real worker drains it for some seconds or to its end, under sweeps without pauses: the marks of RabbitMQ come in

Published is what a trigger of the database counts that Switchyard knows nothing of, beside the first time. Exit code 1 when in the phases
hour and work together more than 1.1 times N were published (and as much as one process may have in hand: what it has taken and not claimed
yet is looked for in vain), or anything is missing at the end of a phase.

Caveats. Everything shares the machine, so the times are upper bounds. The processor time is that of this process, without the servers; the
wall-clock time has all of them in it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from time import monotonic, process_time
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pika

import switchyard
from brokers.amqp import queue_name
from brokers.broker import SwitchyardBroker
from brokers.redis import queue_key
from brokers.transport import Sender, TransportDown
from keeper import watch as watching
from keeper.relay import relay
from keeper.watch import Watch
from ledger.database import BoundedConnection
from loadtest.report import command, machine, table
from loadtest.stand import QUEUE, LoadtestFailed, Stand, stand
from runtime.claims import MAX_ROOM
from runtime.triggers import Outgoing

#: Triggers of one publish.
BULK: Final = 1_000
#: An hour, in seconds.
HOUR: Final = 3_600.0
#: How long the confirms of what was published may take, in seconds.
CONFIRM: Final = 60.0
#: Most times that a backlog may be published.
MOST: Final = 1.1
#: Time between two sweeps while a worker works, in seconds.
LOOK: Final = 0.1

#: As sends leave them, spread over the hour that has passed, oldest first.
_FILL: Final = """
    INSERT INTO switchyard.job (message_id, queue, actor, broker, payload, state, created_at, run_at, publish_count, next_publish_at)
    SELECT gen_random_uuid(), %(queue)s, 'noop', %(broker)s, '{"args": [1, {}], "kwargs": {}}', 'pending', sent_at, sent_at, 1,
        sent_at + make_interval(secs => %(grace)s)
    FROM (
        SELECT now() - make_interval(secs => 3600.0 * (1 - i / %(jobs)s::float8)) AS sent_at FROM generate_series(1, %(jobs)s) AS i
    ) AS sends
    RETURNING id
"""
#: Counts what is published again; a sequence, since it is no matter of the transaction's.
WITNESS: Final = """
    CREATE SEQUENCE republished;
    CREATE FUNCTION count_republished() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('republished'); RETURN NULL; END $$;
    CREATE TRIGGER count_republished AFTER UPDATE ON switchyard.job FOR EACH ROW
        WHEN (NEW.state = 'pending' AND NEW.publish_count > 0 AND NEW.publish_count <> OLD.publish_count)
        EXECUTE FUNCTION count_republished();
"""


class Backlog:
    """One run: a broker of this process, and a watch whose clock the run moves."""

    def __init__(self, place: Stand, jobs: int, timeout: float) -> None:
        settings = place.settings
        broker = switchyard.configure(**{name: getattr(settings, name) for name in type(settings).model_fields})
        assert isinstance(broker, SwitchyardBroker)
        #: Published twice because the first time was not confirmed.
        self.copies = 0
        self.place, self.broker, self.jobs, self.timeout = place, broker, jobs, timeout
        self.transport = broker.transport(settings.broker)
        self.connection: BoundedConnection = broker.database.dedicated("backlog")
        self.watch = Watch(self.transport, settings)
        # Between two rounds; a sweep counts as what it is, however soon the next one comes.
        self._pause = max(watching.ROUND_PAUSE * settings.lease, watching.ROW_PAUSE * jobs)

    def fill(self) -> float:
        """Write and publish everything. Returns the seconds it took."""
        settings, began = self.place.settings, monotonic()
        self.place.database.execute(WITNESS)
        # An epoch first, as any keeper sees to it.
        self.turn()
        parameters = {"queue": QUEUE, "broker": settings.broker, "grace": settings.lease, "jobs": self.jobs}
        ids = sorted(row[0] for row in self.place.database.execute(_FILL, parameters))
        self.place.database.execute("VACUUM ANALYZE switchyard.job")
        sender, left = self.transport.sender(), ids
        while left:
            # A server that gets a million at once may be late with its confirms: what is not confirmed goes again, as by the relay.
            left = self._publish(sender, left)
            self.copies += len(left)
            if left:
                self._check(began, "the triggers are not published")
        sender.close()
        if self._depth() < self.jobs:
            raise LoadtestFailed(f"{self._depth()} of {self.jobs} triggers are published")
        return monotonic() - began

    def _publish(self, sender: Sender, ids: list[int]) -> list[int]:
        """Publish in bulk. Returns what may not have arrived."""
        failed: list[int] = []
        for first in range(0, len(ids), BULK):
            try:
                failed += sender.publish([Outgoing(id_, QUEUE, "noop") for id_ in ids[first : first + BULK]])
            except TransportDown as error:
                failed += error.unpublished
        try:
            return failed + sender.flush(CONFIRM)
        except TransportDown as error:
            return failed + error.unpublished

    def turn(self) -> tuple[int, bool]:
        """One turn of the watch, and of the relay behind it."""
        due, more = self.watch.turn(self.connection, [QUEUE])
        settings = self.place.settings
        relay(self.connection, self.broker.publisher, own=settings.broker, carriers=self.broker.carriers, grace=settings.lease)
        return due, more

    def wait_an_hour(self, sweeps: int) -> dict[str, float]:
        """The watch over an hour of sweeps, their pauses left out."""
        settings = self.place.settings
        rounds, rested, longest = 0, 0.0, 0.0
        cpu, began = process_time(), monotonic()
        self.watch.hurry()
        for _ in range(sweeps):
            before = monotonic()
            self.turn()
            longest = max(longest, monotonic() - before)
            self._check(began, "the sweeps are not over")
            if self.watch.resting:
                rounds += not rested
                rested += settings.sweep
                if rested >= self._pause:
                    self.watch.hurry()
                    rested = 0.0
        return {
            "hours": sweeps * settings.sweep / HOUR,
            "rounds": rounds,
            "all sweeps, s": monotonic() - began,
            "all sweeps, CPU s": process_time() - cpu,
            "longest sweep, s": longest,
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

    def work(self, seconds: float) -> dict[str, float]:
        """A worker drains the backlog, while this keeper's sweeps go on without pauses."""
        before, began, left, rested = self._published(), monotonic(), self.jobs, 0.0
        with self.place.worker("loadtest.jobs", processes=1, threads=8) as worker:
            while left and monotonic() - began < seconds:
                worker.check()
                self.turn()
                rested = rested + self.place.settings.sweep if self.watch.resting else 0.0
                if rested >= self._pause:
                    self.watch.hurry()
                time.sleep(LOOK)
                (left,) = self.place.query("SELECT count(*) FROM switchyard.job WHERE state <> 'completed'")
        return {
            "worked, s": monotonic() - began,
            "completed": self.jobs - left,
            "published meanwhile, times": self._published() - before,
        }

    def close(self) -> None:
        """Close every connection."""
        self.watch.close()
        self.connection.close()
        self.broker.close()

    def _published(self) -> float:
        """How often the rows were published, on average."""
        (again,) = self.place.query("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM republished")
        return 1 + (self.copies + float(again)) / self.jobs

    def _depth(self) -> int:
        return self.transport.depth([QUEUE])[QUEUE]

    def _check(self, began: float, complaint: str) -> None:
        if monotonic() - began > self.timeout:
            raise LoadtestFailed(f"{complaint} within {self.timeout:g} s (--timeout): {self._depth()} of {self.jobs}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All phases. Raises: LoadtestFailed."""
    with stand(options.broker) as place:
        facts = machine(place)
        backlog = Backlog(place, options.jobs, options.timeout)
        try:
            figures = {"written and published, s": backlog.fill(), **backlog.wait_an_hour(options.sweeps)}
            figures |= backlog.lose(options.lost)
            if options.wipe:
                figures |= backlog.wipe()
            if options.work:
                figures |= backlog.work(options.work)
            times = figures["published, times"] + figures.get("published meanwhile, times", 0.0)
            if times > MOST + MAX_ROOM / options.jobs:
                raise LoadtestFailed(f"the backlog was published {times:.2f} times")
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
    parser.add_argument("--sweeps", type=int, default=720, help="sweeps of that hour (default 720: one every 5 s)")
    parser.add_argument("--wipe", action=argparse.BooleanOptionalAction, default=True, help="wipe the broker as well")
    parser.add_argument("--work", type=float, default=60.0, help="seconds that a worker drains it (default 60; 0: not at all)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that one phase may take (default 600)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(words)
    if not 1 <= options.sweeps <= 7_200 or not 0 <= options.work <= 3_600:
        parser.error("--sweeps: 1 to 7,200; --work: 0 to 3,600")
    if not 1 <= options.jobs <= 2_000_000 or not 0 <= options.lost <= options.jobs:
        parser.error("--jobs: 1 to 2,000,000, and no more --lost than that")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the load test. Returns the exit code."""
    return command("loadtest.backlog", arguments(words), run, text)


if __name__ == "__main__":
    sys.exit(main())
