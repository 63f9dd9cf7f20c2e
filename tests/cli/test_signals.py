"""Signals become one exception, wait while a process is being started, and only hurry what is stopping already."""

from __future__ import annotations

import signal

import pytest

from cli.signals import Signals, Stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_raises(number: signal.Signals):
    with Signals(), pytest.raises(Stopped, match=f"stopped by {number.name}") as caught:
        signal.raise_signal(number)

    assert caught.value.number == number


def test_a_shield_holds_it_back():
    reached = []

    def start_something(signals: Signals) -> None:
        with signals.shielded():
            signal.raise_signal(signal.SIGTERM)
            reached.append("the end of the shield")
        reached.append("what comes after")

    with Signals() as signals, pytest.raises(Stopped):
        start_something(signals)

    assert reached == ["the end of the shield"]


def test_while_stopping_it_only_hurries():
    with Signals() as signals:
        signals.stopping()
        assert not signals.hurry
        signal.raise_signal(signal.SIGINT)
        assert signals.hurry


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) is not before

    assert signal.getsignal(signal.SIGTERM) is before
