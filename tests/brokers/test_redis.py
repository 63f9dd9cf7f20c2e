"""Redis: its scripts, and what becomes of triggers when it is killed, frozen, full, read-only or holds something foreign."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic

import pytest
import redis

from brokers import refusals
from brokers.redis import queue_key
from brokers.transport import SOCKET_TIMEOUT, Sender, Sent, TransportDown
from middleware.log_context import configure_structlog
from runtime.triggers import Outgoing
from settings import Settings
from tests.brokers.conftest import Ends, fetch_all, is_empty
from tests.rig.redis import PrivateRedis
from tests.rig.waiting import wait_until

#: The socket time-out of a transport and some room for a slow machine, in seconds.
BOUND = 15.0


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateRedis]:
    found = PrivateRedis()
    found.start()
    yield found
    found.kill()


@pytest.fixture
def redis_settings(server: PrivateRedis, settings: Settings) -> Settings:
    server.start()
    url = type(settings.redis_url)(server.url)
    return settings.model_copy(update={"broker": "redis", "redis_url": url})


@pytest.fixture
def ends(make_ends, redis_settings: Settings) -> Ends:
    found: Ends = make_ends(redis_settings)
    return found


@pytest.fixture
def client(server: PrivateRedis, redis_settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as found:
        yield found


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused queues are asked for again ten times a second, and what is said of them goes where ``caplog`` hears it."""
    configure_structlog()
    monkeypatch.setattr(refusals, "RETRY_MIN", 0.1)
    monkeypatch.setattr(refusals, "RETRY_MAX", 0.1)


def _said(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if what in record.getMessage()]


def _batch(ids: range, queue: str = "a", priority: int = 0) -> list[Outgoing]:
    return [Outgoing(number, queue, "send_email", priority) for number in ids]


def _refused(call: Callable[[], object]) -> TransportDown:
    """The TransportDown that a call ends with, within the time it may take."""
    started = monotonic()
    with pytest.raises(TransportDown) as error:
        call()
    assert monotonic() - started < BOUND
    return error.value


def _publish_refused(sender: Sender, batch: list[Outgoing]) -> list[int]:
    return _refused(lambda: sender.publish(batch)).unpublished


def test_a_waiting_trigger_keeps_its_place_when_published_again(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(10)))
    sender.publish([*_batch(range(9, -1, -1)), *_batch(range(10, 12))])

    assert [trigger.job_id for trigger in receiver.fetch(["a"], 50, 0).triggers] == list(range(12))


def test_a_raised_priority_moves_a_waiting_trigger_forward_and_a_lowered_one_does_not(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(5)))
    sender.publish([Outgoing(3, "a", "send_email", -10), Outgoing(0, "a", "send_email", 10)])

    assert [trigger.job_id for trigger in receiver.fetch(["a"], 50, 0).triggers] == [3, 0, 1, 2, 4]


def test_one_fetch_shares_its_limit_over_the_queues_and_leaves_none_of_it(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish([*_batch(range(100)), *_batch(range(100, 103), "b"), *_batch(range(200, 300), "c")])

    for _ in range(3):
        taken = [trigger.queue for trigger in receiver.fetch(["a", "b", "c", "d"], 20, 0).triggers]
        assert len(taken) == 20
        assert min(taken.count("a"), taken.count("c")) >= 5
    assert ends.transport.depth(["b"]) == {"b": 0}


def test_a_fetch_may_wait_longer_than_the_socket_time_out(ends: Ends) -> None:
    assert is_empty(ends.receiver().fetch(["a"], 1, SOCKET_TIMEOUT + 0.5))


def test_a_batch_of_many_thousands_is_one_call(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(20_000)))

    assert [trigger.job_id for trigger in fetch_all(receiver, ["a"], 20_000, limit=7_000)] == list(range(20_000))


def test_foreign_members_with_nul_bytes_harm_nobody(ends: Ends, client: redis.Redis, redis_settings: Settings) -> None:
    ends.sender().publish(_batch(range(3)))
    client.zadd(queue_key(redis_settings.broker_prefix, "a"), {b"x\0y\0z": 1, b"\0": 2})

    fetched = ends.receiver().fetch(["a"], 50, 0)

    assert [trigger.job_id for trigger in fetched.triggers] == [0, 1, 2]
    assert fetched.undecodable


