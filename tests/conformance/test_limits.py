"""Limits on every broker, with real workers: rates, slots, queues, turns."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from dramatiq import Broker

import switchyard
from errors import OptionError
from ledger.states import State
from tests.conformance.system import System
from tests.rig.waiting import wait_until


class Log:
    """What bodies did, in this process: how many ran at once, by key, and when each began."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: dict[str, list[str]] = {}
        self.gates: dict[str, threading.Event] = {}

    def open(self, key: str) -> None:
        """Let those go on that wait."""
        with self.lock:
            self.gates.setdefault(key, threading.Event()).set()

    def __call__(self, key: str, label: str = "", *, wait: bool = False) -> None:
        with self.lock:
            self.running[key] += 1
            self.most[key] = max(self.most[key], self.running[key])
            self.order.setdefault(key, []).append(label)
            gate = self.gates.setdefault(key, threading.Event())
        if wait:
            assert gate.wait(30)
        with self.lock:
            self.running[key] -= 1


log = Log()


def declare(broker: Broker) -> SimpleNamespace:
    """Actors with every kind of limit."""
    actors = SimpleNamespace()

    def actor(**options: Any) -> Any:
        def register(fn: Any) -> Any:
            made = dramatiq.actor(broker=broker, **options)(fn)
            setattr(actors, fn.__name__, made)
            return made

        return register

    @actor(rate_limit="200/second", rate_limit_burst=100, queue_name="fast")
    def fast(number: int = 0) -> None:
        return None

    @actor(rate_limit="1/hour", rate_limit_key="customer", queue_name="hourly")
    def hourly(customer: str, fail: bool = False) -> None:
        if fail:
            raise ValueError("told to")

    @actor(concurrency=2, concurrency_key="key", queue_name="slots")
    def two(key: str, label: str = "") -> None:
        log(key, label, wait=True)

    @actor(concurrency=1, concurrency_key="account", fair_key=lambda account, label="", tenant="": tenant, queue_name="accounts")
    def serial(account: str, label: str = "", tenant: str = "") -> None:
        log(account, label)

    @actor(concurrency=1, concurrency_key="account", queue_name="accounts")
    def commits(account: str) -> None:
        log(account)
        with switchyard.current_job().transaction() as connection:
            connection.execute("SELECT 1")

    @actor(rate_limit="50/second", rate_limit_burst=1, concurrency=1, queue_name="both")
    def both(key: str, label: str) -> None:
        log(key, label)

    @actor(queue_name="narrow")
    def plain(key: str) -> None:
        log(key)

    @actor()
    def free() -> None:
        return None

    return actors


@pytest.fixture(scope="module")
def shared_limits(make_settings: Callable[..., Any]) -> Iterator[System]:
    system = System(make_settings(queue_concurrency={"narrow": 1}), declare)
    count_steps(system)
    system.start(threads=8)
    yield system
    system.close()


@pytest.fixture
def system(shared_limits: System) -> System:
    """A running system that all of these cases of one broker use: keys are of each test's own."""
    return shared_limits


@pytest.fixture
def fresh_limits(make_settings: Callable[..., Any]) -> Iterator[System]:
    """A running system of a test's own, with two threads."""
    system = System(make_settings(), declare).start(threads=2)
    yield system
    system.close()


@pytest.fixture
def key() -> Iterator[str]:
    key = uuid4().hex[:8]
    yield key
    log.open(key)


def count_steps(system: System) -> None:
    """Note every step of every job, in the database."""
    for statement in (
        "CREATE TABLE public.step (job bigint, after text, at timestamptz DEFAULT clock_timestamp())",
        "CREATE FUNCTION public.note_step() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO public.step VALUES (NEW.id, NEW.state); RETURN NULL; END'",
        "CREATE TRIGGER note_step AFTER UPDATE ON switchyard.job FOR EACH ROW"
        " WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION public.note_step()",
    ):
        system.database.run(lambda connection, statement=statement: connection.execute(statement.encode()))


def test_five_hundred_jobs_keep_to_a_rate_and_each_is_touched_twice_at_most(system):
    began = monotonic()

    switchyard.enqueue_many([system.jobs.fast.message(number) for number in range(500)])
    system.broker.join("fast", timeout=60_000)

    took = monotonic() - began
    steps = "SELECT {} FROM step AS s JOIN switchyard.job AS j ON j.id = s.job WHERE j.actor = 'fast' AND {}"
    starts = [
        row[0] for row in system.rows(steps.format("extract(epoch FROM s.at)::float8", "s.after = 'running' ORDER BY s.at"))
    ]
    # The step is noted a moment after the decision: hence the 50 ms.
    assert len(starts) == 500
    assert all(later - earlier >= (number + 1 - 100) / 200 - 0.05 for earlier, later, number in windows(starts))
    assert took >= (500 - 100) / 200 - 0.05
    touched = system.rows(
        steps.format("j.id, count(*)", "s.after IN ('running', 'scheduled') GROUP BY j.id HAVING count(*) > 2 ORDER BY 2 DESC")
    )
    # Where the machine stands still for half a second, who was late is promised another slot.
    assert len(touched) <= 50, touched
    assert system.rows("SELECT DISTINCT attempt, state FROM switchyard.job WHERE actor = 'fast'") == [(1, "completed")]


