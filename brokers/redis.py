"""Triggers through Redis (6.2 or newer): one sorted set per queue, written and read by two scripts.

    <prefix>:{q}:<queue>   sorted set: "<job id> <actor>" by band(priority) * 2^44 + sequence, lowest first
    <prefix>:{q}           the sequence
    <prefix>:epoch         the name of this life of the server's data, made by the first keeper that finds none
    <prefix>:dead          sorted set: the latest dead letters as JSON, by the Unix time of death in milliseconds
    <prefix>:ledgers       hash: the keepers that watch over the prefix, by name, with until when that counts (brokers.presence)

A trigger can be in its set once only: publishing it again keeps its place (or moves it forward when its priority was raised).
Taking one removes it at once, so a worker that dies between taking and claiming loses the trigger, and the relay publishes it
again. Nothing here is worth a backup: after a FLUSHALL the relay fills the sets anew.

An idle receiver blocks in BZPOPMIN over the queues themselves and needs no separate wake-up key. All keys share the hash tag
{q}, so that every script stays within one slot; a Redis Cluster answers MOVED, which is TransportDown: it is refused, not served
wrongly. A queue whose key holds something else, or is forbidden to our user, is set aside alone (``brokers.refusals``); Redis does
not say which of several keys it refuses, so each is asked for then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

from redis.exceptions import NoPermissionError, ResponseError

from brokers.presence import Presence
from brokers.presence import decode as decode_presence
from brokers.presence import encode as encode_presence
from brokers.redis_link import Call, Link, Script
from brokers.refusals import Refusals
from brokers.transport import (
    SOCKET_TIMEOUT,
    Fetched,
    Inspector,
    Mark,
    QueueRefused,
    Receiver,
    Sender,
    Sent,
    Transport,
    TransportDown,
    Trigger,
    band,
)
from brokers.wire import decode, encode
from ledger.dead import DeadNotice
from runtime.triggers import Outgoing
from settings import Settings

#: Longest single blocking pop, in seconds: well below the socket time-out, so that a late reply is still a reply.
_BLOCK = SOCKET_TIMEOUT / 2
#: How many dead letters are kept in Redis: the latest. The ledger has them all.
DEAD_KEPT = 10_000
#: Shortest one, in seconds. Redis reads less than a millisecond as 0, which means for ever.
_MIN_BLOCK = 0.002

_PUBLISH = Script("publish.lua")
_TAKE = Script("take.lua")
_MISSING = Script("missing.lua")
_PRESENT = Script("present.lua")


def queue_key(prefix: str, queue: str) -> str:
    """The key of a queue's sorted set."""
    return f"{prefix}:{{q}}:{queue}"


def sequence_key(prefix: str) -> str:
    """The key of the counter that orders triggers within a band."""
    return f"{prefix}:{{q}}"


def epoch_key(prefix: str) -> str:
    """The key that names this life of the server's data."""
    return f"{prefix}:epoch"


def dead_key(prefix: str) -> str:
    """The key of the dead letters' sorted set."""
    return f"{prefix}:dead"


def presence_key(prefix: str) -> str:
    """The key of the hash of those who watch."""
    return f"{prefix}:ledgers"


