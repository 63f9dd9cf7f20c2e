"""Dead letters in the ledger: every death is noted once, pages and groups are exact, and a replay neither loses nor doubles anything."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import uuid4

import pytest

from ledger import batches, control, dead, rekeying, write
from ledger.dead import DeadFilter
from ledger.records import JobControl, NewBatch
from ledger.sql import SQL
from ledger.states import State
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import add, add_in, age_lease, claim, completed, failed, fetch, new_job, relay_due, row, worker_row
from tests.rig.waiting import wait_until

EVERYTHING = DeadFilter()


def name_of(ledger, id_):
    return str(fetch(ledger, id_, "message_id"))


def die(ledger, error="no", *, reason="max_retries", error_type="ValueError", **fields):
    """A job that is dead, its row's id."""
    id_ = add(ledger, **fields)
    by = claim(ledger, id_)
    ending = failed(id_, by, state=State.DEAD, error=error, error_type=error_type, dead_reason=reason)
    write.finish(ledger, [ending])
    return id_


def notices(ledger):
    return ledger.execute(
        "SELECT consumer, job_id, generation, reason, hook FROM switchyard.dead_notice ORDER BY job_id, generation, consumer"
    ).fetchall()


def rescued(ledger):
    id_ = add(ledger, max_lost=1)
    by = claim(ledger, id_, holder="gone")
    write.record_start(ledger, id_, by, 30.0)
    age_lease(ledger, id_)
    write.rescue_worker(ledger, "gone", alive=False, max_lost=3)
    return id_


def expired(ledger):
    id_ = add(ledger, max_age=0.0)
    ledger.execute(SQL["expire"], {"now": None, "limit": 10})
    return id_


def unknown(ledger):
    write.beat(ledger, _worker())
    id_ = add(ledger, actor="stranger")
    write.postpone_unknown(ledger, [id_], ["work"], 1.0)
    ledger.execute(SQL["settle_unknown"], {"now": datetime.now(UTC) + timedelta(hours=2), "after": 60.0})
    return id_


def _worker():
    worker = worker_row()
    worker.actors = ["work"]
    return worker


@pytest.mark.parametrize(
    ("end", "reason"),
    [(die, "max_retries"), (rescued, "worker_lost"), (expired, "expired"), (unknown, "unknown_actor")],
    ids=["finish", "rescue", "expire", "unknown"],
)
def test_whoever_writes_a_death_notes_it_and_gives_it_a_fingerprint(ledger, end, reason):
    id_ = end(ledger)

    stored = row(ledger, id_)
    assert (stored["state"], stored["dead_reason"]) == ("dead", reason)
    assert len(stored["fingerprint"]) == 16
    assert notices(ledger) == [("broker", id_, 1, reason, None)]


def test_a_death_that_is_rolled_back_is_not_noted(ledger):
    with ledger.transaction(force_rollback=True):
        die(ledger)
        assert len(notices(ledger)) == 1

    assert notices(ledger) == []


def test_what_does_not_die_is_not_noted(ledger):
    for state in State:
        if state is not State.DEAD:
            add_in(ledger, state)

    assert notices(ledger) == []


def test_a_hook_has_a_notice_of_its_own_and_each_death_another(ledger):
    id_ = die(ledger, options='{"on_dead": "hook"}')
    write.replay(ledger, name_of(ledger, id_))
    assert fetch(ledger, id_, "fingerprint") is None
    by = claim(ledger, id_)
    write.finish(ledger, [failed(id_, by, state=State.DEAD)])

    assert notices(ledger) == [(c, id_, generation, "max_retries", "hook") for generation in (1, 2) for c in ("broker", "hook")]


