"""Keys: who inserts first has it, whoever comes second learns what became of the first, and never of one that was rolled back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime

import psycopg
import pytest

from errors import IdempotencyConflict, JobExists, LedgerUnavailable
from ledger import keys, write
from ledger.database import BoundedConnection, Database
from ledger.records import JobControl, SentKey, Unique
from ledger.sql import SQL
from ledger.states import ACTIVE, State
from tests.ledger.blocking import Meanwhile, Two, wait_for_lock
from tests.ledger.factory import add_in, claim, clear, completed, failed, fetch, new_job

LATER = datetime(2100, 1, 1, tzinfo=UTC)
STATES = sorted(State)


def sent(key="k", fingerprint="f", ttl=60.0, **fields):
    accepted = fields.pop("accepted", ())
    control = JobControl(idempotency_key=key, sent=SentKey(fingerprint=fingerprint, accepted=accepted, ttl=ttl))
    return new_job(control=control, **fields)


def unique(key="u", mode="skip", period=None, max_wait=None, **fields):
    rule = Unique(key=key, mode=mode, period=period, max_wait=max_wait)
    return new_job(control=JobControl(unique_key=key if period is None else None, unique=rule), **fields)


def both(key="k", unique_key="u", period=None, **fields):
    control = JobControl(
        idempotency_key=key,
        sent=SentKey(fingerprint="f", ttl=60.0),
        unique_key=unique_key if period is None else None,
        unique=Unique(key=unique_key, period=period),
    )
    return new_job(control=control, **fields)


KINDS = pytest.mark.parametrize(
    "make",
    [sent, unique, lambda **fields: unique(period=60.0, **fields), both],
    ids=["sender", "active", "period", "two keys"],
)


def forget_all(connection: BoundedConnection) -> None:
    clear(connection)
    connection.execute("DELETE FROM switchyard.idempotency")


@pytest.fixture
def two(place) -> Iterator[Two]:
    with ExitStack() as stack:
        two = Two(*(stack.enter_context(place.dedicated("test")) for _ in range(3)))
        forget_all(two.onlooker)
        yield two


@pytest.fixture
def keyed(ledger):
    forget_all(ledger)
    return ledger


def jobs(connection):
    return connection.execute("SELECT count(*) FROM switchyard.job").fetchone()[0]


def stored_keys(connection):
    return connection.execute("SELECT kind, key, message_id::text FROM switchyard.idempotency ORDER BY 1, 2").fetchall()


@KINDS
def test_the_second_send_finds_the_first(keyed, make):
    job, again = make(), make()

    first, second = write.enqueue(keyed, job), write.enqueue(keyed, again)

    assert (first.created, first.replayed) == (True, False)
    assert (second.id, second.message_id, second.created, second.replayed) == (first.id, job.message_id, False, True)
    assert second.first.message_id == job.message_id
    assert jobs(keyed) == 1


@KINDS
def test_the_same_send_made_again_after_a_lost_reply_is_the_first_and_no_replay(keyed, make):
    job = make()

    first, again = write.enqueue(keyed, job), write.enqueue(keyed, job)

    assert (again.id, again.created, again.replayed) == (first.id, False, False)
    assert jobs(keyed) == 1


@KINDS
def test_a_rival_that_commits_is_found(two, make):
    first, second = two.waits_for(lambda: write.enqueue(two.first, make()), lambda: write.enqueue(two.second, make()))

    assert (first.created, second.created, second.replayed, second.id) == (True, False, True, first.id)
    assert jobs(two.onlooker) == 1


@KINDS
def test_a_rival_that_is_rolled_back_is_never_reported(two, make):
    class Undone(Exception):
        pass

    with suppress(Undone), two.first.transaction():
        gone = write.enqueue(two.first, make())
        meanwhile = Meanwhile(lambda: write.enqueue(two.second, make()))
        wait_for_lock(two.onlooker, two.second.info.backend_pid)
        raise Undone

    second = meanwhile.result()
    assert (second.created, second.replayed) == (True, False)
    assert second.message_id != gone.message_id
    assert two.onlooker.execute("SELECT message_id::text FROM switchyard.job").fetchall() == [(second.message_id,)]
    assert {row[2] for row in stored_keys(two.onlooker)} <= {second.message_id}


@KINDS
def test_fifty_senders_of_one_key_make_one_job_and_all_get_its_id(keyed, place, make):
    database = Database(place.url, pool_size=20, timeout=60.0)
    database.run(forget_all)
    barrier = threading.Barrier(50)

    def send(_):
        barrier.wait(60)
        return database.run(lambda connection: write.enqueue(connection, make()))

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(send, range(50)))

    assert len({answer.message_id for answer in answers}) == 1
    assert sum(answer.created for answer in answers) == 1
    assert sum(answer.replayed for answer in answers) == 49
    assert database.run(jobs) == 1
    database.close()


def test_another_payload_under_the_key_is_refused_with_both_fingerprints(keyed):
    job = sent(fingerprint="one")
    write.enqueue(keyed, job)

    with pytest.raises(IdempotencyConflict) as refused:
        write.enqueue(keyed, sent(fingerprint="two"))

    error = refused.value
    assert (error.key, error.actor, error.existing_id) == ("k", "work", job.message_id)
    assert (error.fingerprint, error.existing_fingerprint) == ("two", "one")
    assert jobs(keyed) == 1


def test_a_fingerprint_under_another_key_of_the_settings_is_accepted(keyed):
    write.enqueue(keyed, sent(fingerprint="old"))

    assert write.enqueue(keyed, sent(fingerprint="new", accepted=("old",))).replayed


def test_keys_of_another_actor_are_others(keyed):
    write.enqueue(keyed, sent())
    write.enqueue(keyed, unique())

    assert write.enqueue(keyed, sent(actor="other", fingerprint="x")).created
    assert write.enqueue(keyed, unique(actor="other")).created


@pytest.mark.parametrize("make", [sent, lambda **fields: unique(period=60.0, **fields)], ids=["sender", "period"])
def test_an_expired_key_is_free_also_before_it_is_removed(keyed, make):
    first = write.enqueue(keyed, make())
    keyed.execute("UPDATE switchyard.idempotency SET expires_at = clock_timestamp()")

    second = write.enqueue(keyed, make())

    assert second.created
    assert second.id != first.id
    assert [row[2] for row in stored_keys(keyed)] == [second.message_id]


def test_two_senders_of_an_expired_key_make_one_job(two):
    write.enqueue(two.first, sent())
    two.first.execute("UPDATE switchyard.idempotency SET expires_at = clock_timestamp()")

    first, second = two.waits_for(lambda: write.enqueue(two.first, sent()), lambda: write.enqueue(two.second, sent()))

    assert (first.created, second.replayed, second.id == first.id) == (True, True, True)


@pytest.mark.parametrize("make", [sent, lambda **fields: unique(period=60.0, **fields)], ids=["sender", "period"])
def test_a_key_outlives_the_row_of_its_job(keyed, make):
    job = make()
    write.enqueue(keyed, job)
    clear(keyed)

    again = write.enqueue(keyed, make())

    assert (again.id, again.message_id, again.replayed, again.first) == (0, job.message_id, True, None)
    assert jobs(keyed) == 0


@pytest.mark.parametrize("state", STATES)
def test_an_actors_key_is_held_by_active_jobs_alone(keyed, state):
    job = unique()
    held = add_in(keyed, state, control=job.control)

    second = write.enqueue(keyed, unique())

    assert (second.id == held) == (state in ACTIVE)
    assert second.created == (state not in ACTIVE)


@pytest.mark.parametrize("state", [State.COMPLETED, State.DEAD, State.CANCELLED])
def test_an_actors_key_for_a_period_is_held_whatever_became_of_the_job(keyed, state):
    held = add_in(keyed, state, control=unique(period=60.0).control)

    assert write.enqueue(keyed, unique(period=60.0)).id == held


@pytest.mark.parametrize("state", [State.DEAD, State.CANCELLED])
def test_a_replay_is_refused_while_another_job_has_the_key(keyed, state):
    ended = add_in(keyed, state, control=unique().control)
    write.enqueue(keyed, unique())
    name = str(fetch(keyed, ended, "message_id"))

    with pytest.raises(psycopg.errors.UniqueViolation) as refused:
        write.replay(keyed, name)

    assert refused.value.diag.constraint_name == "job_unique_active"
    assert fetch(keyed, ended, "state") == state.value


def test_an_id_that_another_job_has_takes_no_key(keyed):
    taken = new_job()
    write.enqueue(keyed, taken)

    for make in (sent, unique, both, lambda **fields: unique(period=60.0, **fields)):
        with pytest.raises(JobExists):
            write.enqueue(keyed, make(message_id=taken.message_id, payload='{"args": [1], "kwargs": {}}'))

    assert stored_keys(keyed) == []
    assert jobs(keyed) == 1


def test_a_senders_key_stands_for_the_job_that_the_actors_key_led_to(keyed):
    first = write.enqueue(keyed, unique())

    joined = write.enqueue(keyed, both())
    by = claim(keyed, first.id)
    write.finish(keyed, [completed(first.id, by)])
    again = write.enqueue(keyed, both())

    assert (joined.id, again.id, again.replayed) == (first.id, first.id, True)
    assert stored_keys(keyed) == [("idempotency", "k", first.message_id)]


def test_a_batch_is_sorted_into_new_ones_and_known_ones(keyed):
    known = write.enqueue(keyed, sent("known"))
    plain = new_job()
    batch = [
        sent("known"),
        plain,
        sent("new"),
        sent("new"),
        unique(),
        unique(),
        unique(period=60.0),
        unique(period=60.0),
        both("a", "b"),
    ]

    written = write.enqueue_many(keyed, batch)

    assert [entry.created for entry in written] == [False, True, True, False, True, False, True, False, True]
    assert [entry.replayed for entry in written] == [True, False, False, True, False, True, False, True, False]
    assert written[0].id == known.id
    assert [written[n].id for n in (3, 5, 7)] == [written[n].id for n in (2, 4, 6)]
    assert written[3].first.message_id == batch[2].message_id
    assert jobs(keyed) == 6


def test_a_conflict_within_a_batch_stores_none_of_it(keyed):
    with pytest.raises(IdempotencyConflict):
        write.enqueue_many(keyed, [new_job(), sent(fingerprint="one"), sent(fingerprint="two")])

    assert (jobs(keyed), stored_keys(keyed)) == (0, [])


def test_duplicates_far_apart_in_a_batch_are_one_job(keyed):
    batch = [sent(), *(new_job() for _ in range(2 * write.PART)), sent()]

    written = write.enqueue_many(keyed, batch)

    assert written[-1].id == written[0].id
    assert jobs(keyed) == len(batch) - 1


def test_batches_that_take_the_same_keys_the_other_way_round_do_not_wait_in_a_circle(two):
    with two.first.transaction():
        first = write.enqueue(two.first, sent("k0"))
        meanwhile = Meanwhile(lambda: write.enqueue_many(two.second, [sent("k1"), sent("k0")]))
        wait_for_lock(two.onlooker, two.second.info.backend_pid)
        # The batch waits for k0 with nothing taken.
        second = write.enqueue(two.first, sent("k1"))

    assert (first.created, second.created) == (True, True)
    assert [entry.id for entry in meanwhile.result()] == [second.id, first.id]


def test_a_key_that_was_taken_anew_is_not_removed_for_having_been_expired(keyed):
    write.enqueue(keyed, sent())

    keyed.execute(SQL["drop_expired_keys"], {"kind": "idempotency", "keys": '[{"scope": "work", "key": "k"}]'})

    assert len(stored_keys(keyed)) == 1


def test_a_circle_of_keys_is_broken_by_trying_again():
    tries = []

    def work():
        tries.append(1)
        if len(tries) < 3:
            raise psycopg.errors.DeadlockDetected
        return "done"

    assert keys.undisturbed(work) == "done"


def test_a_followers_conflict_does_not_undo_its_job(keyed):
    other = sent(fingerprint="one")
    write.enqueue(keyed, other)
    parent = write.enqueue(keyed, new_job()).id
    end = completed(parent, claim(keyed, parent))
    end.children.append(sent(fingerprint="two"))

    assert write.finish(keyed, [end]) == {parent}

    assert (fetch(keyed, parent, "state"), jobs(keyed)) == ("completed", 2)


def test_what_is_in_the_way_for_ever_is_an_error_and_not_a_success(keyed, monkeypatch):
    write.enqueue(keyed, sent())
    # Expired whenever it is looked at, and never gone; each look is counted, also those of a transaction that is rolled back.
    keyed.execute("CREATE SEQUENCE public.looks")
    monkeypatch.setitem(SQL, "drop_expired_keys", "SELECT nextval('public.looks') WHERE %(kind)s <> %(keys)s")
    keyed.execute("UPDATE switchyard.idempotency SET expires_at = clock_timestamp()")

    with pytest.raises(LedgerUnavailable, match="changed hands 5 times"):
        write.enqueue(keyed, sent())

    assert jobs(keyed) == 1
    assert keyed.execute("SELECT last_value FROM public.looks").fetchone() == (5,)


def args(ledger, id_):
    return fetch(ledger, id_, "payload")["args"]


def debounced(value, **fields):
    return unique(mode="debounce", payload=json.dumps({"args": [value], "kwargs": {}}), **fields)


@pytest.mark.parametrize("state", [State.SCHEDULED, State.PENDING, State.RETRYING])
def test_while_it_waits_the_latest_payload_wins_and_its_time_is_put_off(keyed, state):
    id_ = add_in(keyed, state, control=debounced(1).control)
    # As if it had waited for ten seconds already.
    keyed.execute("UPDATE switchyard.job SET run_at = run_at - interval '1 hour', created_at = created_at - interval '10 s'")

    second = write.enqueue(keyed, debounced(2, delay=5.0, max_wait=60.0))

    assert (second.id, second.replayed, second.first.args) == (id_, True, [2])
    assert args(keyed, id_) == [2]
    assert (fetch(keyed, id_, "state"), fetch(keyed, id_, "publish_count")) == ("scheduled", 0)
    assert fetch(keyed, id_, "next_publish_at") == fetch(keyed, id_, "run_at")
    due = keyed.execute("SELECT extract(epoch FROM run_at - clock_timestamp())::float8 FROM switchyard.job").fetchone()[0]
    assert due == pytest.approx(5.0, abs=1.0)


def test_it_is_not_put_off_for_ever(keyed):
    first = write.enqueue(keyed, debounced(1, delay=5.0))
    created, due = fetch(keyed, first.id, "created_at"), fetch(keyed, first.id, "run_at")

    write.enqueue(keyed, debounced(2, delay=500.0, max_wait=60.0))
    assert (fetch(keyed, first.id, "run_at") - created).total_seconds() == 60.0
    write.enqueue(keyed, debounced(3, delay=500.0))
    assert (fetch(keyed, first.id, "run_at") - created).total_seconds() == pytest.approx(500.0, abs=1)
    write.enqueue(keyed, debounced(4, delay=1.0))

    # Nor is it due any sooner than it was.
    assert (fetch(keyed, first.id, "run_at") - created).total_seconds() == pytest.approx(500.0, abs=1)
    assert due < fetch(keyed, first.id, "run_at")
    assert args(keyed, first.id) == [4]


def test_without_a_delay_its_time_stays(keyed):
    first = write.enqueue(keyed, debounced(1, delay=60.0))
    due = fetch(keyed, first.id, "run_at")

    write.enqueue(keyed, debounced(2))

    assert (fetch(keyed, first.id, "run_at"), args(keyed, first.id)) == (due, [2])


def test_what_waits_for_something_else_goes_on_doing_so(keyed):
    first = write.enqueue(keyed, debounced(1))
    keyed.execute("UPDATE switchyard.job SET wait_reason = 'paused', next_publish_at = NULL")

    write.enqueue(keyed, debounced(2, delay=5.0, max_wait=60.0))

    assert (fetch(keyed, first.id, "state"), fetch(keyed, first.id, "next_publish_at")) == ("pending", None)
    assert args(keyed, first.id) == [2]


def test_once_it_runs_the_next_send_makes_a_new_job(keyed):
    first = write.enqueue(keyed, debounced(1))
    by = claim(keyed, first.id)

    second = write.enqueue(keyed, debounced(2))
    third = write.enqueue(keyed, debounced(3))

    assert (second.created, third.id, third.replayed) == (True, second.id, True)
    assert (args(keyed, first.id), args(keyed, second.id)) == ([1], [3])
    # It may fail and wait again beside the new one.
    assert write.finish(keyed, [failed(first.id, by)]) == {first.id}


def test_a_claim_before_a_debounce_keeps_its_payload(two):
    first = write.enqueue(two.onlooker, debounced(1))

    _, second = two.waits_for(lambda: claim(two.first, first.id), lambda: write.enqueue(two.second, debounced(2)))

    assert second.created
    assert (args(two.first, first.id), args(two.first, second.id)) == ([1], [2])


def test_a_debounce_before_a_claim_has_it_run_the_latest(two):
    first = write.enqueue(two.onlooker, debounced(1))

    _, by = two.waits_for(lambda: write.enqueue(two.first, debounced(2)), lambda: claim(two.second, first.id))

    assert by
    assert args(two.first, first.id) == [2]


def test_of_two_debounces_the_later_wins(two):
    first = write.enqueue(two.onlooker, debounced(1, delay=1.0))
    later = {"id": first.id, "key": "u", "payload": '{"args": [3], "kwargs": {}}', "delay": 1.0, "max_wait": 100.0}
    later |= {"options": None, "limited": False}

    two.waits_for(
        lambda: write.enqueue(two.first, debounced(2, delay=60.0, max_wait=100.0)),
        lambda: two.second.execute(SQL["debounce"], later).fetchall(),
    )

    assert args(two.first, first.id) == [3]
    # Put off by the first one, and not brought forward again by what the second saw before it waited.
    assert (fetch(two.first, first.id, "run_at") - fetch(two.first, first.id, "created_at")).total_seconds() > 50


def test_a_key_is_found_and_forgotten(keyed):
    job, active, period = sent(), unique("a"), unique("p", period=60.0)
    for one in (job, active, period):
        write.enqueue(keyed, one)

    found = keys.find(keyed, "idempotency", "work", "k")
    assert (found.job_id, found.state, found.kind) == (job.message_id, State.PENDING, "idempotency")
    assert 50 < (found.expires_at - found.created_at).total_seconds() < 70
    assert keys.find(keyed, "unique", "work", "a").expires_at is None
    assert keys.find(keyed, "unique", "work", "p").job_id == period.message_id
    assert keys.find(keyed, "idempotency", "other", "k") is None

    for kind, key in (("idempotency", "k"), ("unique", "a"), ("unique", "p")):
        assert keys.forget(keyed, kind, "work", key)
        assert not keys.forget(keyed, kind, "work", key)
        assert keys.find(keyed, kind, "work", key) is None
    assert write.enqueue(keyed, sent(fingerprint="x")).created
    assert write.enqueue(keyed, unique("a")).created
