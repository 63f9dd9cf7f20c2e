"""Triggers that vanish from a broker are published again, those that wait are not, and what is stale hides nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pika
import pytest
import redis

import brokers
import switchyard
from brokers.amqp import queue_name
from brokers.redis import queue_key
from brokers.wire import encode
from runtime.triggers import Outgoing
from tests.conformance.system import System
from tests.rig.waiting import wait_until

CARRYING = tuple(name for name in brokers.TRANSPORTS if brokers.transport_class(name).carries_triggers)

# On Postgres the row is its own trigger: it cannot vanish.
pytestmark = pytest.mark.parametrize("broker_name", CARRYING, indirect=True)


@pytest.fixture
def system(fresh) -> System:
    """A system whose worker the test starts."""
    found: System = fresh(lease=2.0, sweep=0.25)
    return found


def counted(system: System, where: str, *parameters: object) -> int:
    return int(system.rows(f"SELECT count(*) FROM switchyard.job WHERE {where}", *parameters)[0][0])  # noqa: S608


def published(system: System) -> int:
    """How often rows that wait were published, the send included."""
    return int(system.rows("SELECT coalesce(sum(abs(publish_count)), 0) FROM switchyard.job WHERE state = 'pending'")[0][0])


def depth(system: System) -> int:
    return system.broker.transport(system.settings.broker).depth(["counted"])["counted"]


@pytest.fixture
def wipe(system: System) -> Callable[[], None]:
    """Remove everything of this system from its broker."""

    def remove() -> None:
        settings = system.settings
        if settings.broker == "redis":
            with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
                client.delete(*client.scan_iter(f"{settings.broker_prefix}*"))
        else:
            connection = pika.BlockingConnection(pika.URLParameters(settings.rabbitmq_url.get_secret_value()))
            connection.channel().queue_delete(queue_name(settings.broker_prefix, "counted"))
            connection.close()

    return remove


def take_away(system: System, ids: list[int]) -> None:
    """Remove the triggers of these rows, and leave the others."""
    settings = system.settings
    if settings.broker == "redis":
        with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
            key = queue_key(settings.broker_prefix, "counted")
            assert client.zrem(key, *(encode(id_, "count") for id_ in ids)) == len(ids)
        return
    connection = pika.BlockingConnection(pika.URLParameters(settings.rabbitmq_url.get_secret_value()))
    channel = connection.channel()
    unwanted, kept = {encode(id_, "count").encode() for id_ in ids}, []
    for method, _, body in channel.consume(queue_name(settings.broker_prefix, "counted"), inactivity_timeout=1.0):
        if method is None:
            break
        if body in unwanted:
            channel.basic_ack(method.delivery_tag)
        else:
            kept.append(method.delivery_tag)
    # What is not acknowledged goes back to its place.
    connection.close()
    assert kept


def keeper_only(system: System) -> None:
    """A worker of another queue, whose keeper looks after all of them."""
    system.start(queues={"parked"})


def epochs(system: System) -> dict[str, str]:
    return dict(system.rows("SELECT queue, value FROM switchyard.epoch WHERE broker = %s", system.settings.broker))


def test_a_wiped_broker_gets_every_waiting_trigger_again_once(system, wipe):
    keeper_only(system)
    switchyard.enqueue_many([system.jobs.count.message("wiped") for _ in range(500)])
    wait_until(lambda: depth(system) == 500, 10, "all are published")
    queue = "counted" if system.settings.broker == "rabbitmq" else ""
    wait_until(lambda: queue in epochs(system), 10, "the epoch is known")
    before = epochs(system)[queue]

    wipe()

    wait_until(lambda: depth(system) == 500, 20, lambda: f"all are published again: {depth(system)}")
    assert epochs(system)[queue] != before
    assert published(system) == 1000
    assert counted(system, "publish_count = 2") == 500
    system.stop()
    system.start()
    wait_until(lambda: counted(system, "state = 'completed'") == 500, 30, "all are completed")


def test_a_backlog_is_not_published_again(system):
    keeper_only(system)
    switchyard.enqueue_many([system.jobs.count.message("backlog") for _ in range(300)])
    wait_until(lambda: depth(system) == 300, 10, "all are published")
    written = system.rows("SELECT sum(xmin::text::bigint) FROM switchyard.job")

    overdue = "clock_timestamp() > (SELECT max(next_publish_at) FROM switchyard.job) + interval '3 s'"
    wait_until(lambda: system.rows(f"SELECT {overdue}")[0][0], 20, "their grace ran out long ago")

    assert depth(system) == 300
    assert published(system) == 300
    assert system.rows("SELECT sum(xmin::text::bigint) FROM switchyard.job") == written


def test_stale_triggers_hide_no_lost_one_while_work_flows(system):
    jobs = system.jobs
    lost = switchyard.enqueue_many([jobs.count.message("lost") for _ in range(100)])
    switchyard.enqueue_many([jobs.count.message("kept") for _ in range(100)])
    wait_until(lambda: depth(system) == 200, 10, "all are published")
    stale = system.broker.transport(system.settings.broker).sender()
    stale.publish([Outgoing(10**12 + number, "counted", "count") for number in range(1000)])
    stale.flush(5)
    stale.close()
    ids = [
        row[0]
        for row in system.rows("SELECT id FROM switchyard.job WHERE message_id = ANY(%s::uuid[])", [m.message_id for m in lost])
    ]
    take_away(system, ids)
    flowing, ended = threading.Event(), threading.Event()

    def flow() -> None:
        while not ended.wait(0.02):
            jobs.count.send("flow")
            flowing.set()

    thread = threading.Thread(target=flow)
    thread.start()
    try:
        assert flowing.wait(10)
        system.start()
        done = "state = 'completed' AND id = ANY(%s)"
        # A lease and a sweep are 2.25 s; the rest is the machine's.
        wait_until(lambda: counted(system, done, ids) == 100, 45, lambda: f"all lost ones run: {counted(system, done, ids)}")
    finally:
        ended.set()
        thread.join()
    assert counted(system, "attempt > 1") == 0


def test_a_keeper_that_died_after_naming_the_epoch_is_made_up_for(system, wipe):
    keeper_only(system)
    switchyard.enqueue_many([system.jobs.count.message("crash") for _ in range(50)])
    queue = "counted" if system.settings.broker == "rabbitmq" else ""
    wait_until(lambda: depth(system) == 50 and queue in epochs(system), 10, "all are published")
    known = epochs(system)[queue]
    system.stop()
    wipe()
    inspector = system.broker.transport(system.settings.broker).inspector()
    # This keeper names the new life, and dies before it told the ledger.
    named = inspector.epoch(queue, known)
    inspector.close()
    assert named != known

    keeper_only(system)

    wait_until(lambda: depth(system) == 50, 20, "all are published again")
    assert epochs(system)[queue] != known
    assert counted(system, "publish_count = 2") == 50
