"""F12 and F13: jobs that harm their worker, and messages in the broker that no sender of ours has put there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from uuid import uuid4

import pika
import psycopg
import redis

from brokers.amqp import queue_name
from brokers.postgres import CHANNEL
from brokers.redis import queue_key
from runtime.enlist import DUE_CHANNEL
from tests.faults.checker import Verdict
from tests.faults.jobs import ENDS, POISONS
from tests.faults.rig import Rig
from tests.faults.scenarios import Plan, scenario

#: In the order in which the suite, which tries few of them, should have them.
POISONOUS = (
    "os_exit",
    "system_exit",
    "no_json",
    *(name for name in POISONS if name not in ("os_exit", "system_exit", "no_json")),
)


@scenario(
    "F12",
    "poison: os._exit, SIGSEGV, SIGKILL, no memory, a loop in C, SystemExit, SkipMessage, fork, results of 100 MB or no JSON",
    unit="poisonous jobs",
    full=10 * len(POISONOUS),
    weight=2,
    kinds=len(POISONOUS),
    settings={"max_lost": 2, "shutdown_grace": 1.0},
    after=lambda rig, verdict: _right_ends(rig, verdict),
)
def poison_workers(rig: Rig, plan: Plan) -> None:
    """Each kind of poison among good jobs, on one supervised node: it ends as it has to, every good job completes, the node goes on."""
    if plan.small:
        rig.settings = rig.settings.model_copy(update={"max_lost": 1})
    rig.tended = False
    node = rig.hire(command=("-m", "cli", "worker", "tests.faults.worker", "-p", "2", "-t", "4"))
    rig.stream("short", rate=20)
    for trial in plan:
        how = POISONOUS[trial % len(POISONOUS)]
        rig.fault(how)
        rig.send(f"poison={how}", 1, bulk=1)
        rig.until(lambda: _poison_left(rig) == 0, 180, lambda how=how: f"{how} ends: {rig.states()}")
        rig.healed(how)
        # The longest pause before a process is replaced that keeps dying.
        rig.flowing(10)
    assert node.running, node.output(4_000)


def _poison_left(rig: Rig) -> int:
    return int(rig.rows("SELECT count(*) FROM switchyard.job WHERE actor = 'poison' AND finished_at IS NULL")[0][0])


def _right_ends(rig: Rig, verdict: Verdict) -> None:
    wrong = []
    for how, state, reason, error in rig.rows(
        "SELECT payload->'args'->>0, state, dead_reason, error FROM switchyard.job WHERE actor = 'poison'"
    ):
        wanted, reasons = ENDS[how]
        if state != wanted or (reasons and reason not in reasons):
            wrong.append(f"{how} is {state} ({reason}: {error})")
    verdict.complain("I5", "poisonous jobs ended otherwise than they had to", wrong)
    good = rig.rows("SELECT message_id::text FROM switchyard.job WHERE actor <> 'poison' AND (state <> 'completed' OR lost > 0)")
    verdict.complain("I7", "good jobs were held guilty of a death, or did not complete", [row[0] for row in good])


def _garbage(draw: random.Random, jobs: list[tuple[int, str]]) -> bytes:
    """One message that does not belong into a broker, or does not belong there again."""
    id_, actor = draw.choice(jobs) if jobs else (1, "plain")
    kinds: list[Callable[[], bytes]] = [
        lambda: draw.randbytes(draw.randrange(1, 200)),
        lambda: json.dumps(draw.choice([None, [], {"a": [1]}, "x", 1.5, {"message_id": 1, "queue_name": None}])).encode(),
        lambda: f"{draw.randrange(10**9, 10**12)} plain".encode(),
        lambda: f"{id_} nobody".encode(),
        lambda: f"-{id_} {actor}".encode(),
        lambda: f"{'9' * draw.randrange(20, 5_000)} plain".encode(),
        lambda: f"{id_} {actor} {uuid4()}".encode(),
        lambda: f"{id_}\x00{actor}".encode(),
        # The same job again, whatever its state is by now.
        lambda: f"{id_} {actor}".encode(),
        lambda: f"{id_} {actor}".encode(),
        lambda: f"{id_} {actor}".encode(),
    ]
    return draw.choice(kinds)()


def _into_redis(rig: Rig, messages: list[bytes]) -> None:
    client = redis.Redis.from_url(rig.servers.redis.url, socket_timeout=10)
    key = queue_key(rig.settings.broker_prefix, "default")
    with client.pipeline(transaction=False) as pipe:
        for message in messages:
            pipe.zadd(key, {message: rig.random.choice((0.0, -1.0, 1e15))})
        pipe.execute()


def _into_rabbitmq(rig: Rig, messages: list[bytes]) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(rig.servers.rabbitmq.url))
    try:
        channel = connection.channel()
        for message in messages:
            properties = pika.BasicProperties(priority=rig.random.randrange(256), content_type="?" * rig.random.randrange(10))
            channel.basic_publish("", queue_name(rig.settings.broker_prefix, "default"), message, properties)
    finally:
        connection.close()


def _into_postgres(rig: Rig, messages: list[bytes]) -> None:
    """Postgres carries nothing but the doorbells; they are all that somebody can ring with nonsense."""
    with psycopg.connect(rig.database_url, autocommit=True) as connection:
        for message in messages:
            # Up to two bytes for each, and less than the 8,000 that Postgres takes.
            text = message[:3_900].decode("latin-1").replace("\x00", "")
            connection.execute("SELECT pg_notify(%s, %s)", (rig.random.choice((CHANNEL, DUE_CHANNEL)), text))


INTO = {"redis": _into_redis, "rabbitmq": _into_rabbitmq, "postgres": _into_postgres}


@scenario(
    "F13",
    "messages nobody sent: random bytes, wrong types, unknown and foreign ids, 10 MB, the same job again and again",
    unit="batches of 200",
    full=500,
    weight=1,
)
def fuzz_broker(rig: Rig, plan: Plan) -> None:
    """Batches of garbage beside good jobs: the neighbours are untouched, and no thread dies of it."""
    rig.staff(1)
    rig.stream("short")
    rig.baseline = rig.needs()
    for trial in plan:
        jobs = rig.rows("SELECT id, actor FROM switchyard.job ORDER BY id DESC LIMIT 50")
        messages = [_garbage(rig.random, jobs) for _ in range(200)]
        if trial % 10 == 5:
            messages.append(rig.random.randbytes(10 * 2**20))
        rig.fault("garbage", messages=len(messages))
        INTO[rig.broker](rig, messages)
        rig.healed("garbage")
        rig.flowing(10)
    assert all(worker.running for worker in rig.workers), rig.logs()
