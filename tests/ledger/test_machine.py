"""Any order of everything that can happen to jobs, on the real ledger and on a model of dicts; they have to agree after each step.

The suite runs the same 100 short stories every time. ``LEDGER_EXAMPLES=2000 LEDGER_STEPS=50`` runs more, with fresh seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from errors import JobExists
from ledger import control, dead, read, routes, write
from ledger.control import CancelCount
from ledger.database import Database
from ledger.records import Finish
from ledger.routes import Place
from ledger.sql import SQL
from ledger.states import ACTIVE, TERMINAL, WAITING, State
from tests.ledger.factory import completed, failed, new_job, relay_due, released, token
from tests.ledger.machine import MAX_LOST, Model, Story, step

LONG = 300 * 365 * 86_400.0
WORKERS = st.sampled_from(["w1", "w2"])
BROKERS = st.sampled_from(["postgres", "redis"])
RARELY = st.sampled_from([False, False, False, True])
#: The answer comes, or is lost after the commit, or the process dies before it.
REPLIES = st.sampled_from(["came", "came", "came", "lost", "crash"])
OTHER_PAYLOAD = '{"args": ["other"], "kwargs": {}}'


class LedgerMachine(Story):
    """Two workers, two brokers, one keeper, and somebody who sends, cancels, pauses, edits and replays."""

    @initialize()
    def three_jobs(self) -> None:
        self.begin()
        self.enqueue_many(None, 3)

    @step(
        weight=1,
        broker=BROKERS,
        priority=st.integers(0, 1),
        attempts=st.integers(1, 3),
        delay=st.sampled_from([0.0, 0.0, 60.0]),
        max_lost=st.sampled_from([None, 1, 3]),
        max_age=st.sampled_from([None, None, 60_000.0]),
    )
    def enqueue(
        self,
        _: st.DataObject,
        broker: str,
        priority: int,
        attempts: int,
        delay: float,
        max_lost: int | None,
        max_age: float | None,
    ) -> None:
        grace = None if broker == "postgres" else 30.0
        job = new_job(
            broker=broker, priority=priority, max_attempts=attempts, delay=delay, grace=grace, max_lost=max_lost, max_age=max_age
        )
        entry = write.enqueue(self.ledger, job)
        assert entry.created
        state = State.SCHEDULED if delay else State.PENDING
        carried = broker != "postgres"
        self.jobs[entry.id] = Model(
            job.message_id,
            broker,
            priority,
            attempts,
            state,
            bool(delay) or carried,
            carried and not delay,
            max_lost=max_lost,
            max_age=max_age,
        )

    @step(weight=1, count=st.integers(1, 4))
    def enqueue_many(self, _: st.DataObject | None, count: int) -> None:
        jobs = [new_job(max_attempts=2) for _ in range(count)]
        for job, entry in zip(jobs, write.enqueue_many(self.ledger, jobs), strict=True):
            self.jobs[entry.id] = Model(job.message_id, "postgres", 0, 2, State.PENDING, False)

    @step(weight=1, when=lambda self: self.jobs, other=st.booleans(), bulk=st.booleans())
    def enqueue_again(self, data: st.DataObject, other: bool, bulk: bool) -> None:
        id_ = data.draw(st.sampled_from(list(self.jobs)))
        model = self.jobs[id_]
        job = new_job(message_id=model.message_id, **({"payload": OTHER_PAYLOAD} if other else {}))
        send: Callable[[], Any] = partial(write.enqueue, self.ledger, job)
        if bulk:
            # A new job beside it: it must not stay when the other one is refused.
            send = partial(write.enqueue_many, self.ledger, [new_job(), job] if other else [job])
        if other or model.state in TERMINAL:
            with pytest.raises(JobExists):
                send()
        else:
            answer = send()
            entry = answer[0] if bulk else answer
            assert (entry.id, entry.created) == (id_, False)

    def claimed(self, found: list[Any], worker: str, by: str, long: bool) -> None:
        for entry in found:
            model = self.jobs[entry.id]
            model.state, model.token, model.worker, model.due, model.sent = State.RUNNING, by, worker, False, False
            model.attempt += 1
            model.started, model.long_lease, model.parked = False, long, False
            assert (entry.generation, entry.attempt, entry.failures) == (model.generation, model.attempt, model.failures)
            self.claims.append((entry.id, by))

    @step(
        weight=6,
        when=lambda self: any(job.state is State.PENDING for job in self.jobs.values()),
        worker=WORKERS,
        by_id=st.booleans(),
        wrong_kind=RARELY,
        long=RARELY,
        reply=REPLIES,
    )
    def claim(self, data: st.DataObject, worker: str, by_id: bool, wrong_kind: bool, long: bool, reply: str) -> None:
        ids = self.some(data, {State.PENDING})
        suspects = self.jobs[ids[0]].suspect is not wrong_kind
        if by_id:
            ids = list(dict.fromkeys([*ids, data.draw(st.sampled_from(list(self.jobs)))]))
            wanted = [id_ for id_ in ids if self.jobs[id_].state is State.PENDING and self.jobs[id_].suspect is suspects]
            wanted = [] if self.paused else wanted
            claim = partial(write.claim_by_id, self.ledger, ids, actors=["work"], suspects=suspects)
        else:
            ready = [
                (job.priority, id_)
                for id_, job in self.jobs.items()
                if job.state is State.PENDING
                and job.broker == "postgres"
                and job.suspect is suspects
                and not job.parked
                and not self.paused
            ]
            wanted = [id_ for _, id_ in sorted(ready)[: len(ids)]]
            claim = partial(write.claim_next, self.ledger, "default", len(ids), actors=["work"], suspects=suspects)
        self.claim_with(claim, wanted, worker, long, reply)

    def claim_with(self, claim: Callable[..., list[Any]], wanted: list[int], worker: str, long: bool, reply: str) -> None:
        by = token()
        run = partial(claim, worker=worker, token=by, lease=LONG if long else 30.0)
        if reply == "crash":
            with self.ledger.transaction(force_rollback=True):
                assert [job.id for job in run()] == wanted
            return
        found = run()
        assert [job.id for job in found] == wanted
        if reply == "lost":
            found = write.claimed_with_token(self.ledger, worker=worker, token=by)
            assert {job.id for job in found} == set(wanted)
        self.claimed(found, worker, by, long)

    @step(weight=3, when=lambda self: self.claims)
    def start(self, data: st.DataObject) -> None:
        id_, by = self.some_claims(data)[0]
        model = self.jobs[id_]
        held = model.token == by
        assert write.record_start(self.ledger, id_, by, 30.0) is held
        if held:
            model.started, model.long_lease = True, False

    @step(weight=2, when=lambda self: self.claims, age=st.sampled_from([None, 1.0]))
    def heartbeat(self, data: st.DataObject, age: float | None) -> None:
        beating = self.some_claims(data)
        ours = {id_ for id_, by in beating if self.jobs[id_].token == by}
        assert write.extend_leases(self.ledger, [(id_, by, age) for id_, by in beating], 30.0) == ours
        for id_ in ours:
            self.jobs[id_].long_lease = False
            self.jobs[id_].started |= age is not None

    def how_it_ends(self, id_: int, by: str, how: str) -> Finish:
        model = self.jobs[id_]
        if how == "ok":
            return completed(id_, by, f'"{by}"')
        if how == "release":
            return released(id_, by)
        if how == "cancel":
            return failed(id_, by, state=State.CANCELLED, outcome="cancelled")
        if how == "snooze":
            return failed(id_, by, state=State.SCHEDULED, outcome="snoozed")
        if how == "permanent" or model.failures + 1 >= model.max_attempts:
            return failed(id_, by, state=State.DEAD)
        return failed(id_, by)

    @step(
        weight=5,
        when=lambda self: self.claims,
        hows=st.lists(st.sampled_from(["ok", "fail", "permanent", "snooze", "release", "cancel"]), min_size=3, max_size=3),
        reply=REPLIES,
    )
    def finish(self, data: st.DataObject, hows: list[str], reply: str) -> None:
        ending = self.some_claims(data)
        batch = [self.how_it_ends(id_, by, how) for (id_, by), how in zip(ending, hows, strict=False)]
        ours = {entry.id for entry in batch if self.jobs[entry.id].token == entry.token}
        if reply == "crash":
            with self.ledger.transaction(force_rollback=True):
                assert write.finish(self.ledger, batch) == ours
            return
        assert write.finish(self.ledger, batch) == ours
        for entry in batch:
            model = self.jobs[entry.id]
            if entry.id not in ours:
                continue
            state, outcome, reason = entry.state, entry.outcome, entry.dead_reason
            if model.asked and state is not State.COMPLETED:
                state, outcome, reason = State.CANCELLED, "cancelled", None
            model.leave_running(state, outcome, due=state in WAITING)
            model.last_token, model.suspect, model.dead_reason = entry.token, False, reason
            model.failures += outcome == "failed"
            model.result = entry.token if entry.state is State.COMPLETED else None
        if reply == "lost":
            assert write.finish(self.ledger, batch) == set()
            own = {entry.id for entry in batch if self.jobs[entry.id].last_token == entry.token}
            assert write.own_commits(self.ledger, batch) == own

    @step(weight=1, when=lambda self: self.claims)
    def release_unstarted(self, data: st.DataObject) -> None:
        back = [(id_, by) for id_, by in self.some_claims(data) if not self.jobs[id_].started]
        ours = {id_ for id_, by in back if self.jobs[id_].token == by}
        assert write.release_unstarted(self.ledger, back) == ours
        for id_, by in back:
            if id_ in ours:
                model = self.jobs[id_]
                model.leave_running(State.CANCELLED if model.asked else State.PENDING, None, due=not model.asked)
                model.attempt -= 1
                model.last_token, model.worker = by, None

    @step(weight=1, when=lambda self: self.jobs)
    def cancel(self, data: st.DataObject) -> None:
        model = self.jobs[self.some(data, ACTIVE)[0]]
        after = control.cancel(self.ledger, model.message_id)
        assert after == (None if model.state in TERMINAL else State.RUNNING if model.state is State.RUNNING else State.CANCELLED)
        self.cancelled(model)

    def cancelled(self, model: Model) -> None:
        if model.state in WAITING:
            model.state, model.due, model.parked = State.CANCELLED, False, False
        elif model.state is State.RUNNING:
            model.asked = True

    @step(weight=1, when=lambda self: self.jobs)
    def cancel_many(self, data: st.DataObject) -> None:
        ids = self.some(data, ACTIVE)
        met = [self.jobs[id_] for id_ in ids if self.jobs[id_].state in ACTIVE]
        running = sum(model.state is State.RUNNING for model in met)
        assert control.cancel_rows(self.ledger, ids, sorted(ACTIVE)) == CancelCount(cancelled=len(met) - running, asked=running)
        for model in met:
            self.cancelled(model)

    @step(weight=2, on=st.booleans())
    def pause(self, _: st.DataObject, on: bool) -> None:
        done = control.pause(self.ledger, "default", "*") if on else control.resume(self.ledger, "default", "*")
        assert done is (self.paused is not on)
        self.paused = on

    @step(weight=3, when=lambda self: self.paused, by_id=st.booleans(), broker=BROKERS)
    def park(self, data: st.DataObject, by_id: bool, broker: str) -> None:
        if by_id:
            ids = self.some(data, {State.PENDING})
            control.park_rows(self.ledger, ids)
        else:
            control.park_place(self.ledger, broker, "default", "work")
            ids = [id_ for id_, job in self.jobs.items() if job.broker == broker]
        for model in [self.jobs[id_] for id_ in ids]:
            if model.state is State.PENDING and not model.parked:
                model.parked, model.due, model.sent = True, False, False

    @step(
        weight=3, when=lambda self: any(job.parked for job in self.jobs.values()), limit=st.sampled_from([1, 1_000]), crash=RARELY
    )
    def unpark(self, _: st.DataObject, limit: int, crash: bool) -> None:
        waiting = sorted((job.priority, id_) for id_, job in self.jobs.items() if job.parked and not self.paused)[:limit]
        with self.ledger.transaction(force_rollback=crash):
            assert control.unpark(self.ledger, limit) == len(waiting)
        for _priority, id_ in waiting if not crash else ():
            self.jobs[id_].parked, self.jobs[id_].due = False, True

    @step(
        weight=2,
        when=lambda self: self.jobs,
        priority=st.sampled_from([None, 0, 1]),
        delay=st.sampled_from([None, None, 0.0, 60.0]),
    )
    def edit(self, data: st.DataObject, priority: int | None, delay: float | None) -> None:
        id_ = self.some(data, WAITING)[0]
        model = self.jobs[id_]
        done = control.edit(self.ledger, id_, control.Change(priority=priority, delay=delay))
        assert done is (model.state in WAITING)
        if not done:
            return
        pending, moved = model.state is State.PENDING, priority not in (None, model.priority)
        model.priority = model.priority if priority is None else priority
        if delay:
            model.state = State.SCHEDULED if pending else model.state
            model.due, model.sent, model.parked = True, False, False
        elif pending and moved:
            model.sent = False

    @step(weight=2, when=lambda self: self.jobs)
    def replay(self, data: st.DataObject) -> None:
        badly = {State.DEAD, State.CANCELLED}
        model = self.jobs[self.some(data, badly)[0]]
        assert write.replay(self.ledger, model.message_id) is (model.state in badly)
        if model.state in badly:
            model.state, model.due, model.suspect, model.worker, model.dead_reason = State.PENDING, True, False, None, None
            model.sent = model.asked = False
            model.generation += 1
            model.attempt = model.failures = model.lost = 0

    @step(weight=2, when=lambda self: any(job.state is State.DEAD for job in self.jobs.values()), crash=RARELY)
    def replay_slowly(self, data: st.DataObject, crash: bool) -> None:
        """The first at once, the others a minute apart."""
        ids = self.some(data, {State.DEAD})
        wanted = [id_ for id_ in ids if self.jobs[id_].state is State.DEAD]
        with self.ledger.transaction(force_rollback=crash):
            assert dead.replay_rows(self.ledger, ids, interval=60.0).replayed == len(wanted)
        for place, id_ in enumerate(wanted if not crash else ()):
            model = self.jobs[id_]
            model.state = State.SCHEDULED if place else State.PENDING
            model.due, model.suspect, model.worker, model.dead_reason, model.sent = True, False, None, None, False
            model.generation += 1
            model.attempt = model.failures = model.lost = 0

    @step(weight=4, broker=BROKERS, limit=st.sampled_from([2, 1_000]), down=RARELY, crash=RARELY)
    def relay(self, _: st.DataObject, broker: str, limit: int, down: bool, crash: bool) -> None:
        due = {id_ for id_, job in self.jobs.items() if job.due and not down and not (job.sent and not job.suspect)}
        reachable = [name for name in ("postgres", "redis") if name != broker or not down]
        run = partial(relay_due, self.ledger, broker, reachable=reachable, limit=limit)
        if crash:
            with self.ledger.transaction(force_rollback=True):
                assert {job.id for job in run(now=self.later())} <= due
            return
        relayed = {job.id for job in run(now=self.later())}
        assert relayed <= due
        assert len(relayed) == min(limit, len(due))
        for id_ in relayed:
            model, carried = self.jobs[id_], broker != "postgres" and not self.paused
            model.state, model.broker, model.due, model.sent, model.parked = State.PENDING, broker, carried, carried, self.paused

    @step(weight=2, to=BROKERS, limit=st.sampled_from([2, 1_000]), crash=RARELY)
    def switch(self, _: st.DataObject, to: str, limit: int, crash: bool) -> None:
        """The route leads to another broker: what waits elsewhere moves, and is as if it had been sent there."""
        (old,) = {"postgres", "redis"} - {to}
        waiting = {id_ for id_, job in self.jobs.items() if job.state is State.PENDING and job.broker == old and not job.parked}
        with self.ledger.transaction(force_rollback=crash):
            self.ledger.execute("INSERT INTO switchyard.route (queue, broker) VALUES ('default', %s)", [to])
            stale = routes.move_pending(self.ledger, Place(to, "default"), old, carries=old != "postgres", grace=30.0)
            rows = routes.move_pending(self.ledger, Place(old, "default"), to, carries=to != "postgres", grace=30.0, limit=limit)
            self.ledger.execute("DELETE FROM switchyard.route WHERE queue = 'default'")
        moved = {job.id for job in rows}
        assert (stale, len(moved), moved <= waiting) == ([], min(limit, len(waiting)), True)
        for id_ in moved if not crash else ():
            model = self.jobs[id_]
            model.broker, model.due, model.sent = to, to != "postgres", to != "postgres"

    @step(weight=2, when=lambda self: self.jobs)
    def lose_triggers(self, data: st.DataObject) -> None:
        lost = self.some(data, {State.PENDING})
        write.make_due(self.ledger, lost)
        for id_ in lost:
            self.jobs[id_].sent &= self.jobs[id_].state is not State.PENDING

    @step(weight=4, when=lambda self: any(job.state is State.RUNNING for job in self.jobs.values()), alive=RARELY, crash=RARELY)
    def rescue(self, data: st.DataObject, alive: bool, crash: bool) -> None:
        worker = data.draw(st.sampled_from(sorted({str(job.worker) for job in self.jobs.values() if job.state is State.RUNNING})))
        held = [(id_, job) for id_, job in self.jobs.items() if job.state is State.RUNNING and job.worker == worker]
        expired = [(id_, job) for id_, job in held if not job.long_lease]
        if not alive and len(expired) < len(held):
            expired = []
        culprits = {id_ for id_, job in expired if job.started and (alive or job.suspect)}
        guilty = culprits | {id_ for id_, job in expired if job.started and job.max_lost == 1}
        run = partial(write.rescue_worker, self.ledger, worker, alive=alive, max_lost=MAX_LOST)
        if crash:
            with self.ledger.transaction(force_rollback=True):
                assert len(run(now=self.later())) == len(expired)
            return
        found = {job.id: job for job in run(now=self.later())}
        assert set(found) == {id_ for id_, _ in expired}
        for id_, model in expired:
            model.lost += id_ in guilty
            dead = id_ in guilty and model.lost >= (model.max_lost or MAX_LOST) and not model.asked
            state = (
                State.CANCELLED if model.asked else State.DEAD if dead else State.SCHEDULED if id_ in guilty else State.PENDING
            )
            beside = not alive and (model.started or not culprits)
            model.suspect = not dead and not model.asked and (id_ in guilty or model.suspect or beside)
            model.leave_running(state, "lost", due=state in WAITING)
            model.last_token, model.dead_reason = None, "worker_lost" if dead else None
            assert (found[id_].state, found[id_].lost, found[id_].guilty) == (state, model.lost, id_ in guilty)

    @step(weight=1, when=lambda self: any(job.max_age for job in self.jobs.values()), crash=RARELY)
    def expire(self, _: st.DataObject, crash: bool) -> None:
        waited = {id_ for id_, job in self.jobs.items() if job.max_age and job.state in WAITING}
        with self.ledger.transaction(force_rollback=crash):
            ended = self.ledger.execute(SQL["expire"], {"limit": 1_000, "now": self.later()}).fetchall()
            assert {row[0] for row in ended} == waited
        if not crash:
            for id_ in waited:
                model = self.jobs[id_]
                model.state, model.due, model.suspect, model.dead_reason = State.DEAD, False, False, "expired"
                model.parked = False

    @step(weight=2)
    def look(self, data: st.DataObject) -> None:
        for id_ in self.some(data, {State.RUNNING}):
            job = self.jobs[id_]
            assert read.get_job(self.ledger, job.message_id).state is job.state
            numbers = [(entry.generation, entry.attempt) for entry in read.attempts(self.ledger, job.message_id)]
            assert numbers == sorted(set(numbers)), id_
            current = [attempt for generation, attempt in numbers if generation == job.generation]
            assert current == list(range(1, job.attempt + 1))
        counted = read.counts(self.ledger).by_state()
        assert counted == {state: sum(job.state is state for job in self.jobs.values()) for state in State}


@pytest.mark.timeout(120 + 2 * settings.get_profile("ledger").max_examples)
def test_the_ledger_agrees_with_its_model_whatever_happens(ledger_url):
    LedgerMachine.database = Database(ledger_url)
    run_state_machine_as_test(LedgerMachine, settings=settings.get_profile("ledger"))


def test_the_machine_notices_a_finish_without_its_fence(ledger_url, monkeypatch):
    unfenced = SQL["finish_completed"].replace("j.token = f.token AND ", "")
    assert unfenced != SQL["finish_completed"]
    monkeypatch.setitem(SQL, "finish_completed", unfenced)
    LedgerMachine.database = Database(ledger_url)
    search = settings(settings.get_profile("ledger"), max_examples=1_000, stateful_step_count=50, phases=[Phase.generate])

    with pytest.raises((AssertionError, psycopg.Error)):
        run_state_machine_as_test(LedgerMachine, settings=search)
