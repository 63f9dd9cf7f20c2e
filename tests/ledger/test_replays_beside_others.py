"""A replay holds what its job relies on; whoever ends or removes some of that at the same moment meets it without a deadlock."""

from __future__ import annotations

import pytest

from ledger import batches, control, dead, write
from ledger.states import State
from tests.ledger.blocking import Meanwhile
from tests.ledger.factory import add, claim, completed, fetch, name_of, released
from tests.ledger.workflow_rows import add_batch, add_members, add_step, end
from tests.rig.waiting import wait_until


def cancelled_step(ledger, upstream):
    step = add_step(ledger, upstream)
    assert control.cancel(ledger, name_of(ledger, step)) is State.CANCELLED
    return step


@pytest.fixture
def replayed_before(monkeypatch, connect):
    """Has a job replayed, on a connection of its own, just before a step of another transaction: until that is done, or waits."""
    replaying, onlooker = connect(), connect()

    def waits():
        blockers = onlooker.execute("SELECT pg_blocking_pids(%s)", [replaying.info.backend_pid]).fetchone()
        return bool(blockers[0])

    def arrange(step, name):
        real, begun = getattr(batches, step), []

        def before(*arguments, **options):
            if not begun:
                begun.append(Meanwhile(lambda: dead.replay(replaying, name)))
                wait_until(lambda: begun[0].done or waits(), 30, "the replay is done, or waits")
            return real(*arguments, **options)

        monkeypatch.setattr(batches, step, before)
        return lambda: begun[0].result()

    return arrange


def test_a_step_is_replayed_while_the_job_that_it_waits_for_ends(ledger, replayed_before):
    first, other = add(ledger), add(ledger)
    step = cancelled_step(ledger, first)
    ending, release = completed(first, claim(ledger, first), "7"), released(other, claim(ledger, other))
    ending.upstream, ending.handed = name_of(ledger, first), "7"
    replay = replayed_before("follow", name_of(ledger, step))

    # Ends of two kinds: their rows are locked before they are written.
    assert write.finish(ledger, [ending, release]) == {first, other}

    assert replay() is True
    assert (fetch(ledger, step, "state"), fetch(ledger, step, "payload")["args"]) == ("pending", [7])


def test_a_step_is_replayed_while_what_it_waits_for_from_afar_is_discarded(ledger, replayed_before):
    batch = add_batch(ledger, total=1, on_complete=None, on_death=None, on_success=None)
    (lost,) = add_members(ledger, batch)
    end(ledger, lost, state=State.DEAD)
    between = add_step(ledger, batch)
    step = cancelled_step(ledger, between)
    replay = replayed_before("cancel_followers", name_of(ledger, step))

    assert dead.discard(ledger, name_of(ledger, lost)) is not None

    assert replay() is False
    assert [fetch(ledger, id_, "state") for id_ in (between, step)] == ["cancelled", "cancelled"]
