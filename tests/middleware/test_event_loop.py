"""One event loop per worker, also when two live in one process; and when it counts as hanging."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.logging import get_logger
from dramatiq.middleware import Interrupt
from dramatiq.threading import raise_thread_exception

from middleware import event_loop
from middleware.event_loop import EventLoop, WatchedLoop
from runtime.watchdog import LOOKS, Watchdog
from tests.rig.waiting import wait_until

NOBODY = cast("Any", None)


@pytest.fixture
def loops():
    pair = EventLoop(), EventLoop()
    yield pair
    for loop in pair:
        loop.after_worker_shutdown(NOBODY, NOBODY)


def test_the_inner_worker_gives_the_outer_its_loop_back(loops):
    outer, inner = loops
    outer.before_worker_boot(NOBODY, NOBODY)
    outers = get_event_loop_thread()
    inner.before_worker_boot(NOBODY, NOBODY)
    inners = get_event_loop_thread()

    inner.after_worker_shutdown(NOBODY, NOBODY)

    assert get_event_loop_thread() is outers
    assert outers.is_alive()
    assert not inners.is_alive()


def test_whoever_stops_first_leaves_the_other_its_loop(loops):
    first, second = loops
    first.before_worker_boot(NOBODY, NOBODY)
    firsts = get_event_loop_thread()
    second.before_worker_boot(NOBODY, NOBODY)
    seconds = get_event_loop_thread()

    first.after_worker_shutdown(NOBODY, NOBODY)

    assert get_event_loop_thread() is seconds
    assert seconds.is_alive()
    assert not firsts.is_alive()

    second.after_worker_shutdown(NOBODY, NOBODY)

    assert get_event_loop_thread() is None
    assert not seconds.is_alive()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedLoop]:
    monkeypatch.setattr(event_loop, "BEAT", 0.01)
    found = WatchedLoop(get_logger(__name__))
    found.start(timeout=10)
    yield found
    found.stop()
    found.join()


class Caller(threading.Thread):
    """A worker's thread that waits for a coroutine."""

    def __init__(self, loop: WatchedLoop, coroutine: Any) -> None:
        super().__init__(daemon=True)
        self._loop, self._coroutine = loop, coroutine
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._loop.run_coroutine(self._coroutine)
        except BaseException as error:
            self.error = error

    def waits(self) -> bool:
        """Whether it has got as far as waiting; what interrupts it before does not come from a coroutine that is overdue."""
        frame = sys._current_frames().get(self.ident or 0)
        while frame is not None and frame.f_code.co_name != "result":
            frame = frame.f_back
        return frame is not None


def verdict(loop: WatchedLoop) -> list[str]:
    """What a watchdog says that looks so often that a thread without a round hangs."""
    reasons: list[str] = []
    watchdog = Watchdog(60.0, lease=30.0, end=reasons.append)
    watchdog.watch("event loop", loop.is_alive, loop.pulse)
    for _ in range(LOOKS + 1):
        watchdog.look()
    return reasons


def test_a_loop_goes_round_while_coroutines_wait_and_while_there_are_none(loop):
    before = loop.pulse.beats
    wait_until(lambda: loop.pulse.beats > before + 2)
    assert not loop.pulse.resting

    caller = Caller(loop, asyncio.sleep(60))
    caller.start()
    wait_until(lambda: loop.pulse.resting)
    before = loop.pulse.beats
    wait_until(lambda: loop.pulse.beats > before + 2)

    raise_thread_exception(caller.ident, Interrupt)
    caller.join(30)
    assert isinstance(caller.error, Interrupt)
    wait_until(lambda: not loop.pulse.resting)


def test_a_blocked_loop_is_its_jobs_business_until_one_of_them_gave_up(loop, request):
    go = threading.Event()
    request.addfinalizer(go.set)

    async def blocks() -> None:
        go.wait()

    blocking, other = Caller(loop, blocks()), Caller(loop, asyncio.sleep(60))
    blocking.start()
    wait_until(lambda: loop.pulse.resting)
    other.start()
    wait_until(other.waits)
    assert loop._waiting == 2
    assert verdict(loop) == []

    # The limit of the one that does not even get its turn.
    raise_thread_exception(other.ident, Interrupt)
    other.join(30)
    assert verdict(loop) == ["the event loop thread has made no progress for 60 s"]

    go.set()
    blocking.join(30)
    assert blocking.error is None
    before = loop.pulse.beats
    wait_until(lambda: loop.pulse.beats > before + 2)
    assert not loop._overdue
