"""Options of unique jobs: nonsense is refused when the actor is declared, and keys are made of what the actor names."""

from __future__ import annotations

from datetime import timedelta

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from errors import OptionError
from middleware import stub_stack
from settings import load


@pytest.fixture
def broker():
    made = StubBroker(middleware=stub_stack(load()))
    yield made
    made.close()


def declared(broker, **options):
    @dramatiq.actor(broker=broker, **options)
    def work(a, b=2, *, c=None):
        """Takes arguments of every kind."""

    return work


def control(broker, actor, *args, message=None, **kwargs):
    made = actor.message_with_options(args=args, kwargs=kwargs, **(message or {}))
    broker.emit_before("enqueue", made, None)
    (middleware,) = [one for one in broker.middleware if type(one).__name__ == "UniqueJobs"]
    return middleware.control_of(made, actor, "")


@pytest.mark.parametrize(
    ("options", "option", "reason"),
    [
        ({"unique_key": "a"}, "unique_key", "neither True .* nor a tuple of arguments' names"),
        ({"unique_key": False}, "unique_key", "neither True"),
        ({"unique_key": ()}, "unique_key", "neither True"),
        ({"unique_key": ("a", "x")}, "unique_key", "'x' is no argument of the actor"),
        ({"unique_for": "ever"}, "unique_for", "neither 'active' nor a period"),
        ({"unique_for": 0}, "unique_for", "no period above 0"),
        ({"unique_for": True}, "unique_for", "no period above 0"),
        ({"unique_for": timedelta(days=-1)}, "unique_for", "no period above 0"),
        ({"unique_for": float("inf")}, "unique_for", "no period above 0"),
        ({"unique_mode": "drop"}, "unique_mode", "write skip, debounce or throttle"),
        ({"unique_mode": "throttle"}, "unique_for", "has to be a period"),
        ({"unique_mode": "throttle", "unique_for": "active"}, "unique_for", "has to be a period"),
        ({"unique_mode": "debounce", "unique_for": 5}, "unique_for", "cannot be a period"),
        ({"unique_mode": "debounce", "unique_max_wait": 0}, "unique_max_wait", "no period above 0"),
        ({"unique_max_wait": 5}, "unique_max_wait", "goes with unique_mode='debounce' alone"),
        ({"idempotency_ttl": "1h"}, "idempotency_ttl", "no period above 0"),
    ],
)
def test_nonsense_is_refused_when_the_actor_is_declared(broker, options, option, reason):
    with pytest.raises(OptionError, match=rf"actor 'work', option '{option}': .*{reason}"):
        declared(broker, **options)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"unique_key": ["a"]}, "unique_key"),
        ({"unique_key": ""}, "unique_key"),
        ({"unique_key": True}, "unique_key"),
        ({"unique_mode": "debounce"}, "unique_for"),
        ({"unique_for": None, "unique_mode": "throttle"}, "unique_for"),
        ({"unique_max_wait": 3}, "unique_max_wait"),
        ({"idempotency_key": "k" * 256}, "idempotency_key"),
    ],
)
def test_nonsense_on_a_message_is_refused_together_with_its_actors_options(broker, options, option):
    actor = declared(broker, unique_for=60)

    with pytest.raises(OptionError, match=f"actor 'work', option '{option}'"):
        control(broker, actor, 1, message=options)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"unique_key": True}, '[1,2,"x"]'),
        ({"unique_for": 60}, '[1,2,"x"]'),
        ({"unique_mode": "debounce"}, '[1,2,"x"]'),
        ({"unique_key": ("c", "a")}, '["x",1]'),
        ({"unique_key": lambda a, b=0, c=None: f"{a}-{b}-{c}"}, "1-0-x"),
        ({"unique_key": lambda a, **_: a}, "1"),
        ({"unique_key": lambda a, **_: None}, None),
        ({}, None),
    ],
)
def test_a_key_is_made_of_what_the_actor_names(broker, options, key):
    found = control(broker, declared(broker, **options), 1, c="x")

    assert (None if found is None else found["unique"].key) == key


def test_however_the_arguments_are_spelled_the_key_is_the_same(broker):
    actor = declared(broker, unique_key=True)

    keys = {
        control(broker, actor, 1)["unique"].key,
        control(broker, actor, a=1, b=2)["unique"].key,
        control(broker, actor, 1, 2)["unique"].key,
    }

    assert len(keys) == 1


def test_a_long_key_is_a_digest(broker):
    found = control(broker, declared(broker, unique_key=True), "x" * 5_000)

    assert len(found["unique"].key) == 64


def test_a_function_that_raises_refuses_the_send_and_shows_no_argument(broker):
    actor = declared(broker, unique_key=lambda a, **_: a["id"])

    with pytest.raises(OptionError, match="'unique_key': the function raised TypeError") as refused:
        control(broker, actor, 424242)

    assert "424242" not in str(refused.value)


def test_a_timedelta_travels_as_seconds(broker):
    actor = declared(broker)
    message = actor.message_with_options(
        args=(1,), unique_key="k", unique_for=timedelta(minutes=1), idempotency_key="k", idempotency_ttl=timedelta(hours=1)
    )

    broker.emit_before("enqueue", message, None)

    assert (message.options["unique_for"], message.options["idempotency_ttl"]) == (60.0, 3_600.0)


def test_unit_tests_run_actors_with_keys_without_a_ledger(broker):
    actor = declared(broker, unique_key=True)

    first, second = actor.send(1), actor.send_with_options(args=(1,), idempotency_key="k")

    assert first.message_id != second.message_id
