"""What workers declare: of several fleets one counts, what nobody declares any more retires, and what somebody created stays."""

from __future__ import annotations

from datetime import UTC, timedelta
from time import monotonic
from types import SimpleNamespace

import pytest

import switchyard
from control.schedules import cron
from keeper import schedule as duty
from keeper.duty import Keeping
from ledger import schedules
from tests.keeper.conftest import Broker, Node
from tests.keeper.scheduling import stored

LEASE = 30.0


def definition(expression="0 8 * * *", **fields):
    timing = cron(expression, **fields)
    actor = SimpleNamespace(options={"periodic": timing})
    return duty.definitions_of({"work": actor})


def say(ledger, now, *, entering=False, settled=False, **fields):
    """One fleet's process declares, and has the schedules follow."""
    schedules.declare(ledger, definition(**fields), LEASE, entering=entering, now=now)
    return duty.settle(ledger, settled=settled, now=now)


@pytest.fixture
def now(ledger):
    return ledger.execute("SELECT clock_timestamp()").fetchone()[0]


def timing_in(ledger):
    return ledger.execute("SELECT expression, timezone, retired_at IS NULL FROM switchyard.schedule").fetchone()


def test_a_worker_declares_its_schedules_at_its_start(system, keeper):
    keeping = Keeping(Node(system.settings, system.database), system.broker)

    duty.declare(keeper, keeping)
    again = duty.declare(keeper, keeping)

    found = stored("digest")
    assert (found.source, found.actor, found.expression, found.timezone) == ("declared", "digest", "0 8 * * *", "Europe/Berlin")
    assert (found.args, found.catch_up, found.jitter, found.version) == (("morning",), "last", 60, 1)
    assert found.next_tick_at > found.created_at
    assert found.next_tick_at <= found.due_at < found.next_tick_at + timedelta(seconds=60)
    assert [schedule.name for schedule in switchyard.schedules()] == ["digest"]
    assert again is None


def test_of_two_fleets_the_one_that_entered_last_counts_and_they_do_not_take_turns(ledger, now):
    assert say(ledger, now, entering=True) == (["work"], [])
    second = timedelta(seconds=1)
    assert say(ledger, now + second, entering=True, expression="0 9 * * *") == (["work"], [])

    # Both go on saying what they say, in any order; an old process that comes to join the old fleet changes nothing either.
    for n in range(2, 20):
        old = n % 2 == 0
        told = say(ledger, now + 5 * n * second, settled=True, entering=n == 8, expression="0 8 * * *" if old else "0 9 * * *")
        assert told == ([], [])

    assert timing_in(ledger)[0] == "0 9 * * *"


def test_a_new_version_that_is_taken_back_makes_the_old_one_count_again(ledger, now):
    say(ledger, now, entering=True)
    say(ledger, now + timedelta(seconds=1), entering=True, expression="0 9 * * *")
    later = now + timedelta(seconds=2 * LEASE)

    # Whoever has only just reconnected does not decide that nobody declares the new one any more.
    assert say(ledger, later) == ([], [])
    assert timing_in(ledger)[0] == "0 9 * * *"
    assert say(ledger, later, settled=True) == (["work"], [])
    assert timing_in(ledger)[0] == "0 8 * * *"


def test_other_times_begin_from_now_and_other_arguments_leave_the_times_as_they_are(ledger, now):
    say(ledger, now, entering=True)
    overdue = now - timedelta(hours=2)
    ledger.execute("UPDATE switchyard.schedule SET next_tick_at = %s, due_at = %s", [overdue, overdue])

    say(ledger, now, entering=True, args=[5])
    kept = ledger.execute("SELECT next_tick_at, version FROM switchyard.schedule").fetchone()
    say(ledger, now + timedelta(seconds=1), entering=True, timezone="Asia/Tokyo")
    begun = ledger.execute("SELECT next_tick_at, version FROM switchyard.schedule").fetchone()

    assert kept == (overdue, 2)
    assert begun[0] > now
    assert begun[0].astimezone(UTC).hour == 23
    assert begun[1] == 3


