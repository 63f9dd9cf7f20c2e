"""Results that go to secret arguments: sealed from the moment that they leave the body that made them, on every broker."""

from __future__ import annotations

import uuid

import dramatiq
import pytest
from pydantic import SecretStr

import switchyard
from errors import OptionError, SecretUnreadable
from ledger.sealed import MASK, is_sealed, places_of
from ledger.states import State
from runtime.secrets import new_key
from switchyard import group, pipeline
from tests.conformance import jobs
from tests.conformance.secret_jobs import declare, made
from tests.conformance.system import System
from tests.conformance.test_secrets import stored
from tests.rig.waiting import wait_until

KEY = new_key()


@pytest.fixture(scope="module")
def running(make_settings):
    system = System(make_settings(secret_keys=SecretStr(KEY)), declare)
    system.start(threads=4, queues=set(system.broker.queues) - {"parked"})
    yield system
    system.close()


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def system_with(make_settings):
    """Makes one system after the other on one ledger, each in the place of the one before."""
    settings, made_ = make_settings(secret_keys=SecretStr(KEY)), []

    def make(keys=KEY):
        for before in made_:
            before.close()
        secret_keys = None if keys is None else SecretStr(keys)
        made_[:] = [System(settings.model_copy(update={"secret_keys": secret_keys}), declare)]
        return made_[0]

    yield make
    for before in made_:
        before.close()


def raw(system, message, column):
    return system.rows(f"SELECT {column} FROM switchyard.job WHERE message_id = %s", message.message_id)[0][0]  # noqa: S608


@pytest.mark.parametrize("maker", ["makes", "makes_unstored", "makes_within"])
def test_a_result_that_goes_to_a_secret_argument_is_stored_nowhere(running, key, maker):
    pipe = pipeline([getattr(running.jobs, maker).message(key), running.jobs.keeps.message(key)]).run()

    assert pipe.get_result(block=True) == 64
    maker_, step = (running.ended(message) for message in pipe.messages)
    assert jobs.seen[key] == [made(key)]
    assert made(key) not in stored(running)
    assert (step.args, maker_.result) == ((key, MASK), None if maker == "makes_unstored" else MASK)
    assert places_of(raw(running, pipe.messages[1], "payload")["args"][1]) == [("keeps", "card")]


def test_whoever_has_the_keys_gets_the_result(running, key):
    pipe = pipeline([running.jobs.makes.message(key), running.jobs.keeps.message(key)]).run()

    assert list(pipe.get_results(block=True)) == [made(key), 64]
    assert [job.result for job in switchyard.list_jobs(actor="makes", limit=1).jobs] == [MASK]


def test_a_stock_pipeline_keeps_it_as_well(running, key):
    pipe = (running.jobs.makes.message(key) | running.jobs.keeps.message(key)).run()

    wait_until(lambda: jobs.seen.get(key) == [made(key)], 20)
    assert running.ended(pipe.messages[0]).result == MASK
    assert pipe.get_result(block=True) == 64
    assert made(key) not in stored(running)


# What is stored is Postgres' business alone, also in the next one.
@pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)
def test_a_worker_that_does_not_know_who_follows_keeps_it_too(system_with, key):
    sender = system_with()
    stock = (sender.jobs.makes.message(key) | sender.jobs.keeps.message(key)).run()
    sent = sender.jobs.makes.send_with_options(args=(key + "c",), on_success="after_secretly")
    worker = system_with()
    for name in ("keeps", "after_secretly"):
        del worker.broker.actors[name]
        del worker.broker.seals._fields[name]

    worker.start(threads=2)
    for message in (stock.messages[0], sent):
        assert worker.ended(message).result == MASK
    found = stored(worker)
    system_with().start(threads=2)

    wait_until(lambda: jobs.seen.get(key) == [made(key)], 20)
    wait_until(lambda: jobs.seen.get(f"after {sent.message_id}") == [made(key + "c")], 20)
    assert made(key) not in found
    assert made(key + "c") not in found


def test_a_list_of_results_is_sealed_result_by_result(running, key):
    makes = running.jobs.makes.message
    inner = group([makes(key + "c"), makes(key + "d")])
    steps = group([makes(key + "a"), running.jobs.plain.message(key + "x") | makes(key + "b"), inner])
    steps.children[1].messages[1] = running.jobs.makes.message_with_options(args=(key + "b",), pipe_ignore=True)
    pipe = pipeline([steps, running.jobs.gathers.message(key)]).run()

    assert pipe.get_result(block=True) == 3
    wanted = [made(key + "a"), made(key + "b"), [made(key + "c"), made(key + "d")]]
    assert jobs.seen[key] == [wanted]
    assert not [one for one in "abcd" if made(key + one) in stored(running)]
    assert running.job(pipe.messages[1]).args == (key, [MASK, MASK, [MASK, MASK]])
    assert list(pipe.get_results(block=True)) == [wanted, 3]


def test_a_result_goes_to_several_secret_arguments(running, key):
    steps = group([running.jobs.keeps.message(key), running.jobs.uses.message(key, "note"), running.jobs.keeps.message(key)])
    pipe = pipeline([group([running.jobs.makes.message(key)]), running.jobs.gathers.message(key + "g")]).run()
    several = pipeline([running.jobs.makes.message(key), steps]).run()

    assert several.get_result(block=True) == [64, "note", 64]
    assert pipe.get_result(block=True) == 1
    assert jobs.seen[key] == [made(key)] * 3
    assert places_of(raw(running, several.messages[0], "result")) == [("keeps", "card"), ("uses", "token")]
    assert made(key) not in stored(running)


