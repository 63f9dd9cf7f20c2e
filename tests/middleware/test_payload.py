"""Which arguments fit which annotations."""

from __future__ import annotations

from functools import wraps
from typing import Any, Literal, NotRequired
from uuid import UUID

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from typing_extensions import TypedDict

from errors import PayloadError
from middleware.payload import CheckedPayload


class Line(TypedDict):
    """What an order may consist of."""

    sku: str
    count: NotRequired[int]


def send(annotation: Any, value: Any) -> None:
    """Send a value to an actor whose one parameter has the annotation."""
    broker = StubBroker(middleware=[CheckedPayload()])

    def body(value):
        """Do nothing."""

    body.__annotations__["value"] = annotation
    dramatiq.actor(broker=broker, actor_name="body")(body).send(value)


FITS = [
    (int, 1), (int, -(2**70)), (float, 1.5), (float, 1), (str, ""), (bool, False), (None, None), (list, [1, "a"]), (dict, {"a": 1}),
    (list[int], []), (list[int], [1, 2]), (dict[str, int], {"a": 1}), (dict[str, Any], {"a": [1, "b"]}), (int | None, None),
    (str | None, "x"), (int | str, "x"), (Literal["a", "b"], "b"), (Line, {"sku": "x"}), (list[Line], [{"sku": "x", "count": 2}]),
    (Any, 3), ("SomethingUnknown", 3), (UUID, "not checked: no JSON type"), (list[UUID], ["not checked"]),
]  # fmt: skip

MISFITS = [
    (int, "1"), (int, 1.0), (int, True), (float, "1.5"), (str, 1), (str, b"x"), (bool, 1), (list, "abc"), (list, (1, 2)), (dict, []),
    (list[int], [1, "2"]), (dict[str, int], {"a": "1"}), (int | None, "x"), (Literal["a", "b"], "c"), (Line, {"count": 1}),
    (Line, {"sku": "x", "count": "2"}), (list[Line], [{"sku": 1}]),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value"), FITS, ids=str)
def test_what_fits_is_sent(annotation, value):
    send(annotation, value)


@pytest.mark.parametrize(("annotation", "value"), MISFITS, ids=str)
def test_what_does_not_fit_is_refused(annotation, value):
    with pytest.raises(PayloadError, match=r"actor 'body', field 'value"):
        send(annotation, value)


@pytest.mark.parametrize(
    ("annotation", "value", "reason"),
    [
        (str | list[str], 1, "field 'value': input should be a valid string or input should be a valid list"),
        (str | list[str] | None, ["a", 1], r"field 'value\.1': input should be a valid string"),
        (list[Line] | None, [{"sku": "x", "count": "2"}], r"field 'value\.0\.count': input should be a valid integer"),
    ],
    ids=["neither", "within-one", "typed-dict"],
)
def test_of_a_union_the_field_is_named_and_not_the_branch(annotation, value, reason):
    with pytest.raises(PayloadError, match=f"{reason}$"):
        send(annotation, value)


def body_of(parameters: str) -> Any:
    """A function with these parameters."""
    namespace: dict[str, Any] = {}
    exec(f"def body({parameters}): pass", namespace)
    return namespace["body"]


@pytest.mark.parametrize(
    ("parameters", "args", "kwargs", "field"),
    [
        ("a", (), {}, "a"),
        ("a, b", (1,), {}, "b"),
        ("a, *, b", (1,), {}, "b"),
        ("a", (1, 2), {}, "args[1]"),
        ("a", (1,), {"b": 2}, "b"),
        ("a", (1,), {"a": 2}, "a"),
        ("*, a", (1,), {}, "args[0]"),
        ("a, /", (), {"a": 1}, "a"),
    ],
)
def test_the_field_that_makes_arguments_not_fit_is_named(parameters, args, kwargs, field):
    broker = StubBroker(middleware=[CheckedPayload()])
    actor = dramatiq.actor(broker=broker, actor_name="body")(body_of(parameters))

    with pytest.raises(PayloadError) as caught:
        actor.send(*args, **kwargs)

    assert (caught.value.actor, caught.value.field) == ("body", field)


@pytest.mark.parametrize(("parameters", "args", "kwargs"), [("*a", (1, 2), {}), ("**k", (), {"x": 1}), ("a=1, *, b=2", (), {})])
def test_open_signatures_take_what_they_say(parameters, args, kwargs):
    broker = StubBroker(middleware=[CheckedPayload()])

    dramatiq.actor(broker=broker, actor_name="body")(body_of(parameters)).send(*args, **kwargs)


def test_a_decorated_body_is_checked_by_the_signature_it_wraps():
    def logged(fn):
        @wraps(fn)
        def inner(*args, **kwargs):
            return fn(*args, **kwargs)

        return inner

    broker = StubBroker(middleware=[CheckedPayload()])
    actor = dramatiq.actor(broker=broker, actor_name="body")(logged(body_of("a: int")))

    with pytest.raises(PayloadError):
        actor.send("x")