def test_a_notice_says_what_the_job_was_like_also_after_it_is_gone(ledger):
    id_ = die(ledger, "it broke")
    stored = row(ledger, id_)
    assert dead.discard(ledger, name_of(ledger, id_)) == ("work", "default", "dead", "max_retries")

    with ledger.transaction():
        (notice,) = dead.take_for_broker(ledger, "postgres", own="postgres", limit=10)

    assert notice.context() == {
        "id": str(stored["message_id"]), "actor": "work", "queue": "default", "generation": 1, "reason": "max_retries",
        "error_type": "ValueError", "error": "it broke", "fingerprint": stored["fingerprint"], "attempts": 1, "failures": 1, "lost": 0,
        "created_at": stored["created_at"].astimezone(UTC).isoformat(), "died_at": stored["finished_at"].astimezone(UTC).isoformat(),
    }  # fmt: skip


def test_notices_go_to_the_route_of_their_queue(ledger):
    ledger.execute("INSERT INTO switchyard.route (queue, broker) VALUES ('*', 'redis'), ('mail', 'rabbitmq')")
    here, there = die(ledger, broker="redis", grace=30.0), die(ledger, queue="mail", broker="redis", grace=30.0)

    with ledger.transaction():
        taken = {
            name: [n.job_id for n in dead.take_for_broker(ledger, name, own="postgres", limit=9)]
            for name in ("redis", "rabbitmq")
        }

    assert taken == {"redis": [here], "rabbitmq": [there]}


def test_the_same_failure_has_the_same_fingerprint_and_another_one_another(ledger):
    same = [die(ledger, f"order {n}") for n in (1, 22)]
    others = [
        die(ledger, "order 1", actor="work", reason="permanent"),
        die(ledger, "order 1", error_type="KeyError"),
        die(ledger, "order one"),
        expired(ledger),
    ]

    kinds = [fetch(ledger, id_, "fingerprint") for id_ in (*same, *others)]
    assert kinds[0] == kinds[1]
    assert len(set(kinds)) == 1 + len(others)


def test_a_job_that_expired_is_of_one_kind_whoever_noticed(ledger):
    by_keeper = expired(ledger)
    by_worker = die(ledger, "its turn came 3.2 s after its max_age", reason="expired", error_type="Expired")

    assert fetch(ledger, by_keeper, "fingerprint") == fetch(ledger, by_worker, "fingerprint")


def test_pages_go_from_the_latest_death_to_the_first_without_a_gap(ledger):
    ids = [die(ledger, f"n {n}") for n in range(7)]
    # Two that died in one moment are told apart by their ids.
    ledger.execute("UPDATE switchyard.job SET finished_at = '2026-01-01' WHERE id = ANY(%s)", [ids[:3]])

    seen, after = [], None
    while True:
        page = dead.page(ledger, EVERYTHING, limit=2, after=after)
        seen += page.letters
        after = page.next
        if after is None:
            break
        die(ledger, "later")

    assert [letter.id for letter in seen] == [name_of(ledger, id_) for id_ in reversed(ids)]
    assert {letter.traceback for letter in seen} == {"Traceback …"}


def test_the_traceback_is_that_of_the_last_execution(ledger):
    id_ = rescued(ledger)

    (letter,) = dead.page(ledger, EVERYTHING).letters

    assert (letter.id, letter.traceback) == (name_of(ledger, id_), None)


@pytest.mark.parametrize("after", ["", "x", "AQAAAAAAAAAAAAAAAAAAAAAAAAAA", "é", "A" * 500])
def test_a_cursor_that_no_page_gave_out_is_refused(ledger, after):
    with pytest.raises(ValueError, match="after"):
        dead.page(ledger, EVERYTHING, after=after)


@pytest.mark.parametrize("limit", [0, 201])
def test_a_limit_out_of_range_is_refused(ledger, limit):
    with pytest.raises(ValueError, match="limit"):
        dead.page(ledger, EVERYTHING, limit=limit)
    with pytest.raises(ValueError, match="limit"):
        dead.groups(ledger, EVERYTHING, limit=limit)


