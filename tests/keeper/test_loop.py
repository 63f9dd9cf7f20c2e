"""The loop: every duty gets its turns, whatever becomes of the others, and a turn may ask for the next one."""

from __future__ import annotations

import pytest

from keeper import loop
from keeper.duty import Duty
from keeper.loop import Keeper
from tests.keeper.conftest import Broker
from tests.rig.waiting import wait_until


@pytest.fixture
def run(node, monkeypatch):
    """Have a keeper of its own do these duties until the test ends."""
    keepers = []

    def run(*duties):
        monkeypatch.setattr(loop, "DUTIES", duties)
        keepers.append(Keeper(Broker()))
        keepers[-1].start(node)

    yield run
    for keeper in keepers:
        keeper.stop()


class Turns:
    """A duty that counts its turns."""

    def __init__(self, answer=None, raises=None):
        self.count = 0
        self.answer = answer
        self.raises = raises

    def __call__(self, connection, keeping):
        self.count += 1
        if self.raises is not None:
            raise self.raises
        return self.answer


def test_a_duty_that_always_fails_keeps_no_other_from_its_turns(run):
    failing, sound = Turns(raises=RuntimeError("broken")), Turns()

    run(Duty("failing", lambda _: 0.1, failing), Duty("sound", lambda _: 0.1, sound))

    wait_until(lambda: failing.count >= 3 and sound.count >= 3)


def test_a_duty_that_has_more_to_do_gets_its_next_turn_before_its_period_is_over(run):
    busy, idle = Turns(answer=0.05), Turns()

    run(Duty("busy", lambda _: 3600.0, busy), Duty("idle", lambda _: 3600.0, idle))

    wait_until(lambda: busy.count >= 3)
    assert idle.count == 1