class RedisTransport(Transport):
    """Triggers through Redis. See the module's text for keys and guarantees."""

    name = "redis"
    carries_triggers = True
    dead_letter_place = dead_key("{prefix}")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._link = Link(settings)

    def sender(self) -> RedisSender:
        """A new publishing side."""
        return RedisSender(self.settings)

    def receiver(self) -> RedisReceiver:
        """A new consuming side."""
        return RedisReceiver(self.settings)

    def inspector(self) -> RedisInspector:
        """A new inspector."""
        return RedisInspector(self.settings)

    def put_dead(self, notices: Sequence[DeadNotice]) -> None:
        """Add them to the sorted set; one that is in it already stays one. Raises: TransportDown."""
        key, link = dead_key(self.settings.broker_prefix), Link(self.settings)
        scored = [part for notice in notices for part in (int(notice.died_at.timestamp() * 1000), notice.text)]
        try:
            for reply in link.run([("ZADD", key, *scored), ("ZREMRANGEBYRANK", key, 0, -DEAD_KEPT - 1)] if scored else []):
                link.checked(reply)
        finally:
            link.close()

    def depth(self, queues: Sequence[str]) -> dict[str, int]:
        """How many triggers wait, per queue. Raises: TransportDown."""
        prefix = self.settings.broker_prefix
        # The PING makes an answer about no queue an answer all the same.
        pong, *counts = self._link.run([("PING",), *(("ZCARD", queue_key(prefix, queue)) for queue in queues)])
        self._link.checked(pong)
        return {
            queue: 0 if _refusal(queue, queue_key(prefix, queue), reply) else int(self._link.checked(reply))
            for queue, reply in zip(queues, counts, strict=True)
        }

    def refusals(self, queues: Sequence[str]) -> list[QueueRefused]:
        """Those whose key holds something else or is forbidden. Raises: TransportDown."""
        return _refused(self._link, self.settings.broker_prefix, queues)

    @property
    def place(self) -> str:
        """Host, port and database, or the socket's path."""
        return self._link.place

    def presence(self, keeper: str) -> Presence | None:
        """Its field of the hash, unless its time is over. Raises: TransportDown."""
        clock, field = self._link.run([("TIME",), ("HGET", presence_key(self.settings.broker_prefix), keeper)])
        seconds, microseconds = self._link.checked(clock)
        until, _, text = (self._link.checked(field) or b"").partition(b" ")
        counts = until.isdigit() and int(until) > int(seconds) * 1000 + int(microseconds) // 1000
        return decode_presence(text) if counts else None

    def close(self) -> None:
        """Close what ``depth`` and ``presence`` opened."""
        self._link.close()


class RedisSender(Sender):
    """Publishes a batch with one script call per queue, all in one write to the socket."""

    def __init__(self, settings: Settings) -> None:
        self._prefix = settings.broker_prefix
        self._link = Link(settings)
        self._refusals = Refusals(RedisTransport.name, "publish")

    def publish(self, batch: Sequence[Outgoing]) -> list[int]:
        """Publish; the outcome is known at return. Raises: TransportDown: with the ids of every queue that was not written."""
        if not batch:
            return []
        refused: list[int] = []
        if self._refusals:
            try:
                self._ask_again()
            except TransportDown as error:
                error.unpublished = [trigger.job_id for trigger in batch]
                raise
            refused = [trigger.job_id for trigger in batch if trigger.queue in self._refusals]
            batch = [trigger for trigger in batch if trigger.queue not in self._refusals]
        queues = _by_queue_and_band(batch)
        sequence = sequence_key(self._prefix)
        calls = [((queue_key(self._prefix, queue), sequence), arguments) for queue, arguments in queues.items()]
        try:
            replies = self._link.call(_PUBLISH, calls) if calls else []
        except TransportDown as error:
            error.unpublished = [*refused, *(trigger.job_id for trigger in batch)]
            raise
        failures = {queue: reply for queue, reply in zip(queues, replies, strict=True) if isinstance(reply, ResponseError)}
        if failures:
            refused += [trigger.job_id for trigger in batch if trigger.queue in failures]
            try:
                found = _refused(self._link, self._prefix, list(failures))
            except TransportDown as error:
                error.unpublished = refused
                raise
            for error_ in found:
                self._refusals.note(error_)
            others = [reply for queue, reply in failures.items() if queue not in self._refusals]
            if others:
                self._link.close()
                raise TransportDown(RedisTransport.name, str(others[0]), unpublished=refused) from others[0]
        return refused

    def idle(self) -> list[int]:
        """Ask for refused queues again; see ``Sender.idle``."""
        if self._refusals:
            self._ask_again()
        return []

    def refused(self) -> Collection[str]:
        """The queues that are set aside; see ``Sender.refused``."""
        return list(self._refusals)

    def close(self) -> None:
        """Close the connection, quietly."""
        self._link.close()

    def _ask_again(self) -> None:
        _ask_again(self._link, self._prefix, self._refusals)