def test_filters_leave_what_meets_them_all(ledger):
    mail = die(ledger, "100% of _all_ \\ is GONE", queue="mail")
    other = die(ledger, "100 of all is here", error_type="KeyError", reason="permanent")
    ledger.execute("UPDATE switchyard.job SET finished_at = '2026-01-01Z' WHERE id = %s", [mail])
    half = datetime(2026, 1, 2, tzinfo=UTC)

    def found(**filters):
        ids = [letter.id for letter in dead.page(ledger, DeadFilter(**filters)).letters]
        assert dead.count(ledger, DeadFilter(**filters)) == len(ids)
        return {name_of(ledger, id_): id_ for id_ in (mail, other)}.get(ids[0]) if len(ids) == 1 else len(ids)

    assert found() == found(actor="work") == 2
    assert found(queue="mail") == found(reason="max_retries") == found(error_type="ValueError") == found(until=half) == mail
    assert found(since=half) == found(search="keyerr") == found(reason="permanent", search="HERE") == other
    assert found(search="100%") == found(search="_all_ \\ is gone") == mail
    assert found(fingerprint=fetch(ledger, mail, "fingerprint")) == mail
    assert found(actor="nobody") == found(queue="mail", reason="permanent") == found(search="a\x00b") == 0
    with pytest.raises(ValueError, match="naive"):
        DeadFilter(since=datetime(2026, 1, 1))


def test_groups_are_counted_the_largest_first(ledger):
    many = [die(ledger, f"order {n}") for n in range(3)]
    one = die(ledger, "alone")

    first, second = dead.groups(ledger, EVERYTHING)

    assert (first.count, first.example, first.error) == (3, name_of(ledger, many[-1]), "order 2")
    assert (first.first_at, first.last_at) == (fetch(ledger, many[0], "finished_at"), fetch(ledger, many[-1], "finished_at"))
    assert (second.count, second.example, second.actor, second.reason) == (1, name_of(ledger, one), "work", "max_retries")
    assert dead.groups(ledger, EVERYTHING, limit=1) == [first]
    assert [group.count for group in dead.groups(ledger, DeadFilter(search="alone"))] == [1]


def test_a_replay_resets_what_belongs_to_the_generation_before(ledger):
    id_ = die(ledger)
    ledger.execute(
        "UPDATE switchyard.job SET cancel_requested_at = now(), reserved_at = now(), reserved_version = 1, blocked_on = 'k', line = 1.5"
    )

    job = rekeying.lock_ended(ledger, name_of(ledger, id_))
    changed = {"payload": '{"args": [1], "kwargs": {}}', "keys": None, "period": None}
    assert dead.replay_changed(ledger, job, name_of(ledger, id_), queue="other", **changed)

    stored = row(ledger, id_)
    assert (stored["queue"], stored["payload"], stored["generation"]) == ("other", {"args": [1], "kwargs": {}}, 2)
    reset = ("cancel_requested_at", "reserved_at", "reserved_version", "blocked_on", "line", "fingerprint", "dead_reason")
    assert [stored[name] for name in reset] == [None] * len(reset)


def dead_ids(ledger, count):
    """So many dead rows, quickly, in the order in which they died."""
    write.enqueue_many(ledger, [new_job(max_age=60_000.0) for _ in range(count)])
    ledger.execute(
        "UPDATE switchyard.job SET state = 'dead', dead_reason = 'x', next_publish_at = NULL,"
        " finished_at = clock_timestamp() - make_interval(secs => 10000 - id) WHERE state = 'pending'"
    )
    return [
        row[0] for row in ledger.execute("SELECT id FROM switchyard.job WHERE state = 'dead' ORDER BY finished_at").fetchall()
    ]


