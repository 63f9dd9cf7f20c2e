"""Where other people's code meets ours: foreign middleware that skips, raises or interrupts, and actors called as functions."""

from __future__ import annotations

import dramatiq
import pytest
from dramatiq.middleware import Interrupt, MiddlewareError, Shutdown, SkipMessage

from ledger.states import State
from runtime.context import current_claim
from tests.conformance import jobs
from tests.conformance.system import System


class Foreign(dramatiq.Middleware):
    """Raises what it is told to, in the hook it is told to, for messages that ask for it."""

    message_options = {"before", "after"}

    def before_process_message(self, broker, message):
        self._act("before", message)

    def after_process_message(self, broker, message, *, result=None, exception=None):
        self._act("after", message)

    @staticmethod
    def _act(when, message):
        wanted = message.options.get(when)
        if wanted:
            raise {"skip": SkipMessage, "error": ValueError, "veto": MiddlewareError, "interrupt": Shutdown, "exit": SystemExit}[
                wanted
            ]("foreign")


@pytest.fixture(params=["first", "last"])
def foreign(request, fresh) -> System:
    """A running system with the foreign middleware before, or after, all of ours."""
    system: System = fresh()
    position = {"before": type(system.broker.middleware[0])} if request.param == "first" else {}
    system.broker.add_middleware(Foreign(), **position)
    return system.start(threads=2)


CASES = [
    # hook, what it raises, the job's end, how often the body ran
    ("before", "skip", (State.CANCELLED, None), 0),
    ("before", "error", (State.COMPLETED, None), 1),
    ("before", "veto", (State.DEAD, "max_retries"), 0),
    ("before", "exit", (State.DEAD, "max_retries"), 0),
    ("after", "skip", (State.COMPLETED, None), 1),
    ("after", "error", (State.COMPLETED, None), 1),
    ("after", "veto", (State.COMPLETED, None), 1),
]


def test_no_hook_of_anybody_makes_an_end_vanish(foreign, request):
    ends = {}
    for hook, what, end, ran in CASES:
        key = f"{request.node.name} {hook} {what}"
        message = foreign.jobs.count.send_with_options(args=(key,), max_retries=0, **{hook: what})
        ends[key] = (message, end, ran)

    for key, (message, end, ran) in ends.items():
        job = foreign.ended(message)
        assert (key, (job.state, job.dead_reason), jobs.runs[key]) == (key, end, ran)
    # The threads live on, and no context is left behind on them.
    assert [foreign.jobs.add.send(n, 1).get_result(block=True) for n in range(4)] == [1, 2, 3, 4]
    assert all(thread.is_alive() for thread in foreign.worker.workers)


def test_an_interruption_in_a_hook_releases_the_job_and_the_thread_lives(foreign):
    message = foreign.jobs.count.send_with_options(args=("interrupted",), before="interrupt")

    job = foreign.until(message, lambda job: job.attempt >= 2)

    assert job.failures == 0
    assert {a.outcome for a in foreign.attempts(message) if a.finished_at} == {"released"}
    assert all(thread.is_alive() for thread in foreign.worker.workers)
    foreign.worker.pause()


def test_an_actor_is_still_a_function(system):
    assert system.jobs.add(1, 2) == 3
    assert system.jobs.add.fn(1, 2) == 3
    assert current_claim.get() is None
    assert issubclass(Shutdown, Interrupt)


def test_a_paused_worker_takes_nothing_until_it_is_resumed(fresh):
    system = fresh().start(threads=2)
    assert system.jobs.add.send(1, 1).get_result(block=True) == 2

    system.worker.pause()
    waiting = [system.jobs.parked.send(n) for n in range(3)]
    other = system.jobs.echo.send("meanwhile")
    assert {system.job(m).state for m in waiting} <= {State.PENDING, State.RUNNING}
    system.worker.resume()

    assert other.get_result(block=True) == "meanwhile"
    assert {system.ended(m).state for m in waiting} == {State.COMPLETED}


def test_an_end_that_cannot_even_be_noted_is_a_dead_letter(fresh, monkeypatch):
    system = fresh().start(threads=2)

    def broken(*_):
        raise RuntimeError("no end")

    monkeypatch.setattr("middleware.retries.failed", broken)
    monkeypatch.setattr(system.broker, "_failure", broken)
    message = system.jobs.always_fails.send()

    job = system.ended(message)

    assert (job.state, job.dead_reason) == (State.DEAD, "untold")
    assert system.jobs.add.send(1, 2).get_result(block=True) == 3
