"""Dead letters: each way to death gives its reason, nothing is lost or doubled on the way back, and everybody hears of a death once."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from itertools import pairwise
from typing import Any
from uuid import uuid4

import dramatiq
import pika
import psycopg
import pytest
import redis

import switchyard
from brokers.postgres import DEAD_CHANNEL
from brokers.rabbitmq_dead_letters import dead_queue
from brokers.redis import dead_key
from errors import JobNotFound, OptionError, PayloadError
from ledger import write
from ledger.states import State
from settings import Settings
from tests.conformance import jobs
from tests.conformance.dead_letter_jobs import declare
from tests.conformance.system import System
from tests.rig.waiting import wait_until


class Watched(System):
    """A system, and somebody who watches its broker's own dead-letter place."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, declare=declare)
        self.told: list[dict[str, Any]] = []
        self.listener = psycopg.connect(settings.database_url.get_secret_value(), autocommit=True)
        self.listener.execute(f"LISTEN {DEAD_CHANNEL}".encode())

    def close(self) -> None:
        self.listener.close()
        super().close()


@pytest.fixture(scope="module")
def system(make_settings):
    found = Watched(make_settings(unknown_actor_after=0.5))
    found.start(queues={queue for queue in found.broker.queues if queue != "parked"})
    yield found
    found.close()


def place(system: Watched) -> Counter[str]:
    """The ids in the broker's own dead-letter place, with how often each is there."""
    return Counter(entry["id"] for entry in entries(system))


def entries(system: Watched) -> list[dict[str, Any]]:
    settings = system.settings
    if settings.broker == "redis":
        with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
            return [json.loads(text) for text in client.zrange(dead_key(settings.broker_prefix), 0, -1)]
    if settings.broker == "rabbitmq":
        connection = pika.BlockingConnection(pika.URLParameters(settings.rabbitmq_url.get_secret_value()))
        channel = connection.channel()
        found = []
        # Not acknowledged, so they go back when the connection closes.
        while (got := channel.basic_get(dead_queue(settings.broker_prefix)))[0] is not None:
            assert got[1].message_id == f"{json.loads(got[2])['id']}:{json.loads(got[2])['generation']}"
            found.append(json.loads(got[2]))
        connection.close()
        return found
    system.told += [json.loads(notification.payload) for notification in system.listener.notifies(timeout=0.05)]
    return system.told


def in_place(system: Watched, *ids: str) -> list[dict[str, Any]]:
    """What the place has of these jobs, once every death has been told."""
    wait_until(lambda: not untold(system), 30, "every death is told")
    wait_until(lambda: set(ids) <= place(system).keys(), 30, lambda: f"{ids} arrive: {place(system)}")
    return [entry for entry in entries(system) if entry["id"] in ids]


def untold(system: Watched) -> list[tuple[Any, ...]]:
    """The deaths that are still to be told."""
    return system.rows("SELECT consumer, message_id FROM switchyard.dead_notice")


def lose(system, message) -> None:
    """Let a worker that is gone have started the job."""
    (id_,) = system.rows("SELECT id FROM switchyard.job WHERE message_id = %s", message.message_id)[0]
    token = str(uuid4())

    def hold(connection):
        (job,) = write.claim_by_id(connection, [id_], actors=["parked"], worker="gone", token=token, lease=0.0)
        assert write.record_start(connection, job.id, token, 0.0)

    system.database.run(hold)


def die(system, way):
    """A job that dies in one of the ways, and the reason that it has to have."""
    if way == "unknown_actor":
        message = dramatiq.Message("default", "nobody_knows_me", (), {}, {"on_dead": "hook"})
        system.broker.enqueue(message)
    elif way == "worker_lost":
        message = system.jobs.parked.send()
        lose(system, message)
    elif way == "expired":
        message = system.jobs.parked.send_with_options(max_age=20)
    elif way == "late":
        message = system.jobs.permanent.send_with_options(max_age=20, delay=100)
    else:
        actor = {"max_retries": "fails_twice", "time_limit": "too_slow", "result_unstorable": "unstorable"}.get(way, way)
        message = getattr(system.jobs, actor).send()
    return message


REASONS = {
    "max_retries": ("max_retries", "ValueError", ["failed", "failed"]),
    "permanent": ("permanent", "Permanent", ["failed"]),
    "time_limit": ("time_limit", "TimeLimitExceeded", ["failed"]),
    "result_unstorable": ("result_unstorable", "ResultUnstorable", ["failed"]),
    "worker_lost": ("worker_lost", "WorkerLost", ["lost"]),
    "expired": ("expired", "Expired", []),
    "late": ("expired", "Expired", None),
    "unknown_actor": ("unknown_actor", "ActorNotFound", []),
}