@pytest.mark.parametrize("size", [10_000, 300])
def test_a_thousand_at_500_a_second_are_due_in_two_seconds_whatever_the_chunks(ledger, size):
    ids = dead_ids(ledger, 1_000)
    replayed, base = 0, None
    for chunk in dead.chunks(ledger, EVERYTHING, size=size):
        done = dead.replay_rows(ledger, chunk, interval=1 / 500, ahead=replayed / 500, base=base)
        replayed, base = replayed + done.replayed, done.base

    due = ledger.execute("SELECT id, run_at, next_publish_at, expires_at, state FROM switchyard.job ORDER BY run_at").fetchall()
    assert [row[0] for row in due] == ids
    assert {after[1] - before[1] for before, after in pairwise(due)} == {timedelta(milliseconds=2)}
    assert (replayed, done.last_due, due[0][1]) == (1_000, due[-1][1], base)
    assert all(row[1] == row[2] and row[3] == row[1] + timedelta(minutes=1) for row in due)
    assert [row[4] for row in due] == ["pending"] + ["scheduled"] * 999
    # The relay hands out what is due and nothing else: 500 in the first second, and the first one of the next.
    half = relay_due(ledger, now=base + timedelta(seconds=1), limit=2_000)
    assert {job.id for job in half} == set(ids[:501])
    assert len(relay_due(ledger, now=done.last_due, limit=2_000)) == 499


@pytest.mark.parametrize("broker", ["postgres", "redis"])
def test_what_waits_for_its_turn_is_not_claimed_before_by_any_trigger(ledger, broker):
    ids = dead_ids(ledger, 3)
    ledger.execute("UPDATE switchyard.job SET broker = %s", [broker])
    dead.replay_rows(ledger, ids, interval=60.0)

    by_id = write.claim_by_id(ledger, ids, actors=["work"], worker="w", token=name_of(ledger, ids[0]), lease=30.0)
    by_queue = write.claim_next(ledger, "default", 10, actors=["work"], worker="w", token=name_of(ledger, ids[1]), lease=30.0)

    assert [job.id for job in by_id + by_queue] == ids[:1]


def test_a_limit_and_a_filter_bound_a_replay(ledger):
    ids = dead_ids(ledger, 7)

    found = list(dead.chunks(ledger, EVERYTHING, size=3, limit=5))

    assert found == [ids[:3], ids[3:5]]
    assert list(dead.chunks(ledger, DeadFilter(actor="nobody"), size=3)) == []


def test_what_dies_again_while_the_others_are_replayed_is_not_replayed_again(ledger):
    ids = [die(ledger) for _ in range(3)]
    met = []

    for chunk in dead.chunks(ledger, EVERYTHING, size=1):
        met += chunk
        dead.replay_rows(ledger, chunk)
        by = claim(ledger, *chunk)
        write.finish(ledger, [failed(id_, by, state=State.DEAD) for id_ in chunk])
        assert len(met) <= 3

    assert met == ids


def test_rows_that_were_replayed_meanwhile_are_left_alone(ledger):
    ids = dead_ids(ledger, 3)
    write.replay(ledger, name_of(ledger, ids[1]))
    before = row(ledger, ids[1])

    assert dead.replay_rows(ledger, ids).replayed == 2

    assert row(ledger, ids[1]) == before
    assert dead.replay_rows(ledger, ids) == (0, None, None)


@pytest.fixture
def keyed(ledger):
    """Dead jobs of one key, and a job that has it now."""
    return lambda key: add(ledger, control=JobControl(unique_key=key))


def finish_dead(ledger, id_):
    by = claim(ledger, id_)
    write.finish(ledger, [failed(id_, by, state=State.DEAD)])
    return id_


def test_a_replay_whose_key_is_in_use_is_refused_with_the_holder(ledger, keyed):
    id_ = finish_dead(ledger, keyed("k"))
    holder = keyed("k")
    before = row(ledger, id_)

    with ledger.transaction():
        assert not dead.replay(ledger, name_of(ledger, id_))

    assert row(ledger, id_) == before
    assert dead.key_holder(ledger, name_of(ledger, id_)) == name_of(ledger, holder)
    by = claim(ledger, holder)
    write.finish(ledger, [completed(holder, by)])
    assert dead.key_holder(ledger, name_of(ledger, id_)) is None
    assert dead.replay(ledger, name_of(ledger, id_))