def test_every_key_begins_with_the_prefix(ends: Ends, client: redis.Redis, redis_settings: Settings) -> None:
    before = set(client.scan_iter())
    ends.sender().publish([*_batch(range(3)), *_batch(range(3), "b")])

    made = set(client.scan_iter()) - before
    assert made
    assert all(key.startswith(redis_settings.broker_prefix.encode()) for key in made)


def test_forgotten_scripts_are_loaded_again(ends: Ends, client: redis.Redis) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    for _ in range(2):
        client.script_flush()
        sender.publish([*_batch(range(5)), *_batch(range(5, 9), "b")])
        client.script_flush()
        assert len(fetch_all(receiver, ["a", "b"], 9)) == 9


def test_a_kill_is_reported_and_the_next_call_reconnects(ends: Ends, server: PrivateRedis) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(5)))
    receiver.fetch(["a"], 1, 0)

    server.kill()
    assert _publish_refused(sender, _batch(range(100, 103))) == [100, 101, 102]
    _refused(lambda: receiver.fetch(["a"], 5, 0.2))
    _refused(lambda: ends.transport.depth(["a"]))
    server.start()

    assert sender.publish(_batch(range(100, 103))) == []
    assert len(fetch_all(receiver, ["a"], 3)) == 3
    assert ends.transport.depth(["a"]) == {"a": 0}


def test_a_restart_between_two_calls_goes_unnoticed(ends: Ends, server: PrivateRedis) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(5)))
    fetch_all(receiver, ["a"], 5)

    server.restart()

    assert sender.publish(_batch(range(5, 10))) == []
    assert len(fetch_all(receiver, ["a"], 5)) == 5


def test_a_kill_ends_a_blocked_fetch_at_once(ends: Ends, server: PrivateRedis) -> None:
    receiver = ends.receiver()
    receiver.fetch(["a"], 1, 0)
    ended: list[float] = []

    def wait() -> None:
        with pytest.raises(TransportDown):
            receiver.fetch(["a"], 1, 30.0)
        ended.append(monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.1)
    killed = monotonic()
    server.kill()
    thread.join(BOUND)
    assert ended
    assert ended[0] - killed < 4.0


def test_a_frozen_server_holds_nobody_longer_than_the_time_out_and_nothing_is_repeated(ends: Ends, server: PrivateRedis) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(3)))
    fetch_all(receiver, ["a"], 3)
    server.freeze()
    try:
        # Two at once, so that the test takes the time-out once.
        refused: list[list[int]] = []
        thread = threading.Thread(target=lambda: refused.append(_publish_refused(sender, _batch(range(10, 13)))))
        thread.start()
        _refused(lambda: receiver.fetch(["a"], 5, 1.0))
        thread.join(BOUND)
        assert refused == [[10, 11, 12]]
    finally:
        server.thaw()

    # The unanswered script may have run when the server woke up; published again, each is there once all the same.
    sender.publish(_batch(range(10, 13)))
    assert sorted(trigger.job_id for trigger in fetch_all(ends.receiver(), ["a"], 3)) == [10, 11, 12]
    assert is_empty(receiver.fetch(["a"], 5, 0.2))


def test_a_full_server_is_transport_down_and_writes_nothing(ends: Ends, client: redis.Redis) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(3)))
    client.config_set("maxmemory", "1")
    try:
        assert _publish_refused(sender, _batch(range(10, 12))) == [10, 11]
        # What is there can still be taken.
        assert len(fetch_all(receiver, ["a"], 3)) == 3
    finally:
        client.config_set("maxmemory", "0")
    assert is_empty(receiver.fetch(["a"], 5, 0))
    assert sender.publish(_batch(range(10, 12))) == []
    assert len(fetch_all(receiver, ["a"], 2)) == 2


def test_a_read_only_replica_is_transport_down(ends: Ends, client: redis.Redis) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(3)))
    client.replicaof("127.0.0.1", 9)
    try:
        assert _publish_refused(sender, _batch(range(10, 12))) == [10, 11]
        _refused(lambda: receiver.fetch(["a"], 5, 0.2))
    finally:
        client.replicaof("NO", "ONE")
    sender.publish(_batch(range(10, 12)))
    assert len(fetch_all(receiver, ["a"], 5)) == 5


