"""Fingerprints: equal for what is the same JSON, different for what is not, and recognised while keys are introduced and rotated."""

from __future__ import annotations

import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import SettingsError
from runtime.fingerprint import canonical, fingerprint_keys, fingerprints
from settings import load

KEYS = (b"key",)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé\n'\"", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1", max_size=2), inner, max_size=3),
    max_leaves=8,
)


def fingerprint(payload="[]", actor="work", **options):
    return fingerprints(KEYS, actor, payload, options)[0]


def new_key(byte: bytes) -> str:
    return base64.urlsafe_b64encode(byte * 32).decode()


def shuffled(value):
    """The same JSON, its keys the other way round."""
    if isinstance(value, dict):
        return {key: shuffled(item) for key, item in reversed(value.items())}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(VALUES)
def test_the_order_of_keys_makes_no_difference(value):
    assert canonical(value) == canonical(shuffled(value)) == canonical(json.loads(json.dumps(value)))


@given(VALUES, VALUES)
def test_different_json_has_different_fingerprints(one, other):
    first, second = json.dumps(one), json.dumps(other)

    assert (fingerprint(first) == fingerprint(second)) == (canonical(one) == canonical(other))


@pytest.mark.parametrize(
    ("one", "other"), [("1", "1.0"), ("0.1", "0.1000000001"), ("[1,23]", "[12,3]"), ('{"a":null}', "{}"), ("true", "1")]
)
def test_these_are_not_the_same(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_what_follows_from_a_job_counts_and_its_time_and_tries_do_not():
    plain = fingerprint()

    for options in (
        {"delay": 5},
        {"eta": 1},
        {"scheduled_at": "x"},
        {"max_retries": 3},
        {"priority": 1},
        {"idempotency_key": "k"},
    ):
        assert fingerprint(**options) == plain
    for name in ("on_success", "on_failure", "on_retry_exhausted", "pipe_ignore"):
        assert fingerprint(**{name: "a"}) != plain
    assert fingerprint(actor="other") != plain


def test_a_pipelines_next_step_counts_without_its_id():
    def step(message_id="1", actor="next", args=(), **options):
        return {
            "actor_name": actor, "args": list(args), "kwargs": {}, "options": options, "message_id": message_id, "message_timestamp": 1,
        }  # fmt: skip

    one = fingerprint(pipe_target=step(pipe_target=step("2")))

    assert one == fingerprint(pipe_target=step("3", pipe_target=step("4")))
    assert one != fingerprint(pipe_target=step(args=[1], pipe_target=step("2")))
    assert one != fingerprint(pipe_target=step(pipe_target=step("2", actor="last")))


def test_keys_can_be_introduced_and_rotated():
    old, new = new_key(b"a"), new_key(b"b")
    stages = [
        {},
        {"secret_keys": old},
        {"secret_keys": f"{new},{old}"},
        {"secret_keys": new, "fingerprint_key": "0123456789abcdef"},
    ]
    made = [fingerprints(fingerprint_keys(load(**stage)), "work", "[]", {}) for stage in stages]

    assert len({prints[0] for prints in made}) == 4
    for before, after in pairwise(made):
        assert before[0] in after


@pytest.mark.parametrize("value", ["short", "x" * 44, base64.b64encode(b"a" * 16).decode(), new_key(b"a") + ",no"])
def test_what_is_no_secret_key_stops_the_start_and_is_not_quoted(value):
    with pytest.raises(SettingsError, match="SECRET_KEYS: write keys as `switchyard secrets new-key` prints them") as refused:
        load(secret_keys=value)

    assert value not in str(refused.value)


def test_a_short_fingerprint_key_stops_the_start_and_is_not_quoted():
    with pytest.raises(SettingsError, match="FINGERPRINT_KEY") as refused:
        load(fingerprint_key="hunter2")

    assert "hunter2" not in str(refused.value)