def windows(starts: list[float]) -> Iterator[tuple[float, float, int]]:
    """First, last and count - 1 of runs of starts."""
    for size in (100, 150, 200, 300):
        for first in range(len(starts) - size):
            yield starts[first], starts[first + size], size


def test_a_job_over_the_limit_says_why_it_waits_and_until_when(system, key):
    first = system.jobs.hourly.send(key)
    system.ended(first)

    over = system.until(system.jobs.hourly.send(key), lambda job: job.state is State.SCHEDULED)
    other = system.ended(system.jobs.hourly.send(key + " other"))

    assert (over.wait_reason, over.attempt, over.rate_key) == ("rate_limit", 0, f"hourly:{key}")
    assert over.run_at is not None
    assert 3_500 < (over.run_at - over.created_at).total_seconds() <= 3_600
    assert other.state is State.COMPLETED


def test_a_message_may_say_its_key_and_its_cost_itself(system, key):
    system.ended(system.jobs.hourly.send(key))

    own = system.ended(system.jobs.hourly.send_with_options(args=(key,), rate_limit_key=key + " mine"))

    assert (own.state, own.rate_key) == (State.COMPLETED, f"hourly:{key} mine")
    with pytest.raises(OptionError, match=r"'hourly', option 'rate_limit_cost': 0 is no whole number"):
        system.jobs.hourly.send_with_options(args=(key,), rate_limit_cost=0)
    with pytest.raises(OptionError, match="belongs to the actor"):
        system.jobs.hourly.send_with_options(args=(key,), rate_limit="5/second")
    with pytest.raises(OptionError, match="limits nothing"):
        system.jobs.free.send_with_options(concurrency_key="x")


def waiting(system: System, messages: list[Any], reason: str = "concurrency") -> list[Any]:
    """Those of the messages whose jobs wait for a slot."""
    return [m for m in messages if (job := system.job(m)).state is State.SCHEDULED and job.wait_reason == reason]


def test_no_more_run_at_once_than_there_are_slots_and_a_freed_one_is_handed_on(system, key):
    messages = [system.jobs.two.send(key, str(number)) for number in range(6)]
    wait_until(lambda: log.running[key] == 2 and len(waiting(system, messages)) == 4)
    job = system.job(waiting(system, messages)[0])

    log.open(key)

    ends = [system.ended(message) for message in messages]
    assert (job.blocked_on, job.run_at) == (f"two:{key}", None)
    assert log.most[key] == 2
    assert [job.attempt for job in ends] == [1] * 6
    assert sorted(log.order[key]) == ["0", "1", "2", "3", "4", "5"]


def test_one_after_the_other_per_key_in_order_and_keys_beside_each_other(system, key):
    messages = [system.jobs.serial.message(f"{key} {number % 3}", str(number)) for number in range(30)]

    switchyard.enqueue_many(messages)
    system.broker.join("accounts", timeout=30_000)

    assert [log.most[f"{key} {number}"] for number in range(3)] == [1, 1, 1]
    assert [log.order[f"{key} {number}"] for number in range(3)] == [[str(n) for n in range(30) if n % 3 == m] for m in range(3)]


def test_a_rate_and_slots_together_wait_for_no_sweep(system, key):
    began = monotonic()

    switchyard.enqueue_many([system.jobs.both.message(key, str(number)) for number in range(40)])
    system.broker.join("both", timeout=60_000)

    # 0.8 s by the rate; were each woken by a sweep, half a second apart, it would be twenty.
    assert monotonic() - began < 8
    assert log.most[key] == 1
    # Neighbours may change places where one of them waits for the rate's next moment and the other is woken.
    assert sorted(log.order[key], key=int) == [str(number) for number in range(40)]
    assert all(abs(int(label) - place) <= 5 for place, label in enumerate(log.order[key])), log.order[key]


