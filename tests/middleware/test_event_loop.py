"""One event loop per worker, also when two live in one process."""

from __future__ import annotations

from typing import Any, cast

import pytest
from dramatiq.asyncio import get_event_loop_thread

from middleware.event_loop import EventLoop

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
