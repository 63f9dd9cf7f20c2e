"""Options of messages: what nobody knows is refused with the nearest name, and whoever reads one has a way to say so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dramatiq
import periodiq
import pytest
from dramatiq import Middleware
from dramatiq.brokers.stub import StubBroker

import switchyard
from errors import OptionError
from middleware import stub_stack
from runtime.message_options import NOTES, OF_DRAMATIQ, MessageOptions
from settings import load
from tests.rig.processes import ROOT

#: How code reads an option, or writes one.
USE = re.compile(r"""options(?:\.get|\.pop)?[\[(]\s*["'](\w+)["']|["'](\w+)["'] (?:not )?in (?:\w+\.)?options\b""")


def made(**settings):
    return StubBroker(middleware=stub_stack(load(**settings)))


@pytest.fixture
def broker():
    broker = made()
    yield broker
    broker.close()


def actor_of(broker):
    @dramatiq.actor(broker=broker)
    def charge(order: int) -> None:
        """Takes one argument."""

    return charge


def refusal(actor, **options):
    with pytest.raises(OptionError) as caught:
        actor.send_with_options(args=(1,), **options)
    assert actor.broker.queues["default"].empty()
    assert caught.value.actor == "charge"
    return caught.value


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("idempotncy_key", "idempotency_key"),
        ("priorty", "priority"),
        ("max_retry", "max_retries"),
        ("dealy", "delay"),
        ("kwarg", "kwargs"),
        ("on_sucess", "on_success"),
        ("concurrency_kye", "concurrency_key"),
        ("tag", "tags"),
        # Not Dramatiq's own note of that name, which is nearer.
        ("retires", "max_retries"),
    ],
)
def test_a_misspelt_option_is_refused_and_the_nearest_one_named(broker, wrong, meant):
    error = refusal(actor_of(broker), **{wrong: None})

    assert (error.option, error.reason) == (wrong, f"nobody knows it; did you mean {meant!r}? Nothing was stored")


def test_what_is_near_to_nothing_says_how_to_declare_it(broker):
    assert "message_options, or name it in MESSAGE_OPTIONS" in refusal(actor_of(broker), zzz=1).reason


@pytest.mark.parametrize("name", ["secret", "retry_when"])
def test_what_only_an_actor_can_say_does_not_pass_for_an_option_of_a_message(broker, name):
    assert "belongs to the actor" in refusal(actor_of(broker), **{name: ["order"]}).reason


class Declares(Middleware):
    """A middleware of somebody else's that reads ``tenant``."""

    message_options = {"tenant"}


class ForActors(Middleware):
    """The same, for actors and their messages, in Dramatiq's own way."""

    actor_options = {"tenant"}


def test_a_middleware_that_is_added_later_declares_options_in_either_way(broker):
    for middleware in (Declares(), ForActors()):
        broker = made()
        charge = actor_of(broker)
        refusal(charge, tenant="a")

        broker.add_middleware(middleware)

        assert charge.send_with_options(args=(1,), tenant="a").options["tenant"] == "a"
        broker.close()


def test_one_that_declares_nothing_can_be_told_from_outside(broker):
    theirs: Any = Middleware()
    theirs.message_options = ("tenant",)
    broker.add_middleware(theirs)

    actor_of(broker).send_with_options(args=(1,), tenant="a")


def test_a_setting_names_options_that_only_actors_look_at():
    broker = made(message_options="tenant, trace_id")

    actor_of(broker).send_with_options(args=(1,), tenant="a", trace_id="b")
    assert refusal_of_other(broker).option == "span_id"
    broker.close()


def refusal_of_other(broker):
    with pytest.raises(OptionError) as caught:
        broker.enqueue(broker.get_actor("charge").message_with_options(args=(1,), span_id="c"))
    return caught.value


class Traces(Middleware):
    """As tracing libraries do: declares nothing, and puts its own on every message."""

    def before_enqueue(self, broker, message, delay):
        message.options["trace_ctx"] = {"id": 1}


def test_what_a_middleware_puts_on_a_message_may_be_sent_again(broker):
    broker.add_middleware(Traces())
    charge = actor_of(broker)

    message = charge.send(1)

    assert message.options["trace_ctx"] == {"id": 1}
    broker.enqueue(message)
    charge.send_with_options(args=(1,), **message.options)
    with pytest.raises(OptionError):
        charge.send_with_options(args=(1,), trace_cxt=1)


def test_messages_inside_a_message_are_checked_too(broker):
    charge = actor_of(broker)
    wrong = charge.message_with_options(args=(2,), priorty=1)

    for send in (
        dramatiq.pipeline([charge.message(1), charge.message(3), wrong], broker=broker).run,
        switchyard.pipeline([charge.message(1), wrong], broker=broker).run,
        lambda: charge.send_with_options(args=(1,), group_completion_callbacks=[wrong.asdict()]),
    ):
        with pytest.raises(OptionError, match="'priorty'"):
            send()

    assert broker.queues["default"].empty()


def test_a_tick_keeps_what_its_schedule_was_made_with_and_teaches_nothing(broker):
    options = MessageOptions(broker)
    charge = actor_of(broker)
    tick = charge.message_with_options(args=(1,), schedule="hourly", old_word=1)

    options.check(tick)
    options.learn(tick)

    with pytest.raises(OptionError):
        options.check(charge.message_with_options(args=(1,), old_word=1))


def uses(folder):
    """The options that the code in a folder reads or writes, each with a file that does."""
    return {
        name: str(path)
        for path in Path(folder).rglob("*.py")
        for match in USE.findall(path.read_text())
        if (name := match[0] or match[1])
    }


def test_every_option_that_dramatiq_and_periodiq_use_is_known():
    found = uses(Path(dramatiq.__file__).parent) | uses(Path(periodiq.__file__).parent)
    # Of actors alone, and of the classes of generic actors.
    others = {"retry_when", "periodic", "abstract", "actor"}

    assert {"pipe_target", "broker_priority", "scheduled_at", "redis_message_id", "eta", "traceback"} <= found.keys()
    assert found.keys() - OF_DRAMATIQ - NOTES - others == set()


def test_every_option_that_we_use_is_known(broker):
    found = {}
    for folder in ("brokers", "control", "keeper", "middleware", "runtime"):
        found |= uses(ROOT / folder)

    assert {"idempotency_key", "followed", "refused", "replayed", "fair_weight", "tick_at"} <= found.keys()
    # Of actors alone. What a keeper's messages have is not checked at all.
    MessageOptions(broker).check_names("any", found.keys() - {"secret", "schedule"})