def test_of_many_with_one_key_the_first_is_replayed_and_none_whose_key_is_in_use(ledger, keyed):
    first, second = (finish_dead(ledger, keyed("a")) for _ in range(2))
    held = finish_dead(ledger, keyed("b"))
    keyed("b")
    free = finish_dead(ledger, add(ledger))

    done = dead.replay_rows(ledger, [first, second, held, free], interval=1.0)

    assert done.replayed == 2
    assert [fetch(ledger, id_, "state") for id_ in (first, second, held, free)] == ["pending", "dead", "dead", "scheduled"]


def test_a_key_that_is_taken_while_its_job_is_replayed_is_seen_at_the_next_look(ledger, keyed, connect):
    id_, other = finish_dead(ledger, keyed("k")), finish_dead(ledger, add(ledger))
    rival = connect()

    with rival.transaction():
        add_rival = new_job(control=JobControl(unique_key="k"))
        write.enqueue_many(rival, [add_rival])
        replay = Meanwhile(lambda: dead.replay_rows(ledger, [id_, other]))
        wait_for_lock(connect(), ledger.info.backend_pid)

    assert replay.result().replayed == 1
    assert [fetch(ledger, one, "state") for one in (id_, other)] == ["dead", "pending"]


def test_of_two_replays_at_once_one_does_it(ledger, connect):
    ids = dead_ids(ledger, 3)
    first, onlooker = connect(), connect()

    with first.transaction():
        assert dead.replay_rows(first, ids[:2]).replayed == 2
        # What another one has in hand is passed by in chunks, and waited for by itself.
        assert dead.replay_rows(ledger, ids).replayed == 1
        alone = Meanwhile(lambda: dead.replay(ledger, name_of(onlooker, ids[0])))
        wait_for_lock(onlooker, ledger.info.backend_pid)

    assert alone.result() is False
    assert {fetch(ledger, id_, "generation") for id_ in ids} == {2}


def test_a_replay_that_dies_before_its_commit_leaves_everything_dead(ledger, connect):
    ids = dead_ids(ledger, 3)
    before = [row(ledger, id_) for id_ in ids]
    caller = connect()

    caller.execute("BEGIN")
    assert dead.replay_rows(caller, ids, interval=1.0).replayed == 3
    backend = caller.info.backend_pid
    caller.close()
    # Its locks go with it, a moment later.
    wait_until(lambda: not ledger.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [backend]).fetchall())

    assert [row(ledger, id_) for id_ in ids] == before
    assert dead.replay_rows(ledger, ids, interval=1.0).replayed == 3


@pytest.mark.parametrize("state", State)
def test_only_the_dead_and_the_cancelled_are_discarded(ledger, state):
    id_ = add_in(ledger, state)

    gone = dead.discard(ledger, name_of(ledger, id_))

    assert (gone is not None) is (state in (State.DEAD, State.CANCELLED))
    assert (ledger.execute("SELECT 1 FROM switchyard.job WHERE id = %s", [id_]).fetchone() is None) is (gone is not None)


def test_a_chunk_of_removals_leaves_what_is_not_dead_any_more(ledger):
    ids = dead_ids(ledger, 3)
    write.replay(ledger, name_of(ledger, ids[1]))

    assert dead.discard_rows(ledger, ids) == 2

    assert [row_[0] for row_ in ledger.execute("SELECT id FROM switchyard.job").fetchall()] == [ids[1]]


def test_the_view_shows_the_dead_letters(ledger):
    id_ = die(ledger, "it broke")
    add(ledger)
    stored = row(ledger, id_)

    cursor = ledger.execute("SELECT * FROM switchyard.dead_letter")
    names = [column.name for column in cursor.description]
    (found,) = [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]

    assert (found["id"], found["reason"], found["error"]) == (stored["message_id"], "max_retries", "it broke")
    assert (found["attempts"], found["died_at"], found["fingerprint"]) == (1, stored["finished_at"], stored["fingerprint"])


