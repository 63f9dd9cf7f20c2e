"""The claims in hand: room that follows the work, moves that only one wins, claims that may not start."""

from __future__ import annotations

import threading
from contextlib import suppress
from uuid import uuid4

import pytest

from ledger.records import ClaimedJob
from runtime import claims as module
from runtime.claims import MAX_ROOM, Claim, HeldClaims
from runtime.workqueue import Empty, WorkQueue
from tests.rig.waiting import wait_until


class Clock:
    """A monotonic clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def held(threads=4, commit_start=lambda _: True):
    return HeldClaims(threads=threads, lease=30.0, commit_start=commit_start)


def claim(suspect=False, requested=None, number=1, max_lost=None):
    job = ClaimedJob(
        number, str(uuid4()), "q", "a", {"args": [], "kwargs": {}}, None, 1, 1, 0, None, suspect, 0, 0, None, None, None, max_lost
    )  # fmt: skip
    # On the clock of the test, if it has one.
    now: float = vars(module)["monotonic"]()
    return Claim(job, str(uuid4()), now if requested is None else requested, 30.0)


def take(claims, count):
    taken = [claim(number=n) for n in range(count)]
    claims.accept(taken)
    return taken


def test_at_first_there_is_room_for_every_thread(clock):
    assert held(threads=4).room() == 4


def test_long_jobs_are_claimed_for_idle_threads_only(clock):
    claims = held(threads=4)
    for taken in take(claims, 3):
        assert claims.start(taken)
    clock.now += 10

    assert claims.room() == 1


def test_short_jobs_make_room_for_as_many_as_finish_in_50_ms(clock):
    claims = held(threads=4)
    for _ in range(100):
        clock.now += 0.001
        for taken in take(claims, 2):
            claims.start(taken)
            claims.finish(taken)
            claims.forget(taken)
        claims.room()

    assert 90 <= claims.room() <= 115
    clock.now += 5
    # What finished five seconds ago says little.
    assert claims.room() <= 6


#: A job's time in the story below, in seconds: 5,000 are possible in a second.
TICK = 0.0002


def work_off(claims, clock, seconds, claims_take):
    """Claim whenever there is room, and end a job with every tick meanwhile, for so long. Returns how many ended in a second."""
    until, before = clock.now + seconds, claims.finished
    while clock.now < until:
        begun, taken = clock.now, [claim(number=n) for n in range(claims.room())]
        for _ in range(round(claims_take / TICK) if taken else 1):
            clock.now += TICK
            ended = next(iter(claims.unstarted), None)
            if ended is not None:
                claims.start(ended)
                claims.finish(ended)
                claims.forget(ended)
        if taken:
            claims.accept(taken, clock.now - begun)
    return (claims.finished - before) / seconds


@pytest.mark.parametrize(("claims_take", "least"), [(0.005, 4_500), (0.05, 3_500), (0.1, 2_000)])
def test_where_claims_are_slow_more_is_taken_so_that_the_threads_do_not_run_dry(clock, claims_take, least):
    claims = held(threads=8)
    work_off(claims, clock, 3.0, claims_take)

    # At a tenth of a second the bound of 500 lasts for a claim and no longer, and half of it is gone before more is asked for.
    assert work_off(claims, clock, 3.0, claims_take) >= least


def test_a_slow_claim_is_soon_forgotten_and_one_that_took_for_ever_counts_for_little(clock):
    claims = held(threads=4)
    claims.accept([], 60.0)
    assert claims._window == module.MAX_ROOM_WINDOW
    for _ in range(20):
        claims.accept([], 0.001)

    assert claims._window == module.ROOM_WINDOW


def test_room_is_bounded_and_filled_up_at_half(clock):
    claims = held(threads=10_000)

    assert claims.room() == MAX_ROOM
    waiting = take(claims, MAX_ROOM)
    assert claims.room() == 0
    for taken in waiting[: MAX_ROOM // 2 - 1]:
        claims.start(taken)
        claims.finish(taken)
    assert claims.room() == 0
    claims.start(waiting[-1])
    claims.finish(waiting[-1])
    assert claims.room() > 0


def test_who_waits_for_room_is_woken_when_a_job_ends():
    claims = held(threads=1)
    (running,) = take(claims, 1)
    claims.start(running)
    rooms = []
    waiter = threading.Thread(target=lambda: rooms.append(claims.wait_for_room(30)))
    waiter.start()

    claims.finish(running)
    waiter.join(30)

    assert rooms
    assert rooms[0] >= 1


def test_closing_wakes_who_waits_and_lets_nothing_start():
    claims = held(threads=1)
    (waiting,) = take(claims, 1)
    claims.close()

    assert claims.wait_for_room(30) == 0
    assert not claims.start(waiting)
    assert claims.withdraw() == [waiting]


def test_a_claim_is_started_or_withdrawn_and_never_both():
    for _ in range(300):
        claims = held(threads=4)
        taken = take(claims, 20)
        started, withdrawn = [], []
        barrier = threading.Barrier(3)

        def start(claims=claims, taken=taken, started=started, barrier=barrier):
            barrier.wait()
            started.extend(c for c in taken if claims.start(c))

        def withdraw(claims=claims, withdrawn=withdrawn, barrier=barrier):
            barrier.wait()
            for _ in range(5):
                withdrawn.extend(claims.withdraw())

        threads = [threading.Thread(target=start), threading.Thread(target=withdraw)]
        for thread in threads:
            thread.start()
        barrier.wait()
        for thread in threads:
            thread.join()
        assert sorted(c.job.id for c in started + withdrawn) == list(range(20))


def test_a_claim_past_its_margin_does_not_start_and_is_given_back(clock):
    claims = held()
    (late,) = take(claims, 1)
    clock.now += 0.81 * 30

    assert not claims.start(late)
    assert late not in claims.all()
    assert claims.withdraw(older_than=1_000) == [late]


def test_a_lost_claim_does_not_start_and_is_gone():
    claims = held()
    (lost,) = take(claims, 1)
    lost.lost = True

    assert not claims.start(lost)
    assert claims.withdraw() == []
    assert claims.all() == []


def test_one_suspect_is_held_at_a_time_and_its_start_is_committed_first(clock):
    committed = []
    claims = held(commit_start=lambda c: committed.append(c) or True)
    suspect = claim(suspect=True)
    claims.accept([suspect])

    assert claims.suspect_held
    assert claims.start(suspect)
    assert committed == [suspect]
    assert claims.suspect_pause() == 0.01
    clock.now += 2
    assert claims.suspect_pause() == pytest.approx(0.4)
    clock.now += 100
    assert claims.suspect_pause() == 1
    claims.finish(suspect)
    assert claims.suspect_held
    claims.forget(suspect)
    assert not claims.suspect_held


def test_a_claim_that_is_just_starting_leaves_no_room_for_another():
    rooms: list[int] = []
    claims: HeldClaims = held(threads=1, commit_start=lambda _: rooms.append(claims.room()) or True)
    suspect = claim(suspect=True)
    claims.accept([suspect])
    rooms.append(claims.room())

    claims.start(suspect)

    rooms.append(claims.room())
    assert rooms == [0, 0, 0]


def test_whatever_ends_a_claim_makes_room_again(clock):
    claims = held(threads=5, commit_start=lambda _: False)
    lost, late, withdrawn, running, ended = take(claims, 5)
    assert claims.room() == 0
    for entry in (running, ended):
        assert claims.start(entry)

    lost.lost = True
    late.deadline = 0.0
    assert not claims.start(lost)
    assert not claims.start(late)
    claims.withdraw(older_than=-1)
    assert claims.finish(ended)
    assert claims.withdraw_running() == [running]
    clock.now += 10

    assert withdrawn not in claims.all()
    assert claims.room() == 5


def test_a_suspect_whose_start_could_not_be_committed_does_not_start():
    claims = held(commit_start=lambda _: False)
    suspect = claim(suspect=True)
    claims.accept([suspect])

    assert not claims.start(suspect)
    assert claims.withdraw() == [suspect]


def test_the_start_of_a_job_that_may_not_be_lost_twice_is_committed_first():
    answers = [True, False]
    claims = held(commit_start=lambda _: answers.pop(0))
    first, second, ordinary = claim(max_lost=1), claim(max_lost=1), claim(max_lost=3)
    claims.accept([first, second, ordinary])

    assert [claims.start(taken) for taken in (first, second, ordinary)] == [True, False, True]

    assert claims.withdraw() == [second]
    assert not claims.suspect_held


def test_what_was_given_up_at_the_end_of_the_grace_finishes_no_more():
    claims = held()
    (running,) = take(claims, 1)
    claims.start(running)

    assert claims.withdraw_running() == [running]
    assert not claims.finish(running)


def test_what_is_given_up_finishes_no_more_and_its_thread_counts_no_more():
    claims = held(threads=4)
    running, waiting = take(claims, 2)
    claims.start(running)

    assert claims.give_up(running)
    assert not claims.give_up(running)
    assert not claims.give_up(waiting)

    assert running.lost
    # Its end is on the way into the ledger, and its lease is extended until then.
    assert claims.all() == [waiting, running]
    assert not claims.finish(running)
    assert (claims.threads, claims.given_up) == (3, 1)


def test_the_work_queue_passes_over_what_may_not_start():
    claims = held()
    queue = WorkQueue(claims)

    class Item:
        def __init__(self, claim):
            self.claim = claim
            self.message = self

    items = [Item(taken) for taken in take(claims, 3)]
    queue.hand_over(items)
    claims.withdraw(older_than=-1)
    fresh = Item(claim(number=9))
    claims.accept([fresh.claim])
    queue.hand_over([fresh])

    assert queue.get(timeout=1) is fresh
    assert queue.unfinished_tasks == 1
    with pytest.raises(Empty):
        queue.get_nowait()
    claims.finish(fresh.claim)
    claims.forget(fresh.claim)
    queue.join()
    assert queue.empty()


def test_threads_that_wait_for_work_are_told_at_once_that_the_shutdown_has_begun():
    queue = WorkQueue(held())
    told = []

    def ask():
        for _ in range(2):
            with suppress(Empty):
                queue.get(timeout=600)
            told.append(threading.current_thread())

    waiting = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: len(queue._waiting) == 3)
    assert not told

    queue.close()

    # Also those that ask again.
    wait_until(lambda: len(told) == 6)
    assert queue.empty()
