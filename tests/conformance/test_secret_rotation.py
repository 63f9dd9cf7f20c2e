"""A change of the key: whatever the ledger holds under the old one is found, and nothing needs that key afterwards."""

from __future__ import annotations

import uuid
from itertools import count

import dramatiq
import psycopg
import pytest
from pydantic import SecretStr

import switchyard
from control import secrets_rotation
from control.secrets_rotation import rotate_secrets
from errors import IdempotencyConflict
from ledger import batches, write
from ledger.sealed import sealed_values
from ledger.states import State
from runtime.secrets import new_key
from switchyard import group, pipeline
from tests.conformance import jobs
from tests.conformance.secret_jobs import declare, made
from tests.conformance.system import System
from tests.conformance.test_secrets import stored
from tests.ledger.blocking import Meanwhile
from tests.rig.waiting import wait_until

OLD, NEW = new_key(), new_key()
BOTH = f"{NEW},{OLD}"

# What is stored is Postgres' business alone.
pytestmark = pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def system_with(make_settings):
    """Makes one system after the other on one ledger, each in the place of the one before."""
    settings, made_ = make_settings(secret_keys=SecretStr(OLD)), []

    def make(keys):
        for before in made_:
            before.close()
        made_[:] = [System(settings.model_copy(update={"secret_keys": SecretStr(keys)}), declare)]
        return made_[0]

    yield make
    for before in made_:
        before.close()


def key_id(system, message) -> str:
    """Which key sealed a job's arguments."""
    (payload,) = system.rows("SELECT payload FROM switchyard.job WHERE message_id = %s", message.message_id)[0]
    (envelope,) = sealed_values(payload)
    return str(envelope["$secret"]).split(".")[1]


def rotated(system):
    """Rotate; nothing is left, also for a second look."""
    found = rotate_secrets(system.settings)
    again = rotate_secrets(system.settings)
    assert found.is_complete
    assert (again.is_complete, again.rotated, again.batches_rotated, again.keys_rotated) == (True, 0, 0, 0)
    return found


def test_callbacks_of_batches_are_sent_after_the_old_key_is_gone(system_with, key):
    system = system_with(OLD)
    waits, keeps = system.jobs.waits.message, system.jobs.keeps.message
    children = group(
        [waits(key, "4111"), waits(key, "4112")],
        on_complete=[keeps(key + "c", "c1"), keeps(key + "c", "c2")],
        on_success=keeps(key + "s", "s1"),
        on_death=keeps(key + "d", "d1"),
    ).run()
    stock = dramatiq.group([waits(key + "x", "4113")])
    stock.add_completion_callback(keeps(key + "y", "y1"))
    stock.run()
    old = key_id(system, children.children[0])
    assert f"v1.{old}." in stored(system)

    found = rotated(system_with(BOTH))

    assert (found.looked_at, found.rotated, found.batches, found.batches_rotated) == (3, 3, 2, 2)
    system = system_with(NEW)
    assert f"v1.{old}." not in stored(system)
    system.start(threads=2)
    wait_until(lambda: sorted(jobs.seen.get(key + "c", [])) == ["c1", "c2"], 20)
    wait_until(lambda: (jobs.seen.get(key + "s"), jobs.seen.get(key + "y")) == (["s1"], ["y1"]), 20)
    assert key + "d" not in jobs.seen


def test_results_and_steps_that_were_given_them_are_read_after_the_old_key_is_gone(system_with, key):
    system = system_with(OLD)
    first = group([system.jobs.makes.message(key), system.jobs.parked.message(key + "p", "4111")])
    pipe = pipeline([first, system.jobs.gathers.message(key)]).run()
    late = pipeline([system.jobs.makes.message(key), system.jobs.keeps.message_with_options(args=(key + "k",), delay=600_000)])
    late.run()
    system.start(threads=2, queues={"default"})
    system.ended(first.children[0])
    system.until(late.messages[1], lambda job: job.wait_reason is None and len(job.args) == 2)
    system.stop()

    found = rotated(system_with(BOTH))

    # What waits, what was given a result, and the two results.
    assert (found.looked_at, found.rotated) == (4, 4)
    system = system_with(NEW)
    assert late.messages[0].get_result(backend=system.broker.get_results_backend()) == made(key)
    assert switchyard.edit(late.messages[1].message_id, delay=0)
    system.start(threads=2)
    wait_until(lambda: jobs.seen.get(key) == [[made(key), None]], 20)
    wait_until(lambda: jobs.seen.get(key + "k") == [made(key)], 20)
    assert system.ended(pipe.messages[1]).state is State.COMPLETED


# Its result is a secret, too.
@pytest.mark.parametrize(("run_with", "stale"), [(OLD, 2), (BOTH, 1)], ids=["under the old key", "under the new one"])
def test_what_is_sealed_within_something_sealed_is_found(system_with, key, run_with, stale):
    system = system_with(OLD)
    sent = system.jobs.keeps.send_with_options(args=(key, "4111"), on_success="after_all_secretly")
    old = key_id(system, sent)
    system = system_with(run_with)
    system.start(threads=2, queues={"default"})
    system.ended(sent)
    system.stop()

    assert rotated(system_with(BOTH)).rotated == stale

    system = system_with(NEW)
    system.start(threads=2)
    wait_until(lambda: f"after {sent.message_id}" in jobs.seen, 20)
    ((_, envelope),) = jobs.seen[f"after {sent.message_id}"]
    assert envelope["$secret"].split(".")[1] != old
    assert system.broker.seals._keys.open("keeps", "card", envelope) == "4111"


