"""What a job remembers: written by its holder alone, once per name, and kept by replays."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ledger import steps, write
from ledger.states import State
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import add, age_lease, claim, failed, fetch


def test_a_step_is_remembered_as_the_text_that_it_is(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_)

    assert steps.remember(ledger, id_, by, "charge", '{"z":1.10,"a":[]}') == '{"z":1.10,"a":[]}'
    assert steps.remember(ledger, id_, by, "mail", "null") == "null"

    assert steps.remembered(ledger, id_) == {"charge": '{"z":1.10,"a":[]}', "mail": "null"}


def test_of_two_results_of_one_step_the_first_counts(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_)
    steps.remember(ledger, id_, by, "charge", "1")

    assert steps.remember(ledger, id_, by, "charge", "2") == "1"


def test_attempts_and_replays_find_what_was_remembered_with_the_execution_that_did_it(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_)
    steps.remember(ledger, id_, by, "charge", "1")
    write.finish(ledger, [failed(id_, by, state=State.DEAD)])
    write.replay(ledger, str(fetch(ledger, id_, "message_id")))
    by = claim(ledger, id_)

    assert steps.remembered(ledger, id_) == {"charge": "1"}
    assert steps.remember(ledger, id_, by, "mail", "2") == "2"
    rows = ledger.execute(
        "SELECT name, generation, attempt FROM switchyard.job_step WHERE job_id = %s ORDER BY 1", [id_]
    ).fetchall()
    assert rows == [("charge", 1, 1), ("mail", 2, 1)]


@pytest.mark.parametrize("lost", ["another's token", "ended", "rescued"])
def test_who_does_not_hold_the_job_remembers_nothing(ledger, lost):
    id_ = add(ledger)
    by = claim(ledger, id_)
    if lost == "another's token":
        by = str(uuid4())
    elif lost == "ended":
        write.finish(ledger, [failed(id_, by)])
    else:
        age_lease(ledger, id_)
        assert write.rescue_worker(ledger, "w1", alive=False, max_lost=3)

    assert steps.remember(ledger, id_, by, "charge", "1") is None

    assert steps.remembered(ledger, id_) == {}


def test_a_step_waits_for_a_rescue_that_is_under_way_and_is_then_refused(ledger, connect):
    second, onlooker = connect(), connect()
    id_ = add(ledger)
    by = claim(ledger, id_)
    age_lease(ledger, id_)

    with ledger.transaction():
        assert write.rescue_worker(ledger, "w1", alive=False, max_lost=3)
        late = Meanwhile(lambda: steps.remember(second, id_, by, "charge", "1"))
        wait_for_lock(onlooker, second.info.backend_pid)

    assert late.result() is None
    assert steps.remembered(ledger, id_) == {}


def test_heartbeats_and_steps_do_not_wait_for_each_other_for_long(ledger, connect):
    second = connect()
    id_ = add(ledger)
    by = claim(ledger, id_)

    with ledger.transaction():
        assert steps.remember(ledger, id_, by, "charge", "1") == "1"
        assert write.extend_leases(second, [(id_, by, 1.0)], 30.0) == {id_}


def test_what_a_job_remembers_goes_with_it(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_)
    steps.remember(ledger, id_, by, "charge", "1")
    write.finish(ledger, [failed(id_, by, state=State.DEAD)])

    ledger.execute("DELETE FROM switchyard.job WHERE id = %s", [id_])

    assert steps.remembered(ledger, id_) == {}