def test_a_limited_job_is_claimed_for_an_idle_thread_alone(fresh_limits, key):
    busy = [fresh_limits.jobs.two.send(key) for _ in range(2)]
    wait_until(lambda: log.running[key] == 2)

    message = fresh_limits.jobs.fast.send()

    # Its trigger has been seen, and it has had a look at the ledger itself: it stays pending, and takes nothing of its rate.
    wait_until(
        lambda: fresh_limits.rows(
            "SELECT 1 FROM switchyard.job WHERE actor = 'fast' AND age(clock_timestamp(), created_at) > '2.5 s'"
        )
    )
    assert (fresh_limits.job(message).state, fresh_limits.job(message).attempt) == (State.PENDING, 0)
    assert fresh_limits.rows("SELECT 1 FROM switchyard.gate WHERE kind = 'rate' AND tat IS NOT NULL") == []
    log.open(key)
    assert [fresh_limits.ended(sent).attempt for sent in (*busy, message)] == [1, 1, 1]


def test_a_tenant_with_many_jobs_does_not_hold_up_another(system, key):
    switchyard.enqueue_many([system.jobs.serial.message(key, "", "big") for _ in range(150)])
    wait_until(lambda: len(log.order.get(key, ())) >= 2)
    before = len(log.order[key])

    system.ended(system.jobs.serial.send(key, "mine", "small"))

    assert log.order[key].index("mine") < before + 60
    system.broker.join("accounts", timeout=30_000)
    assert log.most[key] == 1


def test_a_queue_has_its_limit_from_the_settings(system, key):
    switchyard.enqueue_many([system.jobs.plain.message(key) for _ in range(12)])
    system.broker.join("narrow", timeout=30_000)

    assert log.most[key] == 1
    assert len(log.order[key]) == 12


def test_limited_jobs_and_plain_ones_take_turns(system, key):
    """Among plain jobs without end one limited job, and the other way round."""
    log.open(key)
    unfinished = "SELECT count(*) FROM switchyard.job WHERE actor = %s AND finished_at IS NULL"

    def plain_without_end() -> bool:
        if system.rows(unfinished, "free")[0][0] < 1_000:
            switchyard.enqueue_many([system.jobs.free.message() for _ in range(1_000)])
        return system.job(limited).state is State.COMPLETED

    switchyard.enqueue_many([system.jobs.free.message() for _ in range(2_000)])
    limited = system.jobs.two.send(key)
    wait_until(plain_without_end, 30, "the limited job has its turn")
    system.broker.join("default", timeout=60_000)

    switchyard.enqueue_many([system.jobs.two.message(key) for _ in range(300)])
    system.ended(system.jobs.free.send())

    assert system.rows(unfinished, "two")[0][0] > 0
    system.broker.join("slots", timeout=30_000)


def test_a_waiting_job_is_cancelled_replayed_and_flushed_like_any_other(system, key):
    messages = [system.jobs.two.send(key) for _ in range(5)]
    wait_until(lambda: len(waiting(system, messages)) == 3)
    lined = waiting(system, messages)

    assert switchyard.cancel(lined[0].message_id)
    assert switchyard.replay(lined[0].message_id)
    system.until(lined[0], lambda job: job.blocked_on == f"two:{key}" and job.state is State.SCHEDULED)
    system.broker.flush("slots")

    assert [system.job(message).state for message in lined] == [State.CANCELLED] * 3
    log.open(key)
    system.broker.join("slots", timeout=30_000)


def test_a_failed_job_takes_another_slot_for_its_next_attempt(system, key):
    message = system.jobs.hourly.send_with_options(args=(key, True), min_backoff=10, max_backoff=20, max_retries=1)

    job = system.until(message, lambda job: job.state is State.SCHEDULED)

    assert (job.wait_reason, job.attempt, job.failures) == ("rate_limit", 1, 1)


def test_a_job_that_completes_in_its_own_transaction_hands_its_slot_on_with_it(system, key):
    first, second = system.jobs.commits.send(key), system.jobs.commits.send(key)

    ends = [system.ended(message) for message in (first, second)]

    assert [job.state for job in ends] == [State.COMPLETED] * 2
    assert log.most[key] == 1


def test_a_limit_is_set_while_jobs_wait_and_reset_again(system, key):
    messages = [system.jobs.two.send(key) for _ in range(6)]
    wait_until(lambda: len(waiting(system, messages)) == 4)

    switchyard.set_limit(actor="two", concurrency=4)
    wait_until(lambda: log.running[key] == 4)
    shown = next(limit for limit in switchyard.limits() if limit.name == "two")
    assert switchyard.reset_limit(actor="two")

    assert (shown.in_force.amount, shown.declared.amount, shown.used, shown.waiting) == (4, 2, 4, 2)
    log.open(key)
    system.broker.join("slots", timeout=30_000)
    assert log.most[key] == 4