class RedisReceiver(Receiver):
    """Takes triggers; blocks on the queues themselves when all are empty. A trigger's receipt is the score it had."""

    def __init__(self, settings: Settings) -> None:
        self._prefix = settings.broker_prefix
        self._link = Link(settings)
        self._turn = 0
        self._refusals = Refusals(RedisTransport.name, "consume")

    def fetch(self, queues: Sequence[str], limit: int, timeout: float) -> Fetched:
        """Take up to ``limit`` triggers, waiting up to ``timeout`` seconds for the first. Raises: TransportDown."""
        fetched = Fetched()
        if limit <= 0 or not queues:
            return fetched
        deadline = monotonic() + timeout
        if self._refusals:
            _ask_again(self._link, self._prefix, self._refusals)
        while True:
            allowed = [queue for queue in queues if queue not in self._refusals] if self._refusals else queues
            if not allowed:
                # Nothing to wait for but the end of the time.
                sleep(max(0.0, deadline - monotonic()))
                return fetched
            try:
                self._fetch(self._rotate(allowed), limit, deadline, fetched)
                return fetched
            except TransportDown as error:
                if not isinstance(error.__cause__, ResponseError):
                    raise
                found = _refused(self._link, self._prefix, allowed)
                if not found:
                    raise
                for refused in found:
                    self._refusals.note(refused)
                if fetched:
                    return fetched

    def _fetch(self, rotated: Sequence[str], limit: int, deadline: float, fetched: Fetched) -> None:
        keys = [queue_key(self._prefix, queue) for queue in rotated]
        self._take(rotated, keys, limit, fetched)
        while not (fetched.triggers or fetched.undecodable):
            left = deadline - monotonic()
            if left <= 0:
                break
            reply = self._link.one(("BZPOPMIN", *keys, max(_MIN_BLOCK, min(left, _BLOCK))))
            if reply is not None:
                key, member, score = reply
                _add(fetched, rotated[keys.index(key.decode())], [member], [score])
                if limit > 1:
                    self._take(rotated, keys, limit - 1, fetched)

    def settle(self, triggers: Sequence[Trigger]) -> None:
        """Nothing to do: taking a trigger removed it."""

    def give_back(self, triggers: Sequence[Trigger]) -> None:
        """Put triggers back where they were. When Redis is away they are lost, which the relay notices."""
        by_queue: dict[str, list[Any]] = {}
        for trigger in triggers:
            # Without a score (its batch held a member with NUL bytes) it goes to the very front.
            by_queue.setdefault(trigger.queue, []).extend((trigger.receipt or 0, encode(trigger.job_id, trigger.actor)))
        try:
            self._link.run([("ZADD", queue_key(self._prefix, queue), "LT", *scored) for queue, scored in by_queue.items()])
        except TransportDown:
            return

    def close(self) -> None:
        """Close the connection, quietly."""
        self._link.close()

    def _rotate(self, queues: Sequence[str]) -> list[str]:
        self._turn = (self._turn + 1) % len(queues)
        return [*queues[self._turn :], *queues[: self._turn]]

    def _take(self, queues: Sequence[str], keys: Sequence[str], limit: int, fetched: Fetched) -> None:
        (reply,) = self._link.call(_TAKE, [(keys, (limit,))])
        reply = self._link.checked(reply)
        for at in range(0, len(reply), 3):
            _add(fetched, queues[reply[at] - 1], reply[at + 1].split(b"\0"), reply[at + 2].split(b"\0"))


class RedisInspector(Inspector):
    """Asks for the epoch's key, and for the triggers themselves: a set knows its members."""

    def __init__(self, settings: Settings) -> None:
        self._prefix = settings.broker_prefix
        self._link = Link(settings)

    def epoch(self, queue: str, known: str | None) -> str:
        """The name of this life; see ``Inspector.epoch``. Raises: TransportDown."""
        key = epoch_key(self._prefix)
        found = self._link.one(("GET", key))
        if found is None:
            # Of several keepers that see it missing, one names it.
            self._link.one(("SET", key, uuid4().hex, "NX"))
            found = self._link.one(("GET", key))
        if found is None:
            raise TransportDown(RedisTransport.name, f"{key} does not stay: it is removed at once")
        return str(found.decode(errors="replace"))

    def mark(self, marks: Sequence[Mark]) -> list[Mark]:
        """Nothing to do: ``lost`` asks for the triggers themselves."""
        return []

    def lost(self, sent: Sequence[Sent], passed: Mapping[tuple[str, int], float]) -> list[int]:
        """Those that are not in their set; see ``Inspector.lost``. Raises: TransportDown."""
        queues: dict[str, list[Sent]] = {}
        for trigger in sent:
            queues.setdefault(trigger.queue, []).append(trigger)
        calls: list[Call] = [
            ((queue_key(self._prefix, queue),), ("\0".join([encode(trigger.job_id, trigger.actor) for trigger in triggers]),))
            for queue, triggers in queues.items()
        ]
        missing: list[int] = []
        for (queue, triggers), reply in zip(queues.items(), self._link.call(_MISSING, calls) if calls else [], strict=True):
            if not _refusal(queue, queue_key(self._prefix, queue), reply):
                missing += [triggers[at - 1].job_id for at in self._link.checked(reply)]
        return missing

    def meet(self, own: Presence) -> list[Presence]:
        """One script; see ``Inspector.meet``. Raises: TransportDown."""
        arguments = (own.keeper, encode_presence(own), round(own.seconds * 1000))
        (reply,) = self._link.call(_PRESENT, [((presence_key(self._prefix),), arguments)])
        return [presence for text in self._link.checked(reply) if (presence := decode_presence(text))]

    def close(self) -> None:
        """Close the connection, quietly."""
        self._link.close()


