"""The option ``secret``: refused when it names no argument; sealing finds the arguments however they are given."""

from __future__ import annotations

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from control.schedules import cron
from errors import OptionError, PayloadError
from ledger.sealed import MASK, is_sealed
from middleware import stub_stack
from middleware.secrets import Secrets
from runtime.secrets import new_key
from settings import load


@pytest.fixture
def broker():
    made = StubBroker(middleware=stub_stack(load(secret_keys=new_key())))
    yield made
    made.close()


def middleware(broker) -> Secrets:
    (found,) = [one for one in broker.middleware if isinstance(one, Secrets)]
    return found


def declared(broker, fn, **options):
    return dramatiq.actor(broker=broker, **options)(fn)


def pay(user, card, pin=None, *, note="", **more):
    """Takes arguments of every kind."""
    return [user, card, pin, note, more]


@pytest.mark.parametrize("value", ["card", True, (), [], ("card", "cvv"), (5,)])
def test_what_names_no_argument_is_refused_when_the_actor_is_declared(broker, value):
    with pytest.raises(OptionError, match="actor 'pay', option 'secret'"):
        declared(broker, pay, secret=value)


@pytest.mark.parametrize("option", ["rate_limit_key", "concurrency_key", "fair_key"])
def test_a_secret_argument_is_no_key_of_a_limit(broker, option):
    limits = {"rate_limit": "5/second", "concurrency": 1}

    with pytest.raises(OptionError, match=rf"actor 'pay', option '{option}': 'card' is secret"):
        declared(broker, pay, secret=("card",), **limits, **{option: "card"})

    declared(broker, pay, secret=("card",), **limits, **{option: "user"})


@pytest.mark.parametrize(
    ("names", "args", "kwargs", "sealed"),
    [
        (("card",), ("ada", "4111"), {}, [1]),
        (("card",), ("ada",), {"card": "4111"}, ["card"]),
        (("card", "pin"), ("ada", "4111", 42), {"note": "x"}, [1, 2]),
        (("note",), ("ada", "4111"), {"note": "x", "other": 1}, ["note"]),
        (("more",), ("ada", "4111"), {"note": "x", "other": 1, "another": 2}, ["other", "another"]),
        (("card",), ("ada", None), {}, [1]),
    ],
)
def test_the_named_arguments_are_sealed_however_they_are_given(broker, names, args, kwargs, sealed):
    actor = declared(broker, pay, secret=names)
    message = actor.message_with_options(args=args, kwargs=kwargs)

    stored = middleware(broker).sealed(message)

    places = [place for place, value in enumerate(stored.args) if is_sealed(value)]
    places += [name for name, value in stored.kwargs.items() if is_sealed(value)]
    assert places == sealed
    assert middleware(broker).opened(stored) == message
    assert middleware(broker).sealed(stored) == stored
    assert (stored.message_id, stored.options) == (message.message_id, message.options)


@pytest.mark.parametrize("timing", [{"args": ["ada", "4111"]}, {"kwargs": {"user": "ada", "card": "4111"}}])
def test_a_secret_cannot_stand_in_a_schedule(broker, timing):
    with pytest.raises(OptionError, match=r"actor 'pay', option 'secret': 'card' cannot stand in a schedule"):
        declared(broker, pay, secret=("card",), periodic=cron("0 8 * * *", **timing))


def test_the_body_gets_what_was_sent(broker):
    actor = declared(broker, pay, secret=("card", "more"))
    stored = middleware(broker).sealed(actor.message("ada", "4111", extra=7))

    assert actor(*stored.args, **stored.kwargs) == ["ada", "4111", None, "", {"extra": 7}]
    assert actor("ada", "4111") == ["ada", "4111", None, "", {}]


def test_the_steps_of_a_pipeline_are_sealed_where_they_are_secret(broker):
    actor = declared(broker, pay, secret=("card",))
    plain = declared(broker, lambda x: x, actor_name="plain")
    last = actor.message("ada", "4111")
    middle = plain.message("x").copy(options={"pipe_target": last.asdict()})
    first = plain.message("y").copy(options={"pipe_target": middle.asdict()})

    stored = middleware(broker).sealed(first)

    assert "4111" not in str(stored)
    assert is_sealed(stored.options["pipe_target"]["options"]["pipe_target"]["args"][1])
    untouched = plain.message("y").copy(options={"pipe_target": plain.message("z").asdict()})
    assert middleware(broker).sealed(untouched) is untouched


def test_a_plain_message_is_left_as_it_is(broker):
    message = declared(broker, pay).message("ada", "4111")

    assert middleware(broker).sealed(message) is message
    assert middleware(broker).opened(message) is message


def test_without_a_key_a_send_is_refused_by_the_settings_name():
    broker = StubBroker(middleware=stub_stack(load()))
    actor = declared(broker, pay, secret=("card",))

    with pytest.raises(OptionError, match=r"actor 'pay', option 'secret': .*SECRET_KEYS.*new-key"):
        middleware(broker).sealed(actor.message("ada", "4111"))
    broker.close()


def test_a_mask_and_a_foreign_sealed_value_are_refused(broker):
    actor = declared(broker, pay, secret=("card",))
    stored = middleware(broker).sealed(actor.message("ada", "4111"))

    with pytest.raises(PayloadError, match="field 'card': is only the mask"):
        middleware(broker).opened(actor.message("ada", MASK))
    other = Secrets(load(secret_keys=new_key()))
    other.before_declare_actor(broker, actor)
    with pytest.raises(PayloadError, match="field 'card': is a secret that cannot be read"):
        other.opened(stored)
