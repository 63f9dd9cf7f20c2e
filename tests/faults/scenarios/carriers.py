"""F6 and F7: the brokers that carry triggers are killed, emptied, filled, frozen, and thrown over."""

from __future__ import annotations

from collections.abc import Callable

import pika
import redis

from brokers.amqp import queue_name
from tests.faults.rig import QUEUES, Links, Rig, pause
from tests.faults.scenarios import Plan, scenario
from tests.rig.redis import PrivateRedis
from tests.rig.waiting import wait_until


class Victim:
    """What the faults of one carrier need: the rig, and the proxies through which every process reaches the broker."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        used = [rig.links_of(worker) for worker in rig.staff(2, linked=True)]
        used.append(rig.stream(linked=True))
        self.links: list[Links] = [links for links in used if links is not None]
        rig.baseline = rig.needs()


def _go_through(faults: tuple[Callable[[Victim], None], ...], rig: Rig, plan: Plan) -> None:
    victim = Victim(rig)
    for trial in plan:
        hurt = faults[trial % len(faults)]
        with rig.faulty(hurt.__name__.strip("_")):
            hurt(victim)
        # The workers that worked before work again: none of their threads is dead.
        rig.flowing(10)
    assert all(worker.running for worker in rig.workers), rig.logs()


# Redis.


def _redis(victim: Victim) -> redis.Redis:
    return redis.Redis.from_url(victim.rig.servers.redis.url, socket_timeout=10)


def _killed(victim: Victim) -> None:
    server = victim.rig.servers.redis
    server.kill()
    pause(victim.rig.random.uniform(0.2, 2.0))
    # It has no append-only file, so it comes back empty.
    server.start()


def _flushed(victim: Victim) -> None:
    for _ in range(3):
        _redis(victim).flushall()
        pause(0.2)


def _frozen(victim: Victim) -> None:
    server = victim.rig.servers.redis
    server.freeze()
    pause(3.0)
    server.thaw()


def _out_of_memory(victim: Victim) -> None:
    client = _redis(victim)
    try:
        client.config_set("maxmemory", 1)
        pause(1.5)
    finally:
        client.config_set("maxmemory", 0)


def _clients_killed(victim: Victim) -> None:
    for _ in range(3):
        _redis(victim).execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        pause(0.3)


def _scripts_flushed(victim: Victim) -> None:
    for _ in range(3):
        _redis(victim).script_flush()
        pause(0.2)


def _failed_over(victim: Victim) -> None:
    """To a replica that misses the last writes, and back to the old primary, which misses what came since."""
    primary = victim.rig.servers.redis
    replica = PrivateRedis()
    replica.start()
    try:
        follower = redis.Redis.from_url(replica.url, socket_timeout=10)
        follower.replicaof("127.0.0.1", primary.port)
        wait_until(lambda: follower.info("replication")["master_link_status"] == "up", 30, "the replica follows")
        follower.replicaof("NO", "ONE")
        pause(0.5)
        _lead(victim, replica.port)
        pause(1.5)
        _lead(victim, primary.port)
    finally:
        replica.stop()


def _lead(victim: Victim, port: int) -> None:
    for links in victim.links:
        links.broker.target = port
        links.broker.reset()


REDIS_FAULTS = (_flushed, _killed, _frozen, _failed_over, _out_of_memory, _clients_killed, _scripts_flushed)


@scenario(
    "F6",
    "Redis: kill -9 and empty restart, FLUSHALL, frozen, failover to an older replica, out of memory, clients killed, scripts gone",
    unit="faults",
    full=30 * len(REDIS_FAULTS),
    brokers=("redis",),
    weight=4,
    kinds=len(REDIS_FAULTS),
)
def hurt_redis(rig: Rig, plan: Plan) -> None:
    """One fault after the other, while jobs flow."""
    _go_through(REDIS_FAULTS, rig, plan)


# RabbitMQ.


def _node_killed(victim: Victim) -> None:
    server = victim.rig.servers.rabbitmq
    server.kill()
    pause(victim.rig.random.uniform(0.2, 2.0))
    server.start()


def _connections_closed(victim: Victim) -> None:
    victim.rig.servers.rabbitmq.ctl("close_all_connections", "by the fault plan")


def _memory_alarm(victim: Victim) -> None:
    server = victim.rig.servers.rabbitmq
    try:
        server.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        pause(1.0)
    finally:
        server.ctl("set_vm_memory_high_watermark", "0.6")


def _disk_alarm(victim: Victim) -> None:
    server = victim.rig.servers.rabbitmq
    try:
        server.ctl("set_disk_free_limit", str(10**15))
        pause(1.0)
    finally:
        server.ctl("set_disk_free_limit", "50MB")


def _queue_deleted(victim: Victim) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(victim.rig.servers.rabbitmq.url))
    try:
        for queue in QUEUES:
            connection.channel().queue_delete(queue_name(victim.rig.settings.broker_prefix, queue))
    finally:
        connection.close()


def _consumers_timed_out(victim: Victim) -> None:
    """A consumer time-out far below what the jobs take: whatever is acknowledged only after its job would be delivered again."""
    server = victim.rig.servers.rabbitmq
    try:
        server.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1000).")
        pause(3.0)
    finally:
        server.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")


def _vhost_wiped(victim: Victim) -> None:
    server = victim.rig.servers.rabbitmq
    server.ctl("delete_vhost", "/")
    server.ctl("add_vhost", "/")
    server.ctl("set_permissions", "-p", "/", "guest", ".*", ".*", ".*")


RABBITMQ_FAULTS = (
    _queue_deleted,
    _node_killed,
    _connections_closed,
    _vhost_wiped,
    _memory_alarm,
    _disk_alarm,
    _consumers_timed_out,
)


@scenario(
    "F7",
    "RabbitMQ: kill -9, connections closed, vhost wiped, queue deleted, memory and disk alarm, consumer time-out",
    unit="faults",
    full=30 * len(RABBITMQ_FAULTS),
    brokers=("rabbitmq",),
    weight=4,
    kinds=len(RABBITMQ_FAULTS),
)
def hurt_rabbitmq(rig: Rig, plan: Plan) -> None:
    """One fault after the other, while jobs flow."""
    _go_through(RABBITMQ_FAULTS, rig, plan)
