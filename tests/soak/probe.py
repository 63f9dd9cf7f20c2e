"""What processes and servers hold at one moment, as numbers with names: ``steady worker 1 rss``, ``job rows``, ``redis keys``."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import psutil
import psycopg
import redis

from tests.rig.processes import Child

MB = 2**20

#: The probe's own connection is none of the product's.
NAME = "soak-probe"
_SERVER = """
SELECT count(*) FILTER (WHERE backend_type = 'client backend'),
    coalesce(extract(epoch FROM max(clock_timestamp() - xact_start)), 0)::float8
FROM pg_stat_activity WHERE datname = current_database() AND application_name <> 'soak-probe'
"""
_TABLES = """
SELECT c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid), pg_stat_get_dead_tuples(c.oid),
    (xpath('/row/n/text()', query_to_xml('SELECT count(*) AS n FROM switchyard.' || quote_ident(c.relname), false, true, '')))[1]::text
FROM pg_class AS c WHERE c.relnamespace = 'switchyard'::regnamespace AND c.relkind = 'r'
"""
#: Queues, triggers in them, copies of dead letters, connections, channels, bytes of the node.
_RABBIT = (
    "Queues = rabbit_amqqueue:list(), "
    'IsDead = fun (Queue) -> binary:longest_common_suffix([element(4, amqqueue:get_name(Queue)), <<".dead">>]) == 5 end, '
    "{Dead, Others} = lists:partition(IsDead, Queues), "
    "Held = fun (Some) -> lists:sum([proplists:get_value(messages, rabbit_amqqueue:info(One, [messages]), 0) || One <- Some]) end, "
    "{length(Queues), Held(Others), Held(Dead), "
    "length(rabbit_networking:connections()), length(rabbit_channel:list()), erlang:memory(total)}."
)


def of_process(pid: int) -> dict[str, float]:
    """MB resident, open files and threads of a process; nothing if it has ended."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        with process.oneshot():
            return {
                "rss": process.memory_info().rss / MB,
                "files": float(process.num_fds()),
                "threads": float(process.num_threads()),
            }
    return {}


def private_memory(server: Child) -> float:
    """MB that a server's processes have to themselves: what they share counts for none of them."""
    found = 0.0
    for process in [psutil.Process(server.pid), *server.children()]:
        # One that ends meanwhile needs nothing any more.
        with suppress(psutil.Error):
            found += process.memory_full_info().uss / MB
    return found


def of_postgres(connection: psycopg.Connection[Any]) -> dict[str, float]:
    """Connections and the oldest transaction; of each table its rows, dead tuples, and MB of table and indexes."""
    row = connection.execute(_SERVER).fetchone()
    assert row is not None
    found = {"postgres connections": float(row[0]), "postgres oldest transaction": float(row[1])}
    for table, heap, indexes, dead, rows in connection.execute(_TABLES).fetchall():
        found |= {f"{table} rows": float(rows), f"{table} dead": float(dead)}
        found |= {f"{table} table": heap / MB, f"{table} indexes": indexes / MB}
    return found


def of_redis(url: str) -> dict[str, float]:
    """Keys, connections (without this one) and MB of data."""
    client = redis.Redis.from_url(url)
    try:
        information: Any = client.info()
        return {
            "redis keys": float(client.dbsize()),
            "redis connections": float(information["connected_clients"] - 1),
            "redis data": information["used_memory"] / MB,
        }
    finally:
        client.close()


def of_rabbitmq(server: Any) -> dict[str, float]:
    """Queues, triggers, copies of dead letters, connections, channels, and MB of the node. Takes a second or two."""
    numbers = [float(number) for number in re.findall(r"\d+", server.ctl("eval", _RABBIT))]
    names = ("rabbitmq queues", "rabbitmq depth", "rabbitmq copies", "rabbitmq connections", "rabbitmq channels")
    return dict(zip(names, numbers, strict=False)) | {"rabbitmq memory": numbers[-1] / MB}