def test_a_key_of_a_send_is_known_after_the_old_key_is_gone(system_with, key):
    system = system_with(OLD)
    follower = system.jobs.waits.message(key, "4112")
    options = {"idempotency_key": key, "pipe_target": follower.asdict(), "pipe_ignore": True}
    first = system.jobs.waits.send_with_options(args=(key, "4111"), **options)
    system.jobs.plain.send_with_options(args=(key,), idempotency_key=key)

    found = rotated(system_with(BOTH))

    assert (found.keys, found.keys_rotated, found.keys_left) == (2, 2, 0)
    system = system_with(NEW)
    again = system.jobs.waits.send_with_options(args=(key, "4111"), **options)
    assert (again.message_id, again.options["replayed"]) == (first.message_id, True)
    with pytest.raises(IdempotencyConflict):
        system.jobs.waits.send_with_options(args=(key, "4113"), **options)


def test_a_key_whose_job_was_changed_is_counted_as_left(system_with, key):
    system = system_with(OLD)
    sent = system.jobs.waits.send_with_options(args=(key, "4111"), idempotency_key=key)
    assert switchyard.edit(sent.message_id, args=[key, "4112"])

    found = rotate_secrets(system_with(BOTH).settings)

    assert (found.keys, found.keys_rotated, found.keys_left, found.is_complete) == (1, 0, 1, False)
    assert rotate_secrets(system_with(NEW).settings).keys_left == 0


def claimed(system, message) -> tuple[int, str]:
    """Claim a job as a worker does, and leave it running."""
    token = str(uuid.uuid4())
    ((id_,),) = system.rows("SELECT id FROM switchyard.job WHERE message_id = %s", message.message_id)
    took = system.database.run(
        lambda c: write.claim_by_id(c, [id_], actors=[message.actor_name], worker="w1", token=token, lease=60.0)
    )
    assert len(took) == 1
    return id_, token


def test_a_job_that_runs_is_left_and_counted(system_with, key):
    sent = system_with(OLD).jobs.waits.send(key, "4111")
    system = system_with(BOTH)
    claim = claimed(system, sent)

    dry, found = rotate_secrets(system.settings, dry_run=True), rotate_secrets(system.settings)

    assert (dry.running, found.running, found.rotated, found.missed, found.is_complete) == (1, 1, 0, 0, False)
    system.database.run(lambda c: write.release_unstarted(c, [claim]))
    assert rotated(system).rotated == 1


def test_a_job_that_ran_when_the_walk_passed_it_and_waits_again_is_found(system_with, key):
    sent = system_with(OLD).jobs.waits.send(key, "4111")
    system = system_with(BOTH)
    claim, pages = claimed(system, sent), count(1)

    def give_back(_):
        # After the page of batches and that of jobs: behind the walk.
        if next(pages) == 2:
            assert system.database.run(lambda c: write.release_unstarted(c, [claim])) == {claim[0]}

    found = rotate_secrets(system.settings, progress=give_back)

    assert next(pages) > 4
    assert (found.rotated, found.running, found.missed, found.is_complete) == (1, 0, 0, True)


def test_a_job_that_is_changed_while_it_is_rotated_is_not_changed_back(system_with, key):
    sent = system_with(OLD).jobs.waits.send(key, "4111")
    system = system_with(BOTH)
    url = system.settings.database_url.get_secret_value()
    with psycopg.connect(url) as other, psycopg.connect(url, autocommit=True) as onlooker:
        other.execute("UPDATE switchyard.job SET payload = replace(payload::text, %s, %s)::json", [key, key + "x"])
        rotating = Meanwhile(lambda: rotate_secrets(system.settings))
        wait_until(lambda: waiting(onlooker), 20, "the rotation waits for the row")
        other.commit()
        found = rotating.result(20)

    assert (found.rotated, found.missed) == (1, 0)
    assert system.job(sent).args[0] == key + "x"
    assert rotated(system).rotated == 0


def test_a_job_that_is_claimed_while_it_is_rotated_is_left(system_with, key):
    sent = system_with(OLD).jobs.waits.send(key, "4111")
    system = system_with(BOTH)
    url = system.settings.database_url.get_secret_value()
    ((id_,),) = system.rows("SELECT id FROM switchyard.job")
    with psycopg.connect(url) as worker, psycopg.connect(url, autocommit=True) as onlooker:
        assert write.claim_by_id(worker, [id_], actors=["waits"], worker="w1", token=str(uuid.uuid4()), lease=60.0)
        rotating = Meanwhile(lambda: rotate_secrets(system.settings))
        wait_until(lambda: waiting(onlooker), 20, "the rotation waits for the row")
        worker.commit()
        found = rotating.result(20)

    assert (found.rotated, found.running, found.missed) == (0, 1, 0)
    assert system.job(sent).state is State.RUNNING


def waiting(onlooker) -> bool:
    rows = onlooker.execute("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')").fetchall()
    return bool(rows)


def test_what_a_batch_sends_while_it_is_rotated_is_found_among_the_jobs(system_with, key, monkeypatch):
    # In the one walk: batches come before jobs.
    monkeypatch.setattr(secrets_rotation, "ROUNDS", 1)
    system = system_with(OLD)
    children = group([system.jobs.plain.message(key)], on_complete=system.jobs.keeps.message(key, "4111")).run()
    assert switchyard.cancel(children.children[0].message_id)
    system = system_with(BOTH)
    url = system.settings.database_url.get_secret_value()
    with psycopg.connect(url, autocommit=True) as closer, psycopg.connect(url, autocommit=True) as onlooker:
        with closer.transaction():
            assert batches.close(closer, [children.id])
            rotating = Meanwhile(lambda: rotate_secrets(system.settings))
            wait_until(lambda: waiting(onlooker), 20, "the rotation waits for the batch")
        found = rotating.result(20)

    assert (found.batches_rotated, found.rotated, found.is_complete) == (1, 1, True)
    assert rotated(system).looked_at == 1
