"""What wakes the keeper: its own process through a pipe, commits elsewhere through its connection, and how it shares those with others."""

from __future__ import annotations

import os
import threading
import time

import psycopg
import pytest

from keeper.alarm import HUSH_MAX, HUSH_MIN, Alarm
from ledger.database import Database
from runtime.enlist import DUE_CHANNEL


@pytest.fixture
def alarm():
    made = Alarm()
    made.open()
    yield made
    made.close()


@pytest.fixture
def connection(database_url):
    with Database(database_url).dedicated("test") as opened:
        yield opened


def ring(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT pg_notify(%s, '')", (DUE_CHANNEL,))


def waited(alarm: Alarm, seconds: float, connection=None) -> tuple[bool, float]:
    started = time.monotonic()
    rung = alarm.wait(seconds, connection)
    return rung, time.monotonic() - started


def test_it_waits_for_as_long_as_it_is_told(alarm):
    rung, seconds = waited(alarm, 0.1)

    assert not rung
    assert 0.1 <= seconds < 10


def test_its_own_process_ends_the_wait(alarm, connection):
    alarm.listen(connection)
    threading.Timer(0.05, alarm.set).start()

    rung, seconds = waited(alarm, 30, connection)

    assert not rung
    assert seconds < 25


def test_set_before_the_wait_counts_and_counts_once(alarm):
    alarm.set()
    alarm.set()

    assert waited(alarm, 30)[1] < 25
    assert waited(alarm, 0.1)[1] >= 0.1


def test_a_commit_elsewhere_ends_the_wait(alarm, connection, database_url):
    alarm.listen(connection)
    ring(database_url)

    assert alarm.wait(30, connection)
    assert alarm.take()
    assert not alarm.take()


def test_a_ring_that_comes_with_a_statements_reply_is_not_missed(alarm, connection, database_url):
    alarm.listen(connection)
    ring(database_url)
    connection.execute("SELECT 1")

    assert alarm.wait(30, connection)


def test_who_comes_too_late_listens_less_often_and_who_finds_something_is_quick_again(alarm, connection, database_url):
    alarm.listen(connection)
    pauses = []
    for _ in range(5):
        alarm.hush(in_vain=True)
        ring(database_url)
        rung, seconds = waited(alarm, 30, connection)
        assert rung
        assert alarm.take()
        pauses.append(seconds)
    assert pauses[4] >= HUSH_MIN * 2**5 * 0.5 > HUSH_MIN
    assert pauses[4] < HUSH_MAX + 20

    alarm.hush(in_vain=False)
    assert alarm._hush == HUSH_MIN
    for _ in range(50):
        alarm.hush(in_vain=True)
    assert alarm._hush == HUSH_MAX


def test_a_lost_connection_ends_the_wait(alarm, connection, database_url):
    alarm.listen(connection)
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))

    with pytest.raises(psycopg.OperationalError):
        alarm.wait(30, connection)


def test_a_closed_one_takes_a_late_set_without_writing_anywhere(alarm):
    alarm.close()
    reader, writer = os.pipe()
    alarm.set()
    os.set_blocking(reader, False)

    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)
