"""The guard: an interruption reaches the body or nothing at all, and a body that has returned is a success."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from dramatiq.middleware import Interrupt

from runtime.interrupt import Guard
from tests.rig.waiting import wait_until


class Stop(Interrupt):
    """What the tests raise."""


@pytest.fixture
def eager():
    """Threads that change places as often as the interpreter allows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_running_body_is_interrupted():
    guard, inside = Guard(), threading.Event()

    def body():
        inside.set()
        while True:
            time.sleep(0.001)

    def interrupt():
        inside.wait(60)
        assert guard.interrupt(Stop)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Stop):
        guard.run(body, (), {})


def test_nothing_is_interrupted_before_and_after_the_body():
    guard = Guard()

    assert not guard.interrupt(Stop)
    assert guard.run(lambda a, b: a + b, (1,), {"b": 2}) == 3
    assert not guard.interrupt(Stop)


@pytest.mark.parametrize("error", [ValueError, StopIteration, SystemExit, Interrupt])
def test_what_the_body_raises_passes_with_its_traceback(error):
    def body():
        raise error("own")

    with pytest.raises(error, match="own") as caught:
        Guard().run(body, (), {})

    assert caught.traceback[-1].name == "body"
    assert caught.value.__context__ is None


@pytest.mark.parametrize("value", [None, 0, [], {}, object()])
def test_whatever_the_body_returns_comes_back(value):
    assert Guard().run(lambda: value, (), {}) is value


def test_thousands_of_bodies_that_end_around_their_interruption_are_successes_or_interrupted_never_both(eager):
    """Each body says, without a call and so without a moment at which it could be interrupted, that it is done."""
    current: list[Guard] = []
    stop = threading.Event()
    sent = 0

    def pester():
        nonlocal sent
        while not stop.is_set():
            for guard in current[-1:]:
                sent += guard.interrupt(Stop)

    threads = [threading.Thread(target=pester) for _ in range(3)]
    for thread in threads:
        thread.start()
    completed = interrupted = 0
    deadline = time.monotonic() + 100
    try:
        while completed < 5_000 or (interrupted < 50 and time.monotonic() < deadline):
            state = {"done": False}

            def body(state=state, turns=completed % 13 * 40):
                for _ in range(turns):
                    pass
                state["done"] = True
                return "result"

            guard = Guard()
            current[:] = [guard]
            try:
                assert guard.run(body, (), {}) == "result"
                completed += 1
                assert state["done"]
            except Stop:
                interrupted += 1
                assert not state["done"], "the body had returned, and is reported as interrupted"
            # Whatever was on its way is taken back: nothing may arrive from here on.
            for _ in range(20):
                len(current)
    finally:
        current.clear()
        stop.set()
        for thread in threads:
            thread.join()
    print(f"{completed} completed, {interrupted} interrupted, {sent} interruptions")
    assert interrupted >= 50


def test_an_interruption_that_a_body_in_c_outlived_arrives_nowhere():
    guard = Guard()
    held = threading.Lock()
    held.acquire()

    def interrupt():
        wait_until(lambda: guard.interrupt(Stop))
        held.release()

    thread = threading.Thread(target=interrupt)
    thread.start()

    # Nothing can be delivered inside of it; it is over before anything can be delivered after it.
    result = guard.run(held.acquire, (), {})
    for _ in range(100):
        len("")
    thread.join()

    assert result is True


def test_a_body_may_pause_its_guard_around_what_must_not_be_torn():
    guard = Guard()
    answers = []

    def body():
        guard.pause()
        answers.append(guard.interrupt(Stop))
        guard.resume()
        answers.append(guard.interrupt(Stop))
        time.sleep(0)
        raise AssertionError("not interrupted")

    with pytest.raises(Stop):
        guard.run(body, (), {})

    assert answers == [False] or answers == [False, True]
