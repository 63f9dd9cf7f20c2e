"""The watchdog: dead and hanging threads are found, waiting and working ones are not."""

from __future__ import annotations

import threading
from queue import Empty
from typing import Any

import pytest

from ledger.database import Database
from runtime.claims import HeldClaims
from runtime.counters import Counters
from runtime.flusher import Flusher
from runtime.heartbeat import Heartbeat
from runtime.routes import Routes
from runtime.watchdog import LOOKS, Pulse, Watchdog
from runtime.workqueue import WorkQueue
from tests.ledger.factory import completed, worker_row
from tests.rig.waiting import wait_until

NOWHERE = "postgresql://postgres@127.0.0.1:9/nothing"


@pytest.fixture
def reasons():
    return []


@pytest.fixture
def watchdog(reasons):
    return Watchdog(60.0, lease=30.0, end=reasons.append)


def look(watchdog, times=LOOKS + 1):
    for _ in range(times):
        watchdog.look()


def test_a_thread_that_has_died_is_found_at_the_next_look(watchdog, reasons):
    living = [True]
    watchdog.watch("fine", lambda: True)
    watchdog.watch("keeper", lambda: living[0])

    watchdog.look()
    assert reasons == []
    living[0] = False
    watchdog.look()

    assert reasons == ["the keeper thread has died"]


def test_a_thread_that_counts_no_round_hangs(watchdog, reasons):
    lively, stuck = Pulse(), Pulse()
    watchdog.watch("lively", lambda: True, lively)
    watchdog.watch("fetcher", lambda: True, stuck)

    for _ in range(LOOKS):
        lively.beat()
        watchdog.look()
    assert reasons == []
    watchdog.look()

    assert reasons == ["the fetcher thread has made no progress for 60 s"]


def test_one_beat_is_enough_and_who_rests_may_take_as_long_as_it_likes(watchdog, reasons):
    slow, resting = Pulse(), Pulse()
    resting.rest()
    watchdog.watch("slow", lambda: True, slow)
    watchdog.watch("resting", lambda: True, resting)

    for _ in range(4):
        look(watchdog, LOOKS - 1)
        slow.beat()
    assert reasons == []

    # Once it is back from its rest it counts again.
    resting.beat()
    for _ in range(LOOKS + 1):
        slow.beat()
        watchdog.look()
    assert reasons == ["the resting thread has made no progress for 60 s"]


def test_nothing_is_found_once_the_shutdown_has_begun(watchdog, reasons):
    watchdog.watch("fetcher", lambda: False, Pulse())
    watchdog.relax()

    look(watchdog)

    assert reasons == []


def test_a_thread_that_is_forgotten_may_end(watchdog, reasons):
    pulse = Pulse()
    watchdog.watch("redis fetcher", lambda: False, pulse)

    watchdog.forget(pulse)
    watchdog.look()

    assert reasons == []


def test_without_patience_hanging_is_allowed_and_dying_is_not(reasons):
    watchdog = Watchdog(0.0, lease=30.0, end=reasons.append)
    living = [True]
    watchdog.watch("flusher", lambda: living[0], Pulse())

    look(watchdog)
    assert reasons == []
    living[0] = False
    watchdog.look()

    assert reasons == ["the flusher thread has died"]


def test_a_worker_thread_counts_as_it_asks_and_rests_at_work(monkeypatch):
    started = []
    held = HeldClaims(threads=1, lease=30.0, commit_start=lambda _: True)
    queue = WorkQueue(held)
    pulse = queue.pulse(threading.get_ident())

    for _ in range(2):
        with pytest.raises(Empty):
            queue.get(timeout=0.001)
    assert (pulse.beats, pulse.resting) == (2, False)

    monkeypatch.setattr(held, "start", lambda claim: started.append(pulse.resting) or len(started) > 1)
    queue.hand_over([Waiting(), Waiting()])
    queue.get(timeout=1)

    # The first was passed over, so it goes on asking.
    assert started == [True, True]
    assert (pulse.beats, pulse.resting) == (4, True)


def test_a_thread_that_waited_before_anybody_watched_it_rests_at_work_too(monkeypatch):
    held = HeldClaims(threads=1, lease=30.0, commit_start=lambda _: True)
    monkeypatch.setattr(held, "start", lambda claim: True)
    queue = WorkQueue(held)
    worker = threading.Thread(target=queue.get, daemon=True)
    worker.start()
    wait_until(lambda: queue._waiting, message="it waits for its first job")

    pulse = queue.pulse(worker.ident)
    queue.hand_over([Waiting()])
    worker.join(10)

    assert pulse.resting


class Waiting:
    """A message whose claim nobody looks at."""

    claim: Any = None
    message = None


def test_threads_that_wait_for_postgres_go_on_counting():
    database = Database(NOWHERE)
    held = HeldClaims(threads=1, lease=0.3, commit_start=lambda _: True)
    flusher = Flusher(database, held, Counters())
    heartbeat = Heartbeat(database, held, Counters(), worker_row("me"), lambda: ["default"], Routes({"*": "postgres"}))
    heartbeat._thread.start()
    flusher.start()

    # Nothing to do, and nothing that can be done.
    for pulse in (flusher.pulse, heartbeat.pulse):
        wait_until(lambda pulse=pulse, before=pulse.beats: pulse.beats > before + 1, 15, "it counts")
    flusher._queue.put((None, completed(1, "00000000-0000-4000-8000-000000000000")))
    for pulse in (flusher.pulse, heartbeat.pulse):
        wait_until(lambda pulse=pulse, before=pulse.beats: pulse.beats > before + 2, 15, "it counts still")

    heartbeat._orders.stop()
    flusher._give_up_at = 0.0
    flusher.stop(0.0)
    heartbeat._thread.join(5)
    assert not heartbeat.alive
    assert not flusher.alive
