"""Secret arguments: nowhere but in the body, on every broker, whatever becomes of the job."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from dramatiq import pipeline
from pydantic import SecretStr

import switchyard
from control.secrets_rotation import rotate_secrets
from errors import IdempotencyConflict, OptionError, PayloadError
from ledger.sealed import MASK, is_sealed
from ledger.states import State
from runtime.secrets import new_key
from tests.conformance import jobs
from tests.conformance.secret_jobs import declare
from tests.conformance.system import System
from tests.rig.waiting import wait_until
from tests.rig.workers import Workers

OLD, NEW = new_key(), new_key()


@pytest.fixture(scope="module")
def running(make_settings):
    system = System(make_settings(secret_keys=SecretStr(f"{NEW},{OLD}")), declare)
    system.start(threads=4, queues=set(system.broker.queues) - {"parked"})
    yield system
    system.close()


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def canary() -> str:
    return f"canary-{uuid.uuid4().hex}"


def stored(system) -> str:
    """Everything that the ledger has, as one text."""
    tables = system.rows("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'switchyard'")
    assert len(tables) > 15
    return "".join(str(system.rows(f"SELECT t::text FROM switchyard.{table} AS t")) for (table,) in tables)  # noqa: S608


def test_the_body_alone_sees_a_secret(running, key, canary):
    message = running.jobs.keeps.send(key, canary)
    keyword = running.jobs.keeps.send(key=key, card=canary)
    many = switchyard.enqueue_many([running.jobs.keeps.message(key, canary)])

    for one in (message, keyword, *many):
        job = running.ended(one)
        assert (job.state, job.result) == (State.COMPLETED, len(canary))
        assert canary not in repr(one) + str(one) + repr(job)
    assert is_sealed(message.args[1])
    assert running.job(message).args == (key, MASK)
    assert running.job(keyword).kwargs == {"key": key, "card": MASK}
    assert {job.args[1] for job in switchyard.list_jobs(actor="keeps").jobs if job.args} == {MASK}
    assert jobs.seen[key] == [canary] * 3
    assert canary not in stored(running)


@pytest.mark.parametrize("make", [str, lambda text: {"number": text, "codes": [text]}], ids=["text", "nested"])
def test_errors_traces_lines_and_stages_are_masked(running, key, canary, make):
    message = running.jobs.breaks.send(key, make(canary))

    job = running.ended(message)

    assert (job.state, job.dead_reason, job.error_type) == (State.DEAD, "max_retries", "ValueError")
    assert MASK in job.error
    attempts = switchyard.attempts(job.id)
    assert all(MASK in attempt.error and MASK in attempt.traceback and "KeyError" in attempt.traceback for attempt in attempts)
    assert MASK in switchyard.logs(job.id)[0].line
    assert MASK in job.stage
    assert canary not in stored(running)
    with pytest.raises(Exception, match="no card") as failure:
        message.get_result(block=True)
    assert canary not in str(failure.value)


def test_why_a_job_stopped_is_masked(running, key, canary):
    job = running.ended(running.jobs.stops.send(key, canary))

    assert (job.state, job.error) == (State.CANCELLED, f"no card {MASK}")
    assert canary not in stored(running)


def test_a_replay_and_a_dead_letter_keep_it_sealed(running, key, canary):
    message = running.jobs.gives_up.send(key, canary)
    running.ended(message)

    assert switchyard.replay(message.message_id)
    job = running.until(message, lambda job: job.generation == 2 and job.state is State.DEAD)

    assert (job.error, job.args) == (f"no card {MASK}", (key, MASK))
    assert canary not in stored(running)


def test_a_result_that_tells_it_is_masked(running, key, canary):
    assert running.ended(running.jobs.tells.send(key, canary)).result == {"card": MASK, "text": f"<{MASK}>", "key": key}
    assert running.ended(running.jobs.completes.send(key, canary)).result == [MASK, key]
    assert canary not in stored(running)


def test_an_async_body_gets_it_too(running, key, canary):
    assert running.ended(running.jobs.later.send(key, canary)).state is State.COMPLETED
    assert jobs.seen[key] == [canary]


def test_callbacks_and_pipelines_carry_it_sealed(running, key, canary):
    sent = running.jobs.keeps.send_with_options(args=(key, canary), on_success="after")
    steps = pipeline(
        [running.jobs.plain.message(key), running.jobs.keeps.message_with_options(args=(key, canary), pipe_ignore=True)]
    )
    steps.run()

    running.ended(sent)
    followed = f"after {sent.message_id}"
    wait_until(lambda: followed in jobs.seen)
    assert is_sealed(jobs.seen[followed][0][1])
    wait_until(lambda: len(jobs.seen.get(key, [])) == 2)
    assert jobs.seen[key] == [canary, canary]
    assert canary not in stored(running)


def test_a_workflow_carries_it_sealed_and_its_results_masked(running, key, canary):
    steps = switchyard.pipeline(
        [
            running.jobs.tells.message(key, canary),
            running.jobs.plain.message(key + "next"),
            running.jobs.keeps.message_with_options(args=(key + "last", canary), pipe_ignore=True),
        ]
    ).run()
    children = switchyard.group([running.jobs.keeps.message(key + "child", canary) for _ in range(2)])
    children.run()

    for message in (*steps.messages, *children.children):
        assert running.ended(message).state is State.COMPLETED
    assert running.job(steps.messages[1]).args == (key + "next", {"card": MASK, "text": f"<{MASK}>", "key": key})
    assert jobs.seen[key + "last"] == [canary]
    assert jobs.seen[key + "child"] == [canary] * 2
    assert canary not in stored(running)


def test_keys_work_on_secrets_and_show_none(running, key, canary):
    send = running.jobs.keeps.send_with_options
    first = send(args=(key, canary), idempotency_key=key)

    again = send(args=(key, canary), idempotency_key=key)
    with pytest.raises(IdempotencyConflict) as refused:
        send(args=(key, canary + "x"), idempotency_key=key)

    assert (again.message_id, again.options["replayed"]) == (first.message_id, True)
    assert canary not in str(refused.value) + repr(again) + stored(running)


def test_a_debounced_secret_stays_sealed(running, key, canary):
    first = running.jobs.parked.send(key, "before")
    second = running.jobs.parked.send(key, canary)

    assert second.message_id == first.message_id
    assert canary not in repr(second) + stored(running)
    assert switchyard.cancel(first.message_id)


# What is stored is Postgres' business alone, also in the next one.
@pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)
@pytest.mark.parametrize("knows", [True, False], ids=["its actor is imported", "its actor is unknown"])
def test_a_job_that_is_changed_keeps_its_secret_sealed(running, key, canary, monkeypatch, knows):
    # Keys of arguments are changed where the actor is known, and are another matter.
    message = running.jobs.parked.send_with_options(args=(key, "before"), unique_key=None)
    if not knows:
        monkeypatch.delitem(running.broker.actors, "parked")
        monkeypatch.delitem(running.broker.seals._fields, "parked")

    def value():
        envelope = running.rows("SELECT payload FROM switchyard.job WHERE message_id = %s", message.message_id)[0][0]["args"][1]
        return running.broker.seals._keys.open("parked", "card", envelope)

    assert switchyard.edit(message.message_id, args=[key + "x", MASK])
    assert value() == "before"
    assert switchyard.edit(message.message_id, args=[key + "y", canary], priority=5)
    assert value() == canary
    assert switchyard.edit(message.message_id, priority=7)
    assert running.job(message).args == (key + "y", MASK)
    assert switchyard.cancel(message.message_id)
    assert switchyard.replay(message.message_id, args=[key + "z", MASK])
    assert value() == canary
    assert canary not in stored(running)
    assert switchyard.cancel(message.message_id)


@pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)
def test_a_secret_is_not_given_where_nobody_can_tell_that_it_is_one(running, key, canary, monkeypatch):
    message = running.jobs.parked.send(key=key, card="before")
    monkeypatch.delitem(running.broker.actors, "parked")
    monkeypatch.delitem(running.broker.seals._fields, "parked")

    with pytest.raises(PayloadError, match="actor 'parked', field 'card': is secret in this job"):
        switchyard.edit(message.message_id, args=[key, canary], kwargs={})

    assert canary not in stored(running)
    assert switchyard.cancel(message.message_id)


def test_a_send_repeated_under_its_id_is_the_same_send(running, key, canary):
    message = running.jobs.parked.message_with_options(args=(key, canary), unique_key=None)

    first = running.broker.enqueue(message)
    # As the one that an error carries, and as the application has it.
    again, once_more = running.broker.enqueue(first), running.broker.enqueue(message)

    assert again.message_id == once_more.message_id == first.message_id
    assert len(running.rows("SELECT 1 FROM switchyard.job WHERE message_id = %s", first.message_id)) == 1


def test_a_secret_in_the_callers_transaction_is_sealed(running, key, canary):
    with psycopg.connect(running.settings.database_url.get_secret_value()) as connection:
        with switchyard.enlist(connection):
            message = running.jobs.keeps.send(key, canary)
        connection.commit()

    assert running.ended(message).result == len(canary)
    assert canary not in stored(running)


def test_what_does_not_fit_is_refused_without_showing_it(running, key, canary):
    for value in ({canary: 1}, 5, [canary]):
        with pytest.raises(PayloadError) as refused:
            running.jobs.keeps.send(key, value)
        assert canary not in str(refused.value)


def test_a_value_that_cannot_be_opened_makes_the_job_dead_and_nothing_else(running, key, canary):
    first, second = running.jobs.parked.send(key, canary), running.jobs.parked.send(key + "b", "fine")
    running.rows(
        "UPDATE switchyard.job SET payload = replace(payload::text, %s, 'v1.00000000.')::json, actor = 'keeps', queue = 'default'"
        " WHERE message_id = %s RETURNING id",
        running.rows(
            "SELECT substring(payload::text from 'v1[.][0-9a-f]{8}[.]') FROM switchyard.job WHERE message_id = %s",
            first.message_id,
        )[0][0],
        first.message_id,
    )

    job = running.ended(first)

    assert (job.state, job.dead_reason, job.error_type) == (State.DEAD, "undecryptable", "SecretUnreadable")
    assert "actor 'keeps', secret argument 'card' cannot be decrypted" in job.error
    assert "SECRET_KEYS" in job.error
    assert key not in jobs.seen
    assert running.job(second).state is State.PENDING
    assert switchyard.cancel(second.message_id)


def test_without_a_key_nothing_is_stored(fresh, key, canary):
    system = fresh()
    system.close()
    system = System(system.settings, declare)
    try:
        with pytest.raises(OptionError, match="SECRET_KEYS"):
            system.jobs.keeps.send(key, canary)
        assert system.jobs.plain.send(key).message_id
        assert system.count() == 1
    finally:
        system.close()


def test_a_key_is_changed_while_jobs_wait(make_settings, key, canary):
    settings = make_settings(secret_keys=SecretStr(OLD))

    def system_with(keys):
        return System(settings.model_copy(update={"secret_keys": SecretStr(keys)}), declare)

    system = system_with(OLD)
    waiting, dead = system.jobs.parked.send(key, canary), system.jobs.parked.send(key + "b", canary)
    steps = pipeline(
        [system.jobs.plain.message("x"), system.jobs.parked.message_with_options(args=(key + "c", canary), pipe_ignore=True)]
    ).run()
    assert switchyard.cancel(dead.message_id)
    system.close()

    system = system_with(f"{NEW},{OLD}")
    fresh = system.jobs.parked.send(key + "d", canary)
    counted = rotate_secrets(system.settings, dry_run=True)
    done = rotate_secrets(system.settings)
    again = rotate_secrets(system.settings)
    assert (counted.looked_at, counted.rotated) == (4, 3)
    assert (done.rotated, done.missed, done.unreadable, done.running, again.rotated) == (3, 0, 0, 0, 0)
    system.close()

    # The old key is gone.
    system = system_with(NEW)
    try:
        assert rotate_secrets(system.settings).unreadable == 0
        assert switchyard.replay(dead.message_id)
        system.start(threads=2)
        for message in (waiting, dead, fresh):
            assert system.ended(message).state is State.COMPLETED
        wait_until(lambda: key + "c" in jobs.seen)
        assert jobs.seen[key] == jobs.seen[key + "b"] == jobs.seen[key + "c"] == jobs.seen[key + "d"] == [canary]
        assert steps is not None
    finally:
        system.close()


# The lines are ours and Dramatiq's, no broker's.
@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_workers_output_never_holds_a_secret_also_when_the_actor_logs_it(make_settings, tmp_path, key, canary, log_format):
    system = System(make_settings(secret_keys=SecretStr(OLD)), declare)
    workers = Workers(system.settings, tmp_path)
    try:
        messages = [
            getattr(system.jobs, name).send(key, canary) for name in ("breaks", "gives_up", "later", "tells", "completes")
        ]
        worker = workers("tests.conformance.secrets_worker", env={"LOG_LEVEL": "DEBUG", "LOG_FORMAT": log_format})
        for message in messages:
            system.ended(message, 60)

        assert worker.stop() == 0
        output = worker.log.read_text()
        assert "KeyError" in output, "the trace of the dead job is written"
        assert output.count(f"card {MASK}") >= 4
        assert canary not in output
    finally:
        workers.close()
        system.close()