def test_each_way_to_death_has_its_reason_and_everything_is_on_view(system):
    messages = {way: die(system, way) for way in REASONS}

    ended = {way: system.ended(message, 60) for way, message in messages.items()}

    for way, (reason, error_type, outcomes) in REASONS.items():
        job = ended[way]
        assert (job.state, job.dead_reason, job.error_type) == (State.DEAD, reason, error_type), way
        assert job.error, way
        assert len(job.fingerprint) == 16, way
        found = [letter for letter in switchyard.dead_letters(reason=reason, limit=200).letters if letter.id == job.id]
        assert [letter.job for letter in found] == [job], way
        if outcomes is not None:
            assert [attempt.outcome for attempt in system.attempts_of(job)] == outcomes, way
        if way in ("max_retries", "permanent", "time_limit"):
            assert f"{error_type}" in found[0].traceback, way
    told = {entry["id"]: entry for entry in in_place(system, *(job.id for job in ended.values()))}
    for job in ended.values():
        entry = told[job.id]
        assert (entry["actor"], entry["queue"], entry["reason"]) == (job.actor, job.queue, job.dead_reason)
        assert (entry["error_type"], entry["fingerprint"], entry["attempts"]) == (job.error_type, job.fingerprint, job.attempt)
        assert datetime.fromisoformat(entry["died_at"]) == job.finished_at
        assert "args" not in json.dumps(entry)
    assert max(place(system).values()) == 1


@pytest.mark.parametrize("way", ["fails", "worker_lost", "expired", "unknown_actor"])
def test_a_hook_runs_once_whoever_saw_the_death(system, way):
    message = die(system, way)

    job = system.ended(message, 60)

    wait_until(lambda: jobs.runs[f"hook {job.id}"], 30, "the hook runs")
    (letter,) = jobs.seen[f"hook {job.id}"]
    assert (letter["id"], letter["actor"], letter["reason"]) == (job.id, job.actor, job.dead_reason)
    assert (letter["error"], letter["fingerprint"], letter["generation"]) == (job.error, job.fingerprint, 1)
    assert system.rows("SELECT count(*) FROM switchyard.job WHERE actor = 'hook' AND parent_id = %s", job.id) == [(1,)]


def test_a_replay_that_dies_again_is_another_death(system):
    message = system.jobs.fails_twice.send_with_options(on_dead="hook")
    first = system.ended(message)
    wait_until(lambda: jobs.runs[f"hook {first.id}"], 30, "the hook runs")

    assert switchyard.replay(first.id) is True
    second = system.until(message, lambda job: job.generation == 2 and job.state is State.DEAD)

    wait_until(lambda: jobs.runs[f"hook {first.id}"] == 2, 30, "the hook runs again")
    assert [letter["generation"] for letter in jobs.seen[f"hook {first.id}"]] == [1, 2]
    assert (second.attempt, second.failures, second.fingerprint) == (2, 2, first.fingerprint)
    assert [(a.generation, a.attempt) for a in system.attempts(message)] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [entry["id"] for entry in in_place(system, first.id)] == [first.id] * 2


def test_a_message_may_do_without_its_actors_hook_or_have_another(system):
    silent = system.jobs.fails.send_with_options(on_dead=None)
    other = system.jobs.always_fails.send_with_options(on_dead=system.jobs.hook)

    system.ended(silent)
    system.ended(other)

    wait_until(lambda: jobs.runs[f"hook {other.message_id}"], 30, "the hook runs")
    wait_until(lambda: not untold(system), 30, "every death is told")
    assert not jobs.runs[f"hook {silent.message_id}"]


@pytest.mark.parametrize("value", ["", 7, "nobody_knows_me"])
def test_nonsense_for_a_hook_is_refused_at_the_send(system, value):
    before = system.count()

    with pytest.raises(OptionError, match=r"'fails'.*'on_dead'"):
        system.jobs.fails.send_with_options(on_dead=value)

    assert system.count() == before


@pytest.mark.parametrize("value", ["", 7, "itself"])
def test_nonsense_for_a_hook_is_refused_when_the_actor_is_declared(system, value):
    declare_it = dramatiq.actor(actor_name="itself", broker=system.broker, on_dead=value)

    with pytest.raises(OptionError, match=r"'itself'.*'on_dead'"):
        declare_it(lambda: None)


def test_failures_of_one_kind_are_one_group(system):
    same = [system.ended(system.jobs.always_fails.send(f"order {n} of 'customer {n}' at 0x{n:x}ff")) for n in (1, 22, 333)]
    other = system.ended(system.jobs.always_fails.send("something else"))
    elsewhere = system.ended(system.jobs.fails.send("order 1 of 'customer 1' at 0x1ff"))

    (group,) = switchyard.dead_groups(fingerprint=same[0].fingerprint)

    assert {job.fingerprint for job in same} == {group.fingerprint}
    assert len({group.fingerprint, other.fingerprint, elsewhere.fingerprint}) == 3
    assert (group.count, group.actor, group.reason, group.error_type) == (3, "always_fails", "max_retries", "LookupError")
    assert (group.first_at, group.last_at) == (same[0].finished_at, same[-1].finished_at)
    assert (group.example, group.error) == (same[-1].id, same[-1].error)
    assert {letter.id for letter in switchyard.dead_letters(fingerprint=group.fingerprint).letters} == {job.id for job in same}