def test_a_step_that_dies_of_it_is_replayed_with_it_and_tells_nothing(running, key):
    pipe = pipeline([running.jobs.makes.message(key), running.jobs.trips.message(key)]).run()
    wait_until(lambda: running.job(pipe.messages[1]).state is State.DEAD, 20)
    job = running.job(pipe.messages[1])
    assert (job.error, job.args) == (f"no card {MASK}", (key, MASK))

    assert switchyard.replay(job.id)

    running.until(pipe.messages[1], lambda job: job.state is State.COMPLETED)
    assert jobs.seen[key] == [made(key)] * 2
    assert made(key) not in stored(running)


def test_a_callback_keeps_it_secret_or_gets_the_mask(running, key):
    secretly = running.jobs.makes.send_with_options(args=(key,), on_success="after_secretly")
    both = running.jobs.makes.message_with_options(args=(key + "b",), on_success="after_openly")
    pipe = pipeline([both, running.jobs.keeps.message(key + "b")]).run()

    wait_until(lambda: jobs.seen.get(f"after {secretly.message_id}") == [made(key)], 20)
    assert pipe.get_result(block=True) == 64
    wait_until(lambda: jobs.seen.get(f"after {pipe.messages[0].message_id}") == [MASK], 20)
    assert running.job(secretly).result == MASK
    assert secretly.get_result() == made(key)
    assert not [one for one in (key, key + "b") if made(one) in stored(running)]


def test_a_step_that_would_store_it_for_all_to_read_is_refused(running, key):
    makes, keeps, plain = (getattr(running.jobs, name) for name in ("makes", "keeps", "plain"))
    mixed = pipeline([makes.message(key), group([keeps.message(key), plain.message(key)])])
    called = pipeline([makes.message_with_options(args=(key,), on_success="after_secretly"), plain.message(key)])
    stock = makes.message_with_options(args=(key,), on_success="after_secretly") | plain.message(key)
    before = running.count()

    for pipe, taker in ((mixed, "keeps"), (called, "after_secretly"), (stock, "after_secretly")):
        with pytest.raises(OptionError, match=rf"actor 'plain', option 'secret': .* of '{taker}'.*pipe_ignore=True"):
            pipe.run()

    assert running.count() == before
    ignoring = plain.message_with_options(args=(key,), pipe_ignore=True)
    assert pipeline([makes.message(key), group([keeps.message(key), ignoring])]).run().get_result(block=True) == [64, key]
    assert made(key) not in stored(running)


def test_a_workflow_that_was_run_is_run_again_as_part_of_another(running, key):
    message = running.jobs.makes.message(key)
    pipeline([message, running.jobs.keeps.message(key)])
    first = pipeline([message.copy(options={"secret_for": [["keeps", "card"]]}), running.jobs.plain.message(key)]).run()

    assert first.get_result(block=True) == key
    assert running.job(first.messages[1]).args == (key, made(key))


def test_what_does_not_fit_a_secret_argument_is_dead_with_the_reason(running, key):
    pipe = pipeline([running.jobs.makes.message(key), running.jobs.counts.message(key)]).run()

    wait_until(lambda: running.job(pipe.messages[1]).state is State.DEAD, 20)
    job = running.job(pipe.messages[1])
    assert (job.dead_reason, job.error_type) == ("permanent", "PayloadMisfit")
    assert "actor 'counts', field 'pin'" in job.error
    assert key not in jobs.seen
    assert made(key) not in stored(running)


def test_an_edit_keeps_a_list_of_results_that_it_shows_masked(running, key):
    parked = group([running.jobs.makes.message(key), running.jobs.makes.message(key + "b")])
    pipe = pipeline([parked, running.jobs.gathers.message_with_options(args=(key,), delay=600_000)]).run()
    running.until(pipe.messages[1], lambda job: job.wait_reason is None and len(job.args) == 2)

    assert switchyard.edit(pipe.messages[1].message_id, args=[key + "x", [MASK, MASK]], delay=0)

    assert pipe.get_result(block=True) == 2
    assert jobs.seen[key + "x"] == [[made(key), made(key + "b")]]
    assert made(key) not in stored(running)


def test_the_callbacks_of_a_stock_group_are_sealed_in_its_children(running, key):
    canary = f"canary-{key}"
    stock = dramatiq.group([running.jobs.plain.message(key), running.jobs.plain.message(key)])
    stock.add_completion_callback(running.jobs.keeps.message(key, canary))

    stock.run()

    wait_until(lambda: jobs.seen.get(key) == [canary], 20)
    (callback,) = raw(running, stock.children[0], "options")["group_completion_callbacks"]
    assert is_sealed(callback["args"][1])
    assert canary not in stored(running)


@pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)
def test_a_worker_without_keys_stores_no_result_that_is_secret(system_with, key):
    sender = system_with()
    pipe = pipeline([sender.jobs.makes.message(key), sender.jobs.keeps.message(key)]).run()
    keyless = system_with(None).start(threads=2)

    job = keyless.ended(pipe.messages[0])

    assert (job.state, job.dead_reason, job.result) == (State.DEAD, "result_unstorable", None)
    assert "SECRET_KEYS" in job.error
    assert keyless.job(pipe.messages[1]).wait_reason == "upstream"
    assert made(key) not in stored(keyless)
    system_with().start(threads=2)
    assert switchyard.replay(job.id)
    assert pipe.get_result(block=True) == 64


@pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)
def test_a_result_that_no_key_opens_is_told(system_with, key):
    system = system_with().start(threads=2)
    pipe = pipeline([system.jobs.makes.message(key), system.jobs.keeps.message(key)]).run()
    assert pipe.get_result(block=True) == 64
    reader = system_with(new_key())

    with pytest.raises(SecretUnreadable, match="add that key"):
        reader.broker.get_results_backend().get_result(pipe.messages[0])

    assert switchyard.get_job(pipe.messages[0].message_id).result == MASK
