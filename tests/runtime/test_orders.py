"""Orders from outside: what is to stop stops, what is paused goes back, however late the process hears of it, and nobody else is hit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import monotonic

import psycopg
import pytest

from errors import Cancelled
from ledger import control
from ledger.database import Database
from ledger.sql import SQL
from runtime.claims import Claim, Completion
from runtime.heartbeat import Heartbeat
from runtime.interrupt import Guard
from runtime.orders import AGAIN, DEAF_LOOK, Orders
from runtime.routes import Routes
from tests.ledger.factory import worker_row
from tests.rig.waiting import wait_until
from tests.runtime.conftest import Desk


class Body:
    """A body on a thread of its own, under a claim's guard."""

    def __init__(self, claim: Claim) -> None:
        claim.guard = Guard()
        self.ended: list[str] = []
        self.turns = 0
        self.began, self.leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(claim.guard,), daemon=True)
        self._thread.start()
        assert self.began.wait(5)

    def _run(self, guard: Guard) -> None:
        try:
            guard.run(self._body, (), {})
        except Cancelled:
            self.ended.append("cancelled")
        else:
            self.ended.append("returned")

    def _body(self) -> None:
        self.began.set()
        while not self.leave.wait(0.01):
            self.turns += 1

    def goes_on(self) -> bool:
        """Whether it does, and is not stopped where it would take in what was sent to it."""
        turns = self.turns
        wait_until(lambda: self.ended or self.turns > turns + 3, 5, "it goes on or ends")
        return not self.ended

    def end(self) -> str:
        """How it ended."""
        self.leave.set()
        self._thread.join(5)
        return self.ended[0]


@pytest.fixture
def heartbeat(desk: Desk) -> Iterator[Heartbeat]:
    """A heartbeat that only the test makes beat."""
    heartbeat = Heartbeat(
        desk.database, desk.held, desk.counters, worker_row("me"), lambda: ["default"], Routes({"*": "postgres"})
    )
    heartbeat.beat()
    yield heartbeat
    heartbeat._disconnect()


@pytest.fixture
def beating(desk: Desk) -> Iterator[Heartbeat]:
    """A heartbeat that works, with a lease so long that no beat comes to a test's help."""
    heartbeat = Heartbeat(
        desk.database, desk.held, desk.counters, worker_row("me"), lambda: ["default"], Routes({"*": "postgres"})
    )
    heartbeat.start()
    yield heartbeat
    heartbeat.stop()


def cancel(desk: Desk, claim: Claim) -> None:
    desk.database.run(lambda connection: control.cancel(connection, claim.job.message_id))


def pause(desk: Desk, on: bool = True) -> None:
    change = control.pause if on else control.resume
    desk.database.run(lambda connection: change(connection, "default", "*"))