def test_one_is_replayed_edited_and_to_another_queue(system):
    plain, edited, moved = (system.ended(system.jobs.fails.send("first")) for _ in range(3))

    assert switchyard.replay(plain.id)
    assert switchyard.replay(edited.id, args=["second"], kwargs={"good": True})
    assert switchyard.replay(moved.id, to_queue="parked")

    done = [system.until(job.id, lambda job: job.state is State.COMPLETED) for job in (plain, edited)]
    assert [job.result for job in done] == ["first", "second"]
    assert [(job.generation, job.attempt, job.failures, job.fingerprint) for job in done] == [(2, 1, 0, None)] * 2
    assert done[1].args == ("second",)
    waits = system.job(moved.id)
    assert (waits.state, waits.queue) == (State.PENDING, "parked")
    assert [a.outcome for a in system.attempts_of(plain)] == ["failed", "completed"]


def test_an_edited_payload_is_checked_like_a_send(system):
    job = system.ended(system.jobs.fails.send())

    with pytest.raises(PayloadError, match="'text'"):
        switchyard.replay(job.id, args=[7])
    with pytest.raises(PayloadError, match="'nothing'"):
        switchyard.replay(job.id, kwargs={"nothing": 1})
    with pytest.raises(PayloadError):
        switchyard.replay(job.id, args=["x" * 1_000_000])
    with pytest.raises(ValueError, match="no name of a queue"):
        switchyard.replay(job.id, to_queue="no queue")

    assert system.job(job.id) == job


def test_what_is_not_dead_is_not_replayed_and_says_why(system):
    done = system.ended(system.jobs.fails.send(good=True))

    said = switchyard.try_replay(done.id)

    assert (said.done, said.refused, said.holder) == (False, "it is completed; only a dead or cancelled job is replayed", None)
    with pytest.raises(JobNotFound):
        switchyard.replay(str(uuid4()))


def test_a_whole_group_is_replayed_at_once(system):
    dead = [system.ended(system.jobs.fails.send(f"group {n}")) for n in range(5)]
    (kind,) = {job.fingerprint for job in dead}

    counted = switchyard.replay_many(fingerprint=kind, dry_run=True)
    done = switchyard.replay_many(fingerprint=kind)

    matched = counted.matched
    assert (counted.replayed, done.matched, done.replayed, done.left) == (0, matched, matched, 0)
    assert {system.until(job.id, lambda job: job.state is State.COMPLETED).result for job in dead} == {
        f"group {n}" for n in range(5)
    }
    assert switchyard.replay_many(fingerprint=kind) == switchyard.Replays(matched=0)


def test_a_throttled_replay_keeps_its_rate_and_none_starts_before_its_time(system):
    sent = switchyard.enqueue_many([system.jobs.fails.message(f"throttled {n}") for n in range(60)])
    for message in sent:
        system.ended(message)

    done = switchyard.replay_many(search="throttled", actor="fails", rate="50/s")

    assert (done.matched, done.replayed) == (60, 60)
    ended = [system.until(message, lambda job: job.state is State.COMPLETED, 60) for message in sent]
    due = sorted(job.run_at for job in ended)
    assert done.last_due == due[-1]
    assert {round((after - before).total_seconds(), 4) for before, after in pairwise(due)} == {0.02}
    assert all(job.started_at >= job.run_at for job in ended)
    assert {jobs.runs[f"ran {message.message_id}"] for message in sent} == {2}


def test_what_is_discarded_is_gone_with_its_history(system):
    dead = system.ended(system.jobs.fails.send("discard me"))
    cancelled = system.jobs.parked.send()
    assert switchyard.cancel(cancelled.message_id)
    done = system.ended(system.jobs.fails.send(good=True))
    (row,) = system.rows("SELECT id FROM switchyard.job WHERE message_id = %s", dead.id)

    assert [switchyard.discard(id_) for id_ in (dead.id, cancelled.message_id, done.id)] == [True, True, False]

    assert [switchyard.get_job(id_) is None for id_ in (dead.id, cancelled.message_id, done.id)] == [True, True, False]
    assert system.rows("SELECT 1 FROM switchyard.attempt WHERE job_id = %s", row[0]) == []
    with pytest.raises(JobNotFound):
        switchyard.discard(dead.id)


def test_many_are_discarded_by_filter_after_a_dry_run(system):
    dead = [system.ended(system.jobs.always_fails.send(f"rubbish {n}")) for n in range(3)]
    kept = system.ended(system.jobs.always_fails.send("treasure"))

    assert switchyard.discard_many(search="RUBBISH", dry_run=True) == switchyard.Discards(matched=3)
    assert switchyard.discard_many(search="RUBBISH") == switchyard.Discards(matched=3, discarded=3)

    assert [switchyard.get_job(job.id) for job in dead] == [None] * 3
    assert system.job(kept.id) == kept


def test_the_callback_for_spent_retries_is_called_by_each_generation(system):
    message = system.jobs.exhausts.send()
    system.ended(message)

    assert switchyard.replay(message)
    system.until(message, lambda job: job.generation == 2 and job.state is State.DEAD)

    key = f"exhausted {message.message_id}"
    wait_until(lambda: jobs.runs[key] == 2, 30, "the callback runs")
    assert jobs.seen[key] == [{"retries": 1, "max_retries": 1}] * 2
