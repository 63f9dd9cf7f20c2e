"""The way in: what is stored, that it is stored at once or not at all, and that an id names one job."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg
import pytest

from errors import JobExists
from ledger import write
from ledger.states import State
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import PAYLOAD, add, add_in, claim, completed, fetch, new_job, row

AWKWARD = ['quote " quote', "back\\slash", "comma,{brace}", "NULL", "", " ", "ünï ☃ 🚂", "it's", "line\nbreak"]


def seconds_until(ledger, id_, column):
    return ledger.execute(
        f"SELECT extract(epoch FROM {column} - clock_timestamp())::float8 FROM switchyard.job WHERE id = %s",  # noqa: S608
        [id_],
    ).fetchone()[0]


def test_a_job_for_the_postgres_broker_needs_no_relay(ledger):
    id_ = add(ledger, payload='{"args": [1, 2.50], "kwargs": {"z": 1, "a": 2}}', priority=3, tags=["x"], options='{"o": 1}')

    stored = row(ledger, id_)
    assert stored["state"] == "pending"
    assert stored["next_publish_at"] is None
    assert (stored["queue"], stored["actor"], stored["priority"], stored["broker"]) == ("default", "work", 3, "postgres")
    assert (stored["attempt"], stored["failures"], stored["lost"], stored["generation"]) == (0, 0, 0, 1)
    assert stored["options"] == {"o": 1}


def test_the_payload_is_stored_to_the_letter(ledger):
    payload = '{"kwargs": {"z": 1.50, "a": 1e3},  "args": []}'
    id_ = add(ledger, payload=payload)

    assert ledger.execute("SELECT payload::text FROM switchyard.job WHERE id = %s", [id_]).fetchone()[0] == payload


def test_a_job_for_another_broker_is_repaired_after_the_grace(ledger):
    id_ = add(ledger, broker="redis", grace=30.0)

    assert 25 < seconds_until(ledger, id_, "next_publish_at") <= 30


def test_a_job_whose_broker_is_down_is_due_at_once(ledger):
    id_ = add(ledger, broker="redis", grace=0.0)

    assert seconds_until(ledger, id_, "next_publish_at") <= 0


def test_a_delayed_job_is_scheduled_and_due_at_its_time(ledger):
    id_ = add(ledger, delay=100.0, grace=30.0)

    assert fetch(ledger, id_, "state") == "scheduled"
    assert 95 < seconds_until(ledger, id_, "next_publish_at") <= 100
    assert 95 < seconds_until(ledger, id_, "run_at") <= 100


def test_a_negative_delay_is_none(ledger):
    id_ = add(ledger, delay=-5.0)

    assert fetch(ledger, id_, "state") == "pending"
    assert fetch(ledger, id_, "next_publish_at") is None


@pytest.mark.parametrize("tags", [None, [], ["one"], AWKWARD], ids=["none", "empty", "one", "awkward"])
def test_tags_come_back_as_they_went_in_alone_and_in_bulk(ledger, tags):
    alone = add(ledger, tags=tags)
    bulk = write.enqueue_many(ledger, [new_job(tags=tags), new_job(tags=["other"]), new_job()])

    assert fetch(ledger, alone, "tags") == tags
    assert [fetch(ledger, entry.id, "tags") for entry in bulk] == [tags, ["other"], None]


def test_bulk_keeps_the_order_and_every_field_over_many_statements(ledger):
    jobs = [
        new_job(
            queue=f"q{i % 3}", priority=i % 5, payload=f'{{"args": [{i}], "kwargs": {{}}}}', delay=60.0 * (i % 2), broker="redis",
            grace=float(i % 7), parent_id=str(uuid4()) if i % 2 else None, max_attempts=None if i % 3 else 5,
        )
        for i in range(4 * write.PART + 5)
    ]  # fmt: skip

    written = write.enqueue_many(ledger, jobs)

    assert [entry.message_id for entry in written] == [job.message_id for job in jobs]
    assert [entry.id for entry in written] == sorted(entry.id for entry in written)
    assert all(entry.created for entry in written)
    for job, entry in list(zip(jobs, written, strict=True))[:: write.PART // 3]:
        stored = row(ledger, entry.id)
        assert stored["message_id"] == UUID(job.message_id)
        assert (stored["queue"], stored["priority"], stored["max_attempts"]) == (job.queue, job.priority, job.max_attempts)
        assert stored["parent_id"] == (UUID(job.parent_id) if job.parent_id else None)
        assert stored["state"] == ("scheduled" if job.delay else "pending")


def test_bulk_writes_all_or_none(ledger):
    taken = new_job()
    write.enqueue(ledger, taken)
    batch = [new_job() for _ in range(4 * write.PART + 1)] + [new_job(message_id=taken.message_id, actor="other")]

    with pytest.raises(JobExists):
        write.enqueue_many(ledger, batch)

    assert ledger.execute("SELECT count(*) FROM switchyard.job").fetchone()[0] == 1


def test_an_empty_bulk_is_nothing(ledger):
    assert write.enqueue_many(ledger, []) == []


def test_a_repeated_send_finds_its_own_row(ledger):
    job = new_job()
    first = write.enqueue(ledger, job)

    again = write.enqueue(ledger, job)

    assert again == type(first)(first.id, job.message_id, False)


def test_a_repeated_bulk_finds_its_own_rows_and_writes_the_rest(ledger):
    jobs = [new_job() for _ in range(4)]
    first = write.enqueue_many(ledger, jobs[:2])

    again = write.enqueue_many(ledger, jobs)

    assert [entry.created for entry in again] == [False, False, True, True]
    assert [entry.id for entry in again[:2]] == [entry.id for entry in first]


def test_a_running_job_may_be_sent_again_as_itself(ledger):
    job = new_job()
    id_ = write.enqueue(ledger, job).id
    claim(ledger, id_)

    assert write.enqueue(ledger, job).id == id_
    assert fetch(ledger, id_, "state") == "running"


@pytest.mark.parametrize(
    "change",
    [{"actor": "other"}, {"queue": "other"}, {"payload": '{"args": [1], "kwargs": {}}'}],
    ids=["actor", "queue", "payload"],
)
def test_another_job_under_a_taken_id_is_refused(ledger, change):
    job = new_job()
    id_ = write.enqueue(ledger, job).id
    before = row(ledger, id_)

    with pytest.raises(JobExists, match=job.message_id):
        write.enqueue(ledger, new_job(message_id=job.message_id, **change))

    assert row(ledger, id_) == before


@pytest.mark.parametrize("state", [State.COMPLETED, State.DEAD, State.CANCELLED])
def test_a_job_that_has_ended_is_not_sent_again(ledger, state):
    job = new_job()
    add_in(ledger, state, message_id=job.message_id)

    with pytest.raises(JobExists, match=state.value):
        write.enqueue(ledger, job)


def test_an_id_in_another_spelling_is_the_same_id(ledger):
    plain = uuid4()
    jobs = [new_job(message_id=plain.hex.upper()), new_job()]

    first = write.enqueue_many(ledger, jobs)
    again = write.enqueue(ledger, new_job(message_id=str(plain)))

    assert first[0].created
    assert again.id == first[0].id
    assert not again.created


def test_the_same_message_twice_in_a_bulk_is_one_job(ledger):
    job = new_job()

    written = write.enqueue_many(ledger, [job, new_job(), job])

    assert [entry.created for entry in written] == [True, True, False]
    assert written[0].id == written[2].id


def test_two_messages_of_one_id_in_a_bulk_are_refused(ledger):
    job = new_job()

    with pytest.raises(JobExists, match=job.message_id):
        write.enqueue_many(ledger, [job, new_job(message_id=job.message_id, payload='{"args": [1], "kwargs": {}}')])

    assert ledger.execute("SELECT count(*) FROM switchyard.job").fetchone()[0] == 0


def test_a_rival_that_rolls_back_is_not_taken_for_the_job(ledger, connect):
    job = new_job()
    rival = connect()
    rival.execute("BEGIN")
    write.enqueue(rival, job)
    meanwhile = Meanwhile(lambda: write.enqueue(ledger, job))
    wait_for_lock(connect(), ledger.info.backend_pid)

    rival.execute("ROLLBACK")

    assert meanwhile.result().created


def test_a_rival_that_commits_is_recognised(ledger, connect):
    job = new_job()
    rival = connect()
    rival.execute("BEGIN")
    first = write.enqueue(rival, job)
    meanwhile = Meanwhile(lambda: write.enqueue(ledger, job))
    wait_for_lock(connect(), ledger.info.backend_pid)

    rival.execute("COMMIT")

    again = meanwhile.result()
    assert (again.id, again.created) == (first.id, False)


def test_a_lost_reply_after_completion_does_not_make_a_second_job(ledger):
    job = new_job(payload=PAYLOAD)
    id_ = write.enqueue(ledger, job).id
    by = claim(ledger, id_)
    write.finish(ledger, [completed(id_, by)])

    with pytest.raises(JobExists, match="completed"):
        write.enqueue(ledger, job)


def test_text_that_postgres_cannot_hold_is_a_driver_error_and_stores_nothing(ledger):
    with pytest.raises(psycopg.DataError):
        add(ledger, tags=["nul \x00"])

    assert ledger.execute("SELECT count(*) FROM switchyard.job").fetchone()[0] == 0