def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the statements that ask for orders, as they are made."""
    made: list[str] = []
    real = control.orders

    def orders(*arguments: object) -> object:
        made.append("orders")
        return real(*arguments)

    monkeypatch.setattr(control, "orders", orders)
    return made


def test_a_request_is_heard_and_stops_the_body_it_names_and_no_other(desk, beating):
    first, second = desk.claim(2)
    bodies = [Body(first), Body(second)]

    cancel(desk, first)

    wait_until(lambda: bodies[0].ended, 5, "the first is stopped")
    assert (bodies[0].end(), bodies[1].end()) == ("cancelled", "returned")
    assert (first.cancel_requested, second.cancel_requested) == (True, False)


def test_what_has_not_started_goes_back_and_is_cancelled(desk, beating):
    claim, other = desk.claim(2, start=False)

    cancel(desk, claim)

    wait_until(lambda: desk.states() == ["cancelled", "running"], 5, desk.states)
    assert not desk.held.start(claim)
    assert desk.held.start(other)
    assert desk.rows("SELECT attempt, worker FROM switchyard.job ORDER BY id LIMIT 1") == [(0, None)]


def test_a_claim_that_comes_into_hand_after_the_notification_is_met_by_the_second_look(desk, heartbeat):
    orders = heartbeat._orders
    (claim,) = desk.claim(1, start=False)
    desk.held.unstarted.clear()
    desk.held.occupied.clear()
    desk.rows("UPDATE switchyard.job SET cancel_requested_at = clock_timestamp() RETURNING 1")
    orders._hear("me")
    heartbeat.follow_orders()
    assert not claim.cancel_requested

    desk.held.accept([claim])
    until = monotonic() + AGAIN + 0.1
    wait_until(lambda: monotonic() > until, 5)
    heartbeat.follow_orders()

    assert claim.cancel_requested
    assert desk.states() == ["cancelled"]


def test_a_request_that_nobody_heard_is_found_by_the_next_beat(desk, heartbeat):
    (claim,) = desk.claim(1)
    body = Body(claim)
    desk.rows("UPDATE switchyard.job SET cancel_requested_at = clock_timestamp() RETURNING 1")

    heartbeat.beat()

    wait_until(lambda: body.ended, 5, "it is stopped")
    assert body.end() == "cancelled"


def test_a_process_that_lost_its_connection_is_back_within_seconds_and_finds_what_it_missed(desk, beating):
    (claim,) = desk.claim(1)
    body = Body(claim)
    with psycopg.connect(desk.database.url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard heartbeat'"
            " AND datname = current_database()"
        )
        desk.rows("UPDATE switchyard.job SET cancel_requested_at = clock_timestamp() RETURNING 1")

    wait_until(lambda: body.ended, 8, "it is stopped")
    assert body.end() == "cancelled"


def test_a_body_that_cannot_be_interrupted_yet_is_so_later_and_one_that_has_committed_never(desk, heartbeat):
    early, committed = desk.claim(2)
    body = Body(committed)
    committed.completion = Completion.COMMITTED
    for claim in (early, committed):
        cancel(desk, claim)
    heartbeat.beat()
    assert early.cancel_requested

    late = Body(early)
    heartbeat.follow_orders()

    wait_until(lambda: late.ended, 5, "it is stopped")
    assert (late.end(), body.end()) == ("cancelled", "returned")


def test_while_its_own_commit_is_under_way_a_body_is_left_alone(desk, heartbeat):
    (claim,) = desk.claim(1)
    body = Body(claim)
    assert claim.guard is not None
    claim.guard.pause()
    cancel(desk, claim)
    heartbeat.beat()
    assert body.goes_on()

    claim.guard.resume()
    heartbeat.follow_orders()

    wait_until(lambda: body.ended, 5, "it is stopped")
    assert body.end() == "cancelled"


def test_a_job_is_interrupted_once(desk, heartbeat):
    (claim,) = desk.claim(1)
    body = Body(claim)
    cancel(desk, claim)
    heartbeat.beat()
    wait_until(lambda: body.ended, 5, "it is stopped")
    body.end()
    interrupted: list[object] = []
    assert claim.guard is not None

    class Spy:
        interrupt = interrupted.append

    claim.guard = Spy()
    desk.held.finish(claim)
    heartbeat.beat()
    heartbeat.follow_orders()

    assert interrupted == []


def test_a_body_that_cleans_up_is_not_interrupted_by_the_looks_that_follow(desk, heartbeat):
    (claim,) = desk.claim(1)
    interrupted: list[object] = []

    class Cleaning:
        def interrupt(self, exception: object) -> bool:
            interrupted.append(exception)
            return True

    claim.guard = Cleaning()
    cancel(desk, claim)
    heartbeat.beat()
    assert interrupted == [Cancelled]

    heartbeat._orders._hear("me")
    heartbeat.follow_orders()
    heartbeat.beat()

    assert interrupted == [Cancelled]


def test_a_pause_sends_back_what_has_not_started_and_lets_run_what_runs(desk, beating):
    (running,) = desk.claim(1)
    body = Body(running)
    desk.claim(3, start=False)

    pause(desk)

    wait_until(lambda: desk.states() == ["running", *["pending"] * 3], 5, desk.states)
    assert body.goes_on()
    assert body.end() == "returned"


def test_a_claim_that_was_under_way_when_the_pause_began_does_not_start(desk, heartbeat):
    pause(desk)
    heartbeat._orders._hear(control.EVERYBODY)
    heartbeat.follow_orders()
    assert desk.held.paused == (("default", "*"),)
    pause(desk, on=False)
    (claim,) = desk.claim(1, start=False)

    assert not desk.held.start(claim)
    heartbeat.follow_orders()
    assert desk.states() == ["pending"]

    heartbeat._orders._hear(control.EVERYBODY)
    heartbeat.follow_orders()
    (claim,) = desk.claim(1, start=False)
    assert desk.held.start(claim)


def test_what_is_meant_for_another_process_and_what_is_idle_costs_no_statement(desk, heartbeat, monkeypatch):
    made = statements(monkeypatch)
    heartbeat._orders._hear("somebody else")

    for _ in range(3):
        heartbeat.follow_orders()
        heartbeat.beat()
    assert made == []

    heartbeat._orders._hear("me")
    heartbeat.follow_orders()
    assert made == ["orders"]


def test_behind_pgbouncer_a_process_that_holds_claims_looks_every_second(desk, monkeypatch):
    made = statements(monkeypatch)
    deaf = Orders(desk.held, "me", deaf=True)
    with Database(desk.database.url).dedicated("test") as connection:
        deaf.listen(connection)
        deaf.follow(connection)
        assert made == []
        (claim,) = desk.claim(1)
        body = Body(claim)
        cancel(desk, claim)
        listening = connection.execute("SELECT count(*) FROM pg_listening_channels()").fetchone()

        until = monotonic() + DEAF_LOOK + 0.1
        wait_until(lambda: monotonic() > until, 5)
        deaf.follow(connection)
        deaf.follow(connection)

    wait_until(lambda: body.ended, 5, "it is stopped")
    assert (body.end(), made, listening) == ("cancelled", ["orders"], (0,))


def test_waiting_ends_at_once_when_the_process_stops(desk):
    orders = Orders(desk.held, "me", deaf=False)
    orders.open()
    stopping = threading.Timer(0.05, orders.stop)
    stopping.start()
    began = monotonic()

    assert orders.wait(20.0, None)

    assert monotonic() - began < 5
    stopping.join()
    orders.close()
    orders.stop()


def test_the_statements_that_the_channel_speaks_of_use_its_name():
    assert all(f"pg_notify('{control.CONTROL_CHANNEL}'" in SQL[name] for name in ("cancel", "cancel_rows", "pause", "resume"))


def test_a_claim_that_a_thread_takes_at_the_moment_of_the_request_does_not_start(desk):
    (claim,) = desk.claim(1, start=False)
    claim.cancel_requested = True

    assert not desk.held.start(claim)

    assert desk.held.withdraw(older_than=1e9) == [claim]
