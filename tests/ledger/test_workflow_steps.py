"""Steps in the ledger: what one gets and when, what becomes of it when one before it is dead or cancelled, and two who do this at once."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest

from ledger import batches, control, write
from ledger.records import Finish
from ledger.states import State
from tests.ledger.factory import add, claim, completed, failed, fetch, row
from tests.ledger.workflow_rows import add_batch, add_step, end, replay


@pytest.mark.parametrize(
    ("payload", "result", "fed"),
    [
        ('{"args":[],"kwargs":{}}', "3", '{"args":[3],"kwargs":{}}'),
        ('{"args": [1, "]"] , "kwargs": {"b": 1.10}}', '{"z":1,"a":2}', '{"args":[1, "]",{"z":1,"a":2}],"kwargs":{"b": 1.10}}'),
        ('{"args":[[]],"kwargs":{}}', "null", '{"args":[[],null],"kwargs":{}}'),
        ('{"args":[12345678901234567890.10],"kwargs":{}}', '"\\u00fc"', '{"args":[12345678901234567890.10,"\\u00fc"],"kwargs":{}}'),
    ],
)  # fmt: skip
def test_a_step_gets_the_result_as_the_text_that_it_is(ledger, payload, result, fed):
    first = add(ledger)
    step = add_step(ledger, first, payload=payload)
    ignoring = add_step(ledger, first, payload=payload, piped=False)

    end(ledger, first, result=result)

    texts = dict(ledger.execute("SELECT id, payload::text FROM switchyard.job").fetchall())
    assert (texts[step], texts[ignoring]) == (fed, payload)


def test_a_step_that_waits_is_unreachable_until_it_is_fed_and_then_due(ledger):
    first = add(ledger)
    step, late = add_step(ledger, first, max_age=60_000.0), add_step(ledger, first, options={"delay": 90_000})
    waiting = ledger.execute(
        "SELECT state, wait_reason, run_at = 'infinity', next_publish_at, expires_at FROM switchyard.job WHERE id <> %s", [first]
    ).fetchall()
    assert waiting == [("scheduled", "upstream", True, None, None)] * 2

    end(ledger, first)

    fed, scheduled = row(ledger, step), row(ledger, late)
    assert (fed["state"], fed["wait_reason"], fed["wait_since"], fed["upstream_id"]) == ("pending", None, None, None)
    assert abs(fed["next_publish_at"] - fed["run_at"]) < timedelta(milliseconds=5)
    assert abs(fed["expires_at"] - fed["run_at"] - timedelta(minutes=1)) < timedelta(milliseconds=5)
    assert scheduled["state"] == "scheduled"
    assert scheduled["run_at"] - fed["run_at"] > timedelta(seconds=89)


def test_an_end_that_is_refused_feeds_nothing(ledger):
    first = add(ledger)
    step = add_step(ledger, first)
    claim(ledger, first)
    ending = completed(first, str(uuid4()))
    ending.upstream = str(fetch(ledger, first, "message_id"))

    assert write.finish(ledger, [ending]) == set()

    assert fetch(ledger, step, "wait_reason") == "upstream"


def test_an_end_whose_step_cannot_be_fed_is_no_end(ledger):
    first = add(ledger)
    step, by = add_step(ledger, first), claim(ledger, first)
    ending = completed(first, by, "1")
    ending.upstream, ending.handed = str(fetch(ledger, first, "message_id")), "no JSON"

    with pytest.raises(psycopg.DataError):
        write.finish(ledger, [ending])

    assert (fetch(ledger, first, "state"), fetch(ledger, step, "wait_reason")) == ("running", "upstream")


def test_arguments_that_became_too_long_are_a_dead_step(ledger, monkeypatch):
    monkeypatch.setattr(batches, "MAX_FED_BYTES", 50)
    first = add(ledger)
    step = add_step(ledger, first)

    end(ledger, first, result=json.dumps("x" * 60))

    dead = row(ledger, step)
    assert (dead["state"], dead["dead_reason"], dead["error_type"]) == ("dead", "permanent", "PayloadError")
    assert "more than 50 bytes" in dead["error"]


def test_a_step_that_dies_leaves_the_rest_waiting_until_its_replay_completes(ledger):
    first = add(ledger)
    second = add_step(ledger, first)
    third = add_step(ledger, second)
    end(ledger, first)
    end(ledger, second, state=State.DEAD)
    assert fetch(ledger, third, "wait_reason") == "upstream"

    replay(ledger, second)
    end(ledger, second)

    assert fetch(ledger, third, "state") == "pending"


def test_a_cancelled_step_takes_along_what_waits_for_it_near_and_far(ledger):
    first = add(ledger)
    group = add_batch(ledger, total=1, waits_for=str(fetch(ledger, first, "message_id")), followed=True)
    inside = add_step(ledger, first, batch=group)
    behind = add_step(ledger, group)
    far = add_step(ledger, behind)

    end(ledger, first, state=State.CANCELLED)

    assert [fetch(ledger, id_, "state") for id_ in (inside, behind, far)] == ["cancelled"] * 3
    replay(ledger, far)
    assert (fetch(ledger, far, "state"), fetch(ledger, far, "wait_reason")) == ("scheduled", "upstream")


def test_a_step_that_is_skipped_takes_along_what_waits_for_it_although_nobody_noted_that_something_does(ledger):
    first, other = add(ledger), add(ledger)
    step, by = add_step(ledger, first), claim(ledger, first, other)
    skipped = failed(first, by, state=State.CANCELLED, outcome="cancelled", error_type="SkipMessage")

    assert write.finish(ledger, [skipped, failed(other, by)]) == {first, other}

    assert [fetch(ledger, id_, "state") for id_ in (first, step, other)] == ["cancelled", "cancelled", "retrying"]


def test_a_step_fed_while_it_is_cancelled_has_its_result_when_it_is_replayed(ledger):
    first = add(ledger)
    step = add_step(ledger, first)
    assert control.cancel(ledger, str(fetch(ledger, step, "message_id")))

    end(ledger, first, result="5")
    assert fetch(ledger, step, "state") == "cancelled"
    replay(ledger, step)

    assert (fetch(ledger, step, "state"), fetch(ledger, step, "payload")["args"]) == ("pending", [5])


# Two at once.


def handing(connection, id_: int, by: str) -> Finish:
    ending = completed(id_, by, "1")
    ending.upstream, ending.handed = str(fetch(connection, id_, "message_id")), "1"
    return ending


def test_a_step_cancelled_while_it_is_fed_is_not_cancelled_away(two):
    first = add(two.first)
    step, by = add_step(two.first, first), claim(two.first, first)
    name = str(fetch(two.first, step, "message_id"))
    ending = handing(two.first, first, by)

    done = two.waits_for(lambda: write.finish(two.first, [ending]), lambda: control.cancel(two.second, name))

    assert done == ({first}, State.CANCELLED)
    assert (fetch(two.first, step, "state"), fetch(two.first, step, "upstream_id")) == ("cancelled", None)


def test_a_step_fed_while_it_is_cancelled_keeps_its_result(two):
    first = add(two.first)
    step, by = add_step(two.first, first), claim(two.first, first)
    name = str(fetch(two.first, step, "message_id"))
    ending = handing(two.first, first, by)

    done = two.waits_for(lambda: control.cancel(two.first, name), lambda: write.finish(two.second, [ending]))

    assert done == (State.CANCELLED, {first})
    assert (fetch(two.first, step, "state"), fetch(two.first, step, "payload")["args"]) == ("cancelled", [1])


def test_a_step_replayed_while_what_it_waits_for_ends_runs_with_its_result(two):
    first = add(two.first)
    step, by = add_step(two.first, first), claim(two.first, first)
    name = str(fetch(two.first, step, "message_id"))
    assert control.cancel(two.first, name)
    ending = handing(two.first, first, by)

    two.waits_for(lambda: write.replay(two.first, name), lambda: write.finish(two.second, [ending]))

    assert (fetch(two.first, step, "state"), fetch(two.first, step, "payload")["args"]) == ("pending", [1])