def test_notices_that_nobody_could_act_on_are_given_up_after_a_while(ledger):
    die(ledger, options='{"on_dead": "nobody"}')
    week = timedelta(days=7)

    assert dead.forget_notices(ledger, week) == []
    assert sorted(dead.forget_notices(ledger, week, now=datetime.now(UTC) + timedelta(days=8))) == [
        ("broker", "nobody"),
        ("hook", "nobody"),
    ]
    assert notices(ledger) == []


def test_a_filter_that_says_nothing_is_as_good_as_none():
    assert asdict(DeadFilter(actor=None)) == asdict(EVERYTHING)


def step_after(ledger, upstream):
    """A step that waits for a job's completion."""
    control = JobControl(upstream_id=name_of(ledger, upstream), wait_reason="upstream")
    return add(ledger, control=control, options='{"piped": true}')


def test_a_throttled_replay_of_a_step_that_never_began_waits_for_what_it_waited_for(ledger):
    first = add_in(ledger, State.DEAD)
    second = step_after(ledger, first)
    dies = "UPDATE switchyard.job SET state = 'dead', dead_reason = 'x', finished_at = clock_timestamp(), wait_reason = NULL WHERE id = %s"
    ledger.execute(dies, [second])

    assert dead.replay_rows(ledger, [first, second], interval=1.0).replayed == 2

    assert (fetch(ledger, second, "state"), fetch(ledger, second, "wait_reason")) == ("scheduled", "upstream")
    assert fetch(ledger, second, "next_publish_at") is None
    ending = completed(first, claim(ledger, first))
    ending.upstream, ending.handed = name_of(ledger, first), "7"
    write.finish(ledger, [ending])
    assert (fetch(ledger, second, "state"), fetch(ledger, second, "payload")["args"]) == ("pending", [7])


@pytest.mark.parametrize("many", [False, True])
def test_what_waits_for_a_job_that_is_discarded_is_cancelled(ledger, many):
    first = add_in(ledger, State.DEAD)
    second = step_after(ledger, first)
    third = step_after(ledger, second)

    if many:
        assert dead.discard_rows(ledger, [first]) == 1
    else:
        assert dead.discard(ledger, name_of(ledger, first)) is not None

    assert [fetch(ledger, id_, "state") for id_ in (second, third)] == ["cancelled"] * 2


def test_a_step_is_not_replayed_to_wait_for_a_job_that_was_removed(ledger):
    first = add_in(ledger, State.DEAD)
    step = step_after(ledger, first)
    dead.discard(ledger, name_of(ledger, first))

    assert not dead.replay(ledger, name_of(ledger, step))

    assert [fetch(ledger, step, name) for name in ("state", "generation", "wait_reason")] == ["cancelled", 1, None]


def test_a_step_is_not_replayed_to_wait_for_a_group_that_lost_a_job(ledger):
    outer, inner = str(uuid4()), str(uuid4())
    whole = [NewBatch(id=outer, root_id=outer, followed=True), NewBatch(id=inner, root_id=outer, parent_id=outer, total=1)]
    batches.make(ledger, whole)
    member = add(ledger, control=JobControl(batch_id=inner))
    step = add(ledger, control=JobControl(upstream_id=outer, wait_reason="upstream"))
    for id_ in (step, member):
        assert control.cancel(ledger, name_of(ledger, id_))
    assert dead.replay(ledger, name_of(ledger, step))
    assert fetch(ledger, step, "wait_reason") == "upstream"

    dead.discard(ledger, name_of(ledger, member))

    assert fetch(ledger, step, "state") == "cancelled"
    assert not dead.replay(ledger, name_of(ledger, step))