def _refusal(queue: str, key: str, reply: Any) -> QueueRefused | None:
    """What a refused command on one queue's key says about the queue; None: nothing, it went well or it is not about the key."""
    text = str(reply)
    if isinstance(reply, NoPermissionError):
        # The other kind is about a command, and so about every queue.
        return (
            QueueRefused(queue, text, f"let the user of REDIS_URL use the key {key} (`ACL SETUSER`)") if " key" in text else None
        )
    if isinstance(reply, ResponseError) and "WRONGTYPE" in text:
        return QueueRefused(queue, f"{key}: {text}", f"the key {key} holds something that is not ours: rename or delete it")
    return None


def _refused(link: Link, prefix: str, queues: Sequence[str]) -> list[QueueRefused]:
    """Which of these queues Redis refuses, each asked for alone, while it takes others. Raises: TransportDown."""
    keys = [queue_key(prefix, queue) for queue in queues]
    # A script wants all that may be done to a key, even where it takes nothing; the other one reads what is there.
    allowed = link.call(_TAKE, [((key,), (0,)) for key in keys]) if keys else []
    kinds = link.run([("ZCARD", key) for key in keys]) if keys else []
    found = []
    for queue, key, *replies in zip(queues, keys, allowed, kinds, strict=True):
        refusals = [refused for reply in replies if (refused := _refusal(queue, key, reply))]
        found += refusals[:1]
    return found


def _ask_again(link: Link, prefix: str, refusals: Refusals) -> None:
    """Ask for refused queues whose time has come. Raises: TransportDown."""
    due = refusals.due()
    if due:
        still = {refused.queue: refused for refused in _refused(link, prefix, due)}
        for queue in due:
            if queue in still:
                refusals.note(still[queue])
            else:
                refusals.accept(queue)


def _by_queue_and_band(batch: Sequence[Outgoing]) -> dict[str, list[Any]]:
    """The publish script's arguments per queue, in the order of the batch within each band."""
    grouped: dict[tuple[str, int], list[str]] = {}
    # Neighbours nearly always share queue and priority, so whole runs are grouped at once.
    for (queue, priority), run in groupby(batch, key=_queue_and_priority):
        grouped.setdefault((queue, band(priority)), []).extend(encode(trigger.job_id, trigger.actor) for trigger in run)
    by_queue: dict[str, list[Any]] = {}
    for (queue, number), texts in grouped.items():
        by_queue.setdefault(queue, []).extend((number, "\0".join(texts)))
    return by_queue


def _queue_and_priority(trigger: Outgoing) -> tuple[str, int]:
    return trigger.queue, trigger.priority


def _add(fetched: Fetched, queue: str, members: Sequence[bytes], scores: Iterable[bytes]) -> None:
    """Add what one queue gave. Foreign members with NUL bytes come in pieces; scores no longer fit then and are left out."""
    known = list(scores)
    receipts: Sequence[bytes | None] = known if len(known) == len(members) else [None] * len(members)
    for member, receipt in zip(members, receipts, strict=True):
        read = decode(member)
        if read is None:
            fetched.undecodable.append(member)
        else:
            fetched.triggers.append(Trigger(read[0], queue, read[1], receipt))