def test_what_nobody_declares_any_more_retires_and_goes_on_where_it_was_when_it_is_declared_again(ledger, now):
    say(ledger, now, entering=True)
    next_tick = ledger.execute("SELECT next_tick_at FROM switchyard.schedule").fetchone()[0]

    assert schedules.retire(ledger, now + timedelta(seconds=LEASE - 1)) == []
    assert schedules.retire(ledger, now + timedelta(seconds=LEASE + 1)) == ["work"]
    assert timing_in(ledger)[2] is False
    assert schedules.until_next_tick(ledger, ["work"]) is None

    # The fleet was away for days: what it missed is its catch-up policy's.
    assert say(ledger, now + timedelta(days=3), entering=True) == (["work"], [])
    assert ledger.execute("SELECT next_tick_at, due_at, retired_at FROM switchyard.schedule").fetchone() == (
        next_tick,
        next_tick,
        None,
    )


def test_a_pause_outlives_restarts_and_deployments(ledger, now):
    say(ledger, now, entering=True)
    schedules.pause(ledger, "work")

    say(ledger, now + timedelta(seconds=1), entering=True, expression="0 9 * * *")
    schedules.retire(ledger, now + timedelta(days=1))
    say(ledger, now + timedelta(days=1), entering=True, expression="0 9 * * *")

    assert ledger.execute("SELECT expression, due_at, paused_at IS NULL FROM switchyard.schedule").fetchone() == (
        "0 9 * * *",
        None,
        False,
    )


def test_a_schedule_that_somebody_created_is_not_taken_over_by_an_actor_of_its_name(system, keeper, caplog):
    switchyard.create_schedule("digest", "work", "0 1 * * *")
    keeping = Keeping(Node(system.settings, system.database), system.broker)

    for _ in range(3):
        duty.declare(keeper, keeping)

    assert (stored("digest").source, stored("digest").expression) == ("created", "0 1 * * *")
    assert keeping.memory["schedules"]["clashes"] == ["digest"]


def test_a_process_that_has_been_in_touch_for_a_lease_retires_what_nobody_declares(system, keeper):
    keeping = Keeping(Node(system.settings, system.database), Broker(actors=()))
    keeper.execute(
        "INSERT INTO switchyard.schedule (name, actor, payload, expression, timezone, catch_up, window_seconds, jitter_seconds, source)"
        " VALUES ('old', 'old', '{}', '@daily', 'UTC', 'skip', 0, 0, 'declared')"
    )

    duty.declare(keeper, keeping)
    assert keeper.execute("SELECT retired_at FROM switchyard.schedule").fetchone() == (None,)
    keeping.memory["schedules"] |= {"since": monotonic() - 2 * system.settings.lease, "slowly_at": 0.0}
    duty.declare(keeper, keeping)

    assert keeper.execute("SELECT retired_at IS NULL, due_at FROM switchyard.schedule").fetchone() == (False, None)


def test_what_is_old_is_forgotten(ledger, now):
    long_ago = now - timedelta(days=40)
    schedules.take_tick(ledger, "s", long_ago)
    schedules.take_tick(ledger, "s", now - timedelta(days=1))
    say(ledger, now, entering=True)
    ledger.execute("UPDATE switchyard.schedule SET retired_at = %s, due_at = NULL", [long_ago])
    ledger.execute("UPDATE switchyard.schedule_declaration SET until = %s", [long_ago])

    schedules.forget(ledger)

    left = [schedules.ticks(ledger, "s", 5), schedules.schedules(ledger)]
    declarations = ledger.execute("SELECT count(*) FROM switchyard.schedule_declaration").fetchone()
    assert [len(found) for found in left] == [1, 0]
    assert declarations == (0,)
