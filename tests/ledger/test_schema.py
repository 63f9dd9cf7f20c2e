"""What the database itself refuses, whoever writes: illegal steps, illegal starts, and rows that contradict themselves."""

from __future__ import annotations

from itertools import product

import psycopg
import pytest

from ledger.states import LEGAL, TERMINAL, WAITING, State, is_legal
from tests.ledger.factory import add, add_in, claim, row

_UNCLAIMED = "token = NULL, lease_until = NULL"
_WAITING = f"{_UNCLAIMED}, finished_at = NULL, dead_reason = NULL, result = NULL, next_publish_at = now()"
_ENDED = f"{_UNCLAIMED}, finished_at = now(), next_publish_at = NULL"
#: Per state, the columns that the CHECK constraints ask for, so that the trigger alone decides about a step.
FITTING = {
    State.SCHEDULED: _WAITING,
    State.PENDING: _WAITING,
    State.RETRYING: _WAITING,
    State.RUNNING: (
        "token = gen_random_uuid(), lease_until = now(), finished_at = NULL, dead_reason = NULL, next_publish_at = NULL"
    ),
    State.COMPLETED: f"{_ENDED}, dead_reason = NULL",
    State.DEAD: f"{_ENDED}, dead_reason = 'x'",
    State.CANCELLED: f"{_ENDED}, dead_reason = NULL",
}


def step(ledger, id_, after, generations):
    """Try one update by raw SQL, undo it, and say which constraint refused it (None: it was legal)."""
    try:
        with ledger.transaction(force_rollback=True):
            ledger.execute(
                f"UPDATE switchyard.job SET state = %s, generation = generation + %s, {FITTING[after]} WHERE id = %s",  # noqa: S608
                [after, generations, id_],
            )
    except psycopg.errors.CheckViolation as error:
        return error.diag.constraint_name
    return None


@pytest.mark.parametrize("before", State)
def test_the_trigger_and_the_table_of_legal_steps_agree(ledger, before):
    id_ = add_in(ledger, before)
    replays = set(product((State.DEAD, State.CANCELLED), (State.PENDING, State.SCHEDULED)))

    for after, generations in product(State, (-1, 0, 1, 2)):
        wanted = is_legal(before, after) and generations == (1 if (before, after) in replays else 0)
        assert step(ledger, id_, after, generations) == (None if wanted else "job_legal_step"), (after, generations)


def test_there_are_49_pairs_and_completed_is_final():
    legal = [(before, after) for before, after in product(State, State) if is_legal(before, after)]

    assert len(list(product(State, State))) == 49
    assert len(legal) == 7 + 21
    assert LEGAL[State.COMPLETED] == frozenset()


@pytest.mark.parametrize("state", State)
def test_a_job_begins_scheduled_or_pending(ledger, state):
    fitting = dict(part.split(" = ") for part in FITTING[state].split(", "))
    columns, values = ", ".join(fitting), ", ".join(fitting.values())
    statement = (
        f"INSERT INTO switchyard.job (message_id, queue, actor, broker, payload, state, {columns})"  # noqa: S608
        f" VALUES (gen_random_uuid(), 'q', 'a', 'postgres', '{{}}', '{state}', {values})"
    )
    if state in (State.SCHEDULED, State.PENDING):
        ledger.execute(statement)
        return

    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        ledger.execute(statement)
    assert refused.value.diag.constraint_name == "job_legal_step"


