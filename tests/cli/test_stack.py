"""What a stack says of itself before and after its run: what it starts, and what it leaves on servers that are somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.signals import Signals
from cli.stack import Stack


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("DATABASE_URL", "REDIS_URL", "RABBITMQ_URL", "BROKER", "BROKER_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("broker", "title"),
    [
        ("postgres", "Postgres and workers"),
        ("redis", "Postgres, redis and workers"),
        ("rabbitmq", "Postgres, rabbitmq and workers"),
    ],
)
def test_it_names_each_server_once(broker: str, title: str):
    assert Stack(Signals(), broker=broker).title == title


def test_nothing_stays_on_servers_that_are_its_own():
    stack = Stack(Signals(), broker="redis")
    stack.overrides |= {
        "database_url": "postgresql://postgres@127.0.0.1:20001/switchyard",
        "redis_url": "redis://127.0.0.1:20002/0",
    }

    assert stack.stays() == []


def test_jobs_stay_in_a_database_that_was_given():
    named = Stack(Signals(), database_url="postgresql://me:hunter2@db/shop")
    unnamed = Stack(Signals(), database_url="postgresql://me:hunter2@db")

    assert named.stays() == ["these jobs and what they wrote: in your database shop, schemas switchyard and switchyard_jobs"]
    assert unnamed.stays() == ["these jobs and what they wrote: in your database, schemas switchyard and switchyard_jobs"]


def test_names_stay_in_a_broker_that_was_given():
    stack = Stack(Signals(), broker="rabbitmq", broker_prefix="mine")

    assert stack.stays() == [
        "names that begin with mine, with nothing of this run in them: in your rabbitmq; they go by"
        " rabbitmqctl --quiet list_queues name | grep '^mine' | xargs -n 1 rabbitmqctl delete_queue"
    ]
