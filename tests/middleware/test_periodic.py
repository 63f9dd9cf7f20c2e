"""``periodic=`` refuses nonsense when the actor is declared, naming actor and option, and becomes a schedule of ours."""

from __future__ import annotations

from datetime import timedelta

import dramatiq
import periodiq
import pytest
from dramatiq.brokers.stub import StubBroker

import switchyard
from errors import OptionError
from middleware import stub_stack
from runtime.timing import Timing


@pytest.fixture
def broker() -> StubBroker:
    return StubBroker(middleware=stub_stack())


def declared(broker, value, fn=None):
    def tick() -> None:
        return None

    return dramatiq.actor(actor_name="tick", broker=broker, periodic=value)(fn or tick)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("61 * * * *", "minute 61 is out of range"),
        (switchyard.cron("0 0 31 2 *"), "would never run"),
        (switchyard.cron("0 8 * * *", timezone="Mars"), "is no time zone"),
        (switchyard.cron("0 8 * * *", catch_up="maybe"), "write 'skip', 'last' or 'all'"),
        (switchyard.cron("0 8 * * *", window="a day"), "window='a day'"),
        (switchyard.cron("0 8 * * *", jitter=-1), "jitter=-1"),
        (switchyard.cron("0 8 * * *", args=[1]), "too many positional arguments"),
        (switchyard.cron("0 8 * * *", kwargs={"x": 1}), "field 'x'"),
        (5, "is no schedule"),
    ],
)
def test_nonsense_is_refused_naming_actor_and_option(broker, value, says):
    with pytest.raises(OptionError, match="actor 'tick', option 'periodic'") as caught:
        declared(broker, value)

    assert says in str(caught.value)
    assert "tick" not in broker.actors


def test_an_actor_that_needs_arguments_has_to_be_given_them(broker):
    def greet(name: str, times: int = 1) -> None:
        return None

    with pytest.raises(OptionError, match=r"field 'name'.*missing.*give cron\(\) its args or kwargs"):
        declared(broker, "@daily", greet)
    with pytest.raises(OptionError, match="field 'name'"):
        declared(broker, switchyard.cron("@daily", args=[5]), greet)
    with pytest.raises(OptionError, match="is nan, which is not JSON"):
        declared(broker, switchyard.cron("@daily", args=["Ada"], kwargs={"times": float("nan")}), greet)

    actor = declared(broker, switchyard.cron("@daily", args=["Ada"], kwargs={"times": 2}), greet)
    assert actor.options["periodic"].args == ["Ada"]


@pytest.mark.parametrize("value", ["0 0 * * 0", switchyard.cron("0 0 * * 0"), periodiq.cron("0 0 * * 0")])
def test_an_expression_ours_and_periodiq_s_are_accepted_and_become_ours(broker, value):
    actor = declared(broker, value)

    assert isinstance(actor.options["periodic"], Timing)
    # A Sunday, on which periodiq's own never comes.
    assert actor.options["periodic"].next(1)[0].isoweekday() == 7


def test_none_is_no_schedule(broker):
    assert "periodic" not in declared(broker, None).options


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"periodic": "0 8 * * *"}, "periodic"),
        ({"schedule": 5}, "schedule"),
        ({"schedule": "a\nb"}, "schedule"),
        ({"schedule": "s", "tick_at": "today"}, "tick_at"),
        ({"schedule": "s", "tick_at": "2026-01-01T00:00:00"}, "tick_at"),
        ({"schedule": "s", "tick_at": 0}, "tick_at"),
    ],
)
def test_a_message_says_nothing_else_of_schedules(broker, options, option):
    actor = declared(broker, None)

    with pytest.raises(OptionError) as caught:
        actor.send_with_options(**options)

    assert (caught.value.actor, caught.value.option) == ("tick", option)


def test_a_schedule_says_when_it_comes_next():
    first, second = switchyard.cron("0 8 * * *", "Asia/Tokyo").next(2)

    assert second - first == timedelta(days=1)
    assert (first.hour, first.utcoffset()) == (23, timedelta(0))
