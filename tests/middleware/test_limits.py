"""The options of limits: what is refused, when, and what a job counts as."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from errors import OptionError
from ledger.limits import Rule
from middleware.concurrency import Concurrency
from middleware.rate_limit import RateLimit
from runtime.limits import rules_of


@pytest.fixture
def broker():
    return StubBroker(middleware=[RateLimit(), Concurrency()])


def declared(broker: StubBroker, **options: Any) -> Any:
    @dramatiq.actor(broker=broker, actor_name="work", **options)
    def work(customer: str = "nobody", pages: int = 1, **rest: Any) -> None:
        return None

    return work


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rate_limit": "often"}, "rate_limit"),
    ({"rate_limit": 100}, "rate_limit"),
    ({"rate_limit": "0/minute"}, "rate_limit"),
    ({"rate_limit_key": "customer"}, "rate_limit_key"),
    ({"rate_limit_burst": 5}, "rate_limit_burst"),
    ({"rate_limit_cost": 5}, "rate_limit_cost"),
    ({"rate_limit": "1/second", "rate_limit_key": "nothing"}, "rate_limit_key"),
    ({"rate_limit": "1/second", "rate_limit_key": "rest"}, "rate_limit_key"),
    ({"rate_limit": "1/second", "rate_limit_key": 7}, "rate_limit_key"),
    ({"rate_limit": "1/second", "rate_limit_cost": 0}, "rate_limit_cost"),
    ({"rate_limit": "1/second", "rate_limit_cost": 1.5}, "rate_limit_cost"),
    ({"rate_limit": "1/second", "rate_limit_burst": True}, "rate_limit_burst"),
    ({"concurrency": 0}, "concurrency"),
    ({"concurrency": "2"}, "concurrency"),
    ({"concurrency_key": "customer"}, "concurrency_key"),
    ({"fair_key": "customer"}, "fair_key"),
    ({"concurrency": 1, "concurrency_key": "nothing"}, "concurrency_key"),
    ({"concurrency": 1, "fair_weight": 2}, "fair_weight"),
    ({"concurrency": 1, "fair_key": "customer", "fair_weight": 0}, "fair_weight"),
    ({"concurrency": 1, "fair_key": "customer", "fair_weight": float("nan")}, "fair_weight"),
]


@pytest.mark.parametrize(("options", "named"), WRONG)
def test_nonsense_is_refused_when_the_actor_is_declared(broker, options, named):
    with pytest.raises(OptionError) as refused:
        declared(broker, **options)

    assert (refused.value.actor, refused.value.option) == ("work", named)


def test_an_actor_whose_keys_would_look_like_a_queues_cannot_be_limited(broker):
    with pytest.raises(OptionError, match="cannot be limited"):

        @dramatiq.actor(broker=broker, actor_name="queue", concurrency=1)
        def work() -> None:
            return None


def test_what_an_actor_declares_is_a_rule(broker):
    actor = declared(broker, rate_limit="100/minute", concurrency=10)

    assert rules_of(actor) == [Rule("rate", "work", 100, 60.0, 2), Rule("concurrency", "work", 10)]
    assert rules_of(declared(StubBroker(middleware=[RateLimit(), Concurrency()]), rate_limit="50/second"))[0].burst == 50
    assert rules_of(declared(StubBroker(middleware=[RateLimit(), Concurrency()]), rate_limit="1/hour"))[0].burst == 1


def rate_of(actor: Any, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    message = actor.message_with_options(args=args, kwargs=kwargs, **(options or {}))
    return RateLimit().control_of(message, actor, "")


def slots_of(actor: Any, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    message = actor.message_with_options(args=args, kwargs=kwargs, **(options or {}))
    return Concurrency().control_of(message, actor, "")


def test_a_key_is_an_argument_however_it_was_given_or_its_default(broker):
    actor = declared(broker, rate_limit="1/second", rate_limit_key="customer")

    for found in (rate_of(actor, "ada"), rate_of(actor, customer="ada")):
        assert found == {"rate_key": "work:ada", "rate_cost": 1}
    assert rate_of(actor)["rate_key"] == "work:nobody"
    assert rate_of(actor, UUID(int=1))["rate_key"].startswith("work:00000000-")
    assert rate_of(actor, None)["rate_key"] == "work"


def test_keys_costs_and_weights_may_be_functions_of_the_arguments(broker):
    actor = declared(
        broker,
        rate_limit="1/second",
        rate_limit_key=lambda customer, pages=1: customer.upper(),
        rate_limit_cost=lambda customer, pages=1: pages,
        concurrency=2,
        fair_key=lambda customer, pages=1: customer[0],
        fair_weight=lambda customer, pages=1: 2 if customer == "big" else 1,
    )

    assert rate_of(actor, "ada", 7) == {"rate_key": "work:ADA", "rate_cost": 7}
    assert slots_of(actor, "big") == {"concurrency_key": "work", "fair_key": "b", "fair_weight": 2.0}


def test_a_message_overrides_what_its_actor_would_choose(broker):
    actor = declared(
        broker, rate_limit="1/second", rate_limit_key="customer", concurrency=1, concurrency_key="customer", fair_key="customer"
    )

    assert rate_of(actor, "ada", options={"rate_limit_key": 5, "rate_limit_cost": 3}) == {"rate_key": "work:5", "rate_cost": 3}
    assert slots_of(actor, "ada", options={"concurrency_key": "x", "fair_key": "y", "fair_weight": 0.5}) == {
        "concurrency_key": "work:x",
        "fair_key": "y",
        "fair_weight": 0.5,
    }


def test_a_key_that_cannot_be_told_stops_the_send(broker):
    raises = declared(broker, rate_limit="1/second", rate_limit_key=lambda customer: customer.nothing)

    with pytest.raises(
        OptionError, match="'work', option 'rate_limit_key': could not be told from the arguments: AttributeError"
    ):
        rate_of(raises, "ada")


@pytest.mark.parametrize("key", [["a"], {"a": 1}, "x" * 201, "line\nbreak"])
def test_what_is_no_key_stops_the_send(key):
    actor = declared(StubBroker(middleware=[RateLimit(), Concurrency()]), concurrency=1, concurrency_key="customer")

    with pytest.raises(OptionError, match="is no key"):
        slots_of(actor, key)


def test_actors_without_limits_pay_nothing(broker):
    actor = declared(broker)

    assert (rate_of(actor, "ada"), slots_of(actor, "ada"), rules_of(actor)) == (None, None, [])
