"""``idempotency_key``: one key, one job, on every broker, whatever the sender lives through."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

import switchyard
from errors import EnlistRefused, IdempotencyConflict, OptionError
from ledger.states import State
from tests.conformance import jobs, key_jobs
from tests.conformance.system import System
from tests.faults.proxy import Proxy


@pytest.fixture(scope="module")
def running(make_settings):
    system = System(make_settings(), key_jobs.declare)
    system.start(threads=4, queues=set(system.broker.queues) - key_jobs.RESTING)
    yield system
    system.close()


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def connection(running):
    with psycopg.connect(running.settings.database_url.get_secret_value()) as opened:
        yield opened


def charge(system, key, cents=1, **options):
    return system.jobs.charge.send_with_options(args=(key, cents), idempotency_key=key, **options)


def stored(system, key):
    return system.rows("SELECT count(*) FROM switchyard.job WHERE idempotency_key = %s", key)[0][0]


def test_the_second_send_returns_the_first_message_and_says_so(running, key):
    first = charge(running, key, 500)
    result = first.get_result(block=True)

    second = charge(running, key, 500)

    assert "replayed" not in first.options
    assert (second.message_id, second.args, second.options["replayed"]) == (first.message_id, (key, 500), True)
    assert (second.actor_name, second.queue_name, second.options["idempotency_key"]) == ("charge", "default", key)
    assert second.get_result(block=True) == result == "charged 500"
    assert running.job(second).idempotency_key == key
    assert (stored(running, key), jobs.seen[key]) == (1, [500])


def test_another_payload_under_the_key_is_a_clear_error(running, key):
    first = charge(running, key, 500)

    with pytest.raises(IdempotencyConflict, match=f"{key}.*{first.message_id}.*another payload") as refused:
        charge(running, key, 501)

    assert (refused.value.existing_id, refused.value.actor, refused.value.key) == (first.message_id, "charge", key)
    assert refused.value.fingerprint != refused.value.existing_fingerprint
    assert "500" not in str(refused.value)
    assert stored(running, key) == 1


def test_when_it_runs_and_how_often_it_is_tried_is_no_other_payload(running, key):
    first = charge(running, key)

    assert charge(running, key, delay=60_000).message_id == first.message_id
    assert charge(running, key, max_retries=3, priority=5).message_id == first.message_id
    with pytest.raises(IdempotencyConflict):
        charge(running, key, on_success="note_message")


def test_one_spelling_of_the_arguments_is_one_payload_whatever_their_order(running, key):
    send = running.jobs.charge.send_with_options
    first = send(kwargs={"key": key, "cents": 1}, idempotency_key=key)

    assert send(kwargs={"cents": 1, "key": key}, idempotency_key=key).message_id == first.message_id
    with pytest.raises(IdempotencyConflict):
        send(kwargs={"cents": 1, "key": key + "x"}, idempotency_key=key)


def test_fifty_concurrent_senders_make_one_job(running, key):
    barrier = Barrier(50)

    def send(_):
        barrier.wait(60)
        return charge(running, key)

    with ThreadPoolExecutor(50) as threads:
        messages = list(threads.map(send, range(50)))

    assert len({message.message_id for message in messages}) == 1
    assert [message.options.get("replayed") for message in messages].count(True) == 49
    running.ended(messages[0])
    assert (stored(running, key), jobs.runs[key]) == (1, 1)


def test_many_at_once_may_hold_the_same_key_twice(running, key):
    make = running.jobs.charge.message_with_options
    first = charge(running, key)
    batch = [
        make(args=(key, 1), idempotency_key=key),
        running.jobs.charge.message(key, 2),
        make(args=(key, 3), idempotency_key=key + "b"),
        make(args=(key, 3), idempotency_key=key + "b"),
    ]

    sent = switchyard.enqueue_many(batch)

    assert [message.options.get("replayed") for message in sent] == [True, None, None, True]
    assert (sent[0].message_id, sent[1], sent[3].message_id) == (first.message_id, batch[1], sent[2].message_id)
    for message in sent:
        assert running.ended(message).state is State.COMPLETED
    assert sorted(jobs.seen[key]) == [1, 2, 3]


def test_a_conflict_among_many_stores_none_of_them(running, key):
    make = running.jobs.charge.message_with_options
    before = running.count()

    with pytest.raises(IdempotencyConflict):
        switchyard.enqueue_many([make(args=(key, n), idempotency_key=key) for n in range(2)])

    assert running.count() == before


def test_a_key_lasts_as_long_as_its_time_and_not_as_its_job(running, key):
    first = charge(running, key, idempotency_ttl=timedelta(hours=2))
    running.ended(first)
    bound = switchyard.find_by_key("charge", key)
    assert (bound.job_id, (bound.expires_at - bound.created_at).total_seconds()) == (
        first.message_id,
        pytest.approx(7_200, abs=5),
    )
    running.rows("DELETE FROM switchyard.job WHERE idempotency_key = %s RETURNING id", key)

    again = charge(running, key)
    assert (again.message_id, again.args, again.options["replayed"]) == (first.message_id, (key, 1), True)
    assert switchyard.find_by_key("charge", key).state is None
    running.rows("UPDATE switchyard.idempotency SET expires_at = clock_timestamp() WHERE key = %s RETURNING key", key)

    assert switchyard.find_by_key("charge", key) is None
    assert charge(running, key, 2).message_id != first.message_id


def test_a_key_lasts_a_day_unless_told_otherwise(running, key):
    charge(running, key)

    bound = switchyard.find_by_key("charge", key)
    assert (bound.expires_at - bound.created_at).total_seconds() == pytest.approx(86_400, abs=5)


def test_a_forgotten_key_is_free(running, key):
    first = charge(running, key)

    assert switchyard.forget_key("charge", key)
    assert not switchyard.forget_key("charge", key)

    assert charge(running, key, 2).message_id != first.message_id


@pytest.mark.parametrize("value", ["", "x" * 256, "a\nb", 5, b"k"])
def test_what_is_no_key_is_refused(running, value):
    before = running.count()

    with pytest.raises(OptionError, match=r"actor 'charge', option 'idempotency_key': .*1 to 255"):
        running.jobs.charge.send_with_options(args=("x",), idempotency_key=value)

    assert running.count() == before


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "1h", timedelta(0)])
def test_what_is_no_time_is_refused(running, key, value):
    with pytest.raises(OptionError, match=r"actor 'charge', option 'idempotency_ttl'"):
        charge(running, key, idempotency_ttl=value)

    assert stored(running, key) == 0


def test_a_key_belongs_to_the_callers_transaction(running, connection, key):
    with switchyard.enlist(connection):
        gone = charge(running, key)
        assert charge(running, key).message_id == gone.message_id
    connection.rollback()
    with switchyard.enlist(connection):
        first = charge(running, key, 2)
    connection.commit()

    assert charge(running, key, 2).message_id == first.message_id != gone.message_id
    assert running.ended(first).state is State.COMPLETED


def test_a_conflict_leaves_the_callers_transaction_able_to_go_on(running, connection, key):
    charge(running, key)

    with switchyard.enlist(connection):
        kept = charge(running, key + "x")
        with pytest.raises(IdempotencyConflict):
            charge(running, key, 2)
    connection.commit()

    assert running.ended(kept).state is State.COMPLETED


# Isolation is Postgres' business alone.
@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_above_read_committed_a_key_is_refused(running, connection, key, level):
    connection.isolation_level = level

    with switchyard.enlist(connection), pytest.raises(EnlistRefused, match="READ COMMITTED"):
        charge(running, key)
    with switchyard.enlist(connection):
        plain = running.jobs.charge.send(key)
    connection.commit()

    assert running.ended(plain).state is State.COMPLETED


def test_a_job_that_completes_in_its_own_transaction_sends_with_keys(running, key):
    first, second, replayed = running.ended(running.jobs.fans_out.send(key)).result

    assert (first, replayed) == (second, True)
    assert switchyard.wait(first, 30).state is State.COMPLETED
    assert jobs.runs[key] == 1


def test_a_follower_with_a_key_that_is_taken_is_that_job(running, key):
    first = charge(running, key)
    target = running.jobs.charge.message_with_options(args=(key, 1), idempotency_key=key, pipe_ignore=True)

    message = running.jobs.charge.send_with_options(args=(key + "parent",), pipe_target=target.asdict())

    assert running.ended(message).state is State.COMPLETED
    running.ended(first)
    assert stored(running, key) == 1


def test_a_lost_reply_to_the_commit_makes_no_second_job(make_settings, key):
    settings = make_settings()
    parts = conninfo_to_dict(settings.database_url.get_secret_value())
    proxy = Proxy(int(parts.get("port") or 5432))
    url = f"postgresql://{parts['user']}@127.0.0.1:{proxy.port}/{parts['dbname']}"
    if parts.get("password"):
        url = make_conninfo(url, password=str(parts["password"]))
    system = System(settings.model_copy(update={"database_url": SecretStr(url)}), key_jobs.declare)
    try:
        proxy.drop_reply(b"switchyard.idempotency")
        first = charge(system, key)

        assert proxy.dropped == 1
        assert "replayed" not in first.options
        assert charge(system, key).message_id == first.message_id
        assert stored(system, key) == 1
        # Found by its id, and so published.
        system.start(threads=1)
        assert system.ended(first).state is State.COMPLETED
    finally:
        system.close()
        proxy.close()