@pytest.mark.parametrize(
    ("state", "change", "constraint"),
    [
        (State.PENDING, "state = 'sleeping'", "job_legal_step"),
        (State.RUNNING, "token = NULL", "job_running_is_claimed"),
        (State.RUNNING, "lease_until = NULL", "job_running_is_claimed"),
        (State.PENDING, "token = gen_random_uuid()", "job_running_is_claimed"),
        (State.PENDING, "lease_until = now()", "job_running_is_claimed"),
        (State.PENDING, "token = gen_random_uuid(), lease_until = now()", "job_running_is_claimed"),
        (State.COMPLETED, "finished_at = NULL", "job_terminal_is_finished"),
        (State.PENDING, "finished_at = now()", "job_terminal_is_finished"),
        (State.DEAD, "dead_reason = NULL", "job_dead_has_reason"),
        (State.CANCELLED, "dead_reason = 'x'", "job_dead_has_reason"),
        *((state, "next_publish_at = NULL, broker = 'redis'", "job_waiting_is_reachable") for state in sorted(WAITING)),
        *((state, "next_publish_at = now()", "job_only_waiting_is_due") for state in (State.RUNNING, *sorted(TERMINAL))),
        (State.DEAD, "result = '1'", "job_result_is_completed"),
        (State.PENDING, "attempt = -1", "job_counters_sane"),
        (State.PENDING, "failures = -1", "job_counters_sane"),
        (State.PENDING, "lost = -1", "job_counters_sane"),
        (State.PENDING, "max_attempts = 0", "job_counters_sane"),
        (State.RUNNING, "progress = 101", "job_progress_is_percent"),
        (State.RUNNING, "progress = -1", "job_progress_is_percent"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(ledger, state, change, constraint):
    id_ = add_in(ledger, state)
    before = row(ledger, id_)

    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        ledger.execute(f"UPDATE switchyard.job SET {change} WHERE id = %s", [id_])  # noqa: S608

    assert refused.value.diag.constraint_name == constraint
    assert row(ledger, id_) == before


def test_an_unknown_state_is_refused_behind_the_trigger_too(ledger):
    id_ = add(ledger)

    with ledger.transaction(force_rollback=True):
        ledger.execute("ALTER TABLE switchyard.job DISABLE TRIGGER job_legal_step")
        with pytest.raises(psycopg.errors.CheckViolation, match="job_state_known"):
            ledger.execute("UPDATE switchyard.job SET state = 'sleeping' WHERE id = %s", [id_])


def test_the_first_generation_is_1(ledger):
    with pytest.raises(psycopg.errors.CheckViolation, match="job_counters_sane"):
        ledger.execute(
            "INSERT INTO switchyard.job (message_id, queue, actor, broker, payload, state, generation)"
            " VALUES (gen_random_uuid(), 'q', 'a', 'postgres', '{}', 'pending', 0)"
        )


def test_the_history_knows_its_outcomes_and_no_attempt_twice(ledger):
    id_ = add_in(ledger, State.RETRYING)

    with pytest.raises(psycopg.errors.CheckViolation, match="attempt_outcome_known"):
        ledger.execute("INSERT INTO switchyard.attempt (job_id, generation, attempt, outcome) VALUES (%s, 1, 2, 'odd')", [id_])
    with pytest.raises(psycopg.errors.UniqueViolation):
        ledger.execute("INSERT INTO switchyard.attempt (job_id, generation, attempt, outcome) VALUES (%s, 1, 1, 'failed')", [id_])


def test_a_jobs_history_and_log_go_with_it(ledger):
    id_ = add_in(ledger, State.DEAD)
    ledger.execute("INSERT INTO switchyard.job_log (job_id, generation, attempt, line) VALUES (%s, 1, 1, 'x')", [id_])

    ledger.execute("DELETE FROM switchyard.job WHERE id = %s", [id_])

    assert ledger.execute("SELECT count(*) FROM switchyard.attempt").fetchone()[0] == 0
    assert ledger.execute("SELECT count(*) FROM switchyard.job_log").fetchone()[0] == 0


@pytest.mark.parametrize("state", State)
def test_only_a_job_that_has_ended_can_be_removed(ledger, state):
    id_ = add_in(ledger, state)

    if state in TERMINAL:
        ledger.execute("DELETE FROM switchyard.job WHERE id = %s", [id_])
        return

    with pytest.raises(psycopg.errors.CheckViolation, match=f"job {id_} is {state}") as refused:
        ledger.execute("DELETE FROM switchyard.job WHERE id = %s", [id_])
    assert refused.value.diag.constraint_name == "job_legal_removal"


def test_two_rows_cannot_have_one_message_id(ledger):
    first, second = add(ledger), add(ledger)
    claim(ledger, first)

    with pytest.raises(psycopg.errors.UniqueViolation):
        ledger.execute(
            "UPDATE switchyard.job SET message_id = (SELECT message_id FROM switchyard.job WHERE id = %s) WHERE id = %s",
            [first, second],
        )