def test_a_queue_that_holds_something_else_takes_only_its_own_triggers_down(
    ends: Ends, client: redis.Redis, redis_settings: Settings, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    key = queue_key(redis_settings.broker_prefix, "b")
    client.set(key, "somebody else's")

    for _ in range(2):
        assert sender.publish([*_batch(range(3)), *_batch(range(3, 6), "b"), *_batch(range(6, 8), "c")]) == [3, 4, 5]
    assert sender.refused() == ["b"]
    assert len(fetch_all(receiver, ["a", "b", "c"], 5)) == 5
    # With nothing there it is heard of by whoever blocks; what comes later is taken all the same.
    for number in range(3):
        assert is_empty(receiver.fetch(["a", "b", "c"], 5, 0.1))
        sender.publish(_batch(range(10 + number, 11 + number)))
        assert [trigger.job_id for trigger in fetch_all(receiver, ["a", "b", "c"], 1)] == [10 + number]
    assert is_empty(receiver.fetch(["b"], 5, 0.1))
    assert client.get(key) == b"somebody else's"
    assert len(_said(caplog, "'refused': 'publish'")) == len(_said(caplog, "'refused': 'consume'")) == 1
    assert key in _said(caplog, "refuses this queue")[0]
    assert [refused.queue for refused in ends.transport.refusals(["a", "b", "c"])] == ["b"]
    assert ends.transport.depth(["a", "b"]) == {"a": 0, "b": 0}
    inspector = ends.transport.inspector()
    assert inspector.lost([Sent(1, "b", "work", 0, 1.0), Sent(2, "a", "work", 0, 1.0)], {}) == [2]
    inspector.close()

    client.delete(key)
    wait_until(lambda: sender.idle() == [] and not sender.refused(), 30, "it is taken again")
    assert sender.publish(_batch(range(3, 6), "b")) == []
    assert len(fetch_all(receiver, ["a", "b", "c"], 3)) == 3


def test_a_key_that_the_access_list_refuses_takes_no_other_queue_with_it(
    make_ends, redis_settings: Settings, server: PrivateRedis, client: redis.Redis, soon: None
) -> None:
    prefix = redis_settings.broker_prefix
    keys = [f"~{queue_key(prefix, 'a')}", f"~{prefix}:{{q}}"]
    client.execute_command("ACL", "SETUSER", "narrow", "on", ">narrow", "+@all", *keys)
    url = server.url.replace("redis://", "redis://narrow:narrow@")
    ends = make_ends(redis_settings.model_copy(update={"redis_url": type(redis_settings.redis_url)(url)}))
    sender, receiver = ends.sender(), ends.receiver()

    for _ in range(2):
        assert sender.publish([*_batch(range(3)), *_batch(range(3, 6), "b")]) == [3, 4, 5]
        assert len(fetch_all(receiver, ["a", "b"], 3)) == 3
    assert sender.refused() == ["b"]
    assert is_empty(receiver.fetch(["a", "b"], 5, 0.1))
    assert [refused.queue for refused in ends.transport.refusals(["a", "b"])] == ["b"]
    assert ends.transport.depth(["a", "b"]) == {"a": 0, "b": 0}

    client.execute_command("ACL", "SETUSER", "narrow", f"~{queue_key(prefix, 'b')}")
    wait_until(lambda: sender.idle() == [] and not sender.refused(), 30, "it is taken again")
    assert sender.publish(_batch(range(3, 6), "b")) == []
    assert len(fetch_all(receiver, ["a", "b"], 3)) == 3

    # What every queue needs is no matter of one of them.
    client.execute_command("ACL", "SETUSER", "narrow", "resetkeys", f"~{queue_key(prefix, 'a')}")
    assert _publish_refused(sender, _batch(range(3))) == [0, 1, 2]
    client.execute_command("ACL", "SETUSER", "narrow", "-@scripting", *keys)
    assert _publish_refused(sender, _batch(range(3))) == [0, 1, 2]
    _refused(lambda: receiver.fetch(["a"], 5, 0.1))
    assert not sender.refused()


def test_a_wrong_password_is_transport_down(make_ends, redis_settings: Settings, server: PrivateRedis) -> None:
    url = server.url.replace("redis://", "redis://:wrong@")
    ends = make_ends(redis_settings.model_copy(update={"redis_url": type(redis_settings.redis_url)(url)}))

    assert _publish_refused(ends.sender(), _batch(range(2))) == [0, 1]
    _refused(lambda: ends.transport.depth([]))


def test_giving_back_to_a_dead_server_is_no_error(ends: Ends, server: PrivateRedis) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(3)))
    taken = receiver.fetch(["a"], 3, 1.0).triggers

    server.kill()
    receiver.give_back(taken)
    receiver.settle(taken)
    receiver.close()
