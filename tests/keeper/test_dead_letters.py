"""What follows from a death: exactly one job for its hook whatever becomes of the keepers, and an entry in the broker's own place."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic

import dramatiq
import psycopg
import pytest
from dramatiq.brokers.stub import StubBroker

from brokers.transport import TransportDown
from keeper import dead_letters
from keeper.dead_letters import call_hooks
from keeper.duty import Keeping, Seen
from ledger import write
from ledger.states import State
from middleware.log_context import configure_structlog
from middleware.payload import CheckedPayload
from runtime.encoding import encode_payload
from tests.keeper.conftest import Broker
from tests.ledger.blocking import Meanwhile
from tests.ledger.factory import add, claim, failed, new_job


class Place:
    """A broker's own dead-letter place, and whether the broker is away."""

    dead_letter_place = "here"

    def __init__(self):
        self.put, self.down = [], False

    def put_dead(self, notices):
        if self.down:
            raise TransportDown("test", "away")
        self.put += [notice.id for notice in notices]


class Mourning(Broker):
    """A keeper's broker that knows two hooks."""

    def __init__(self, brokers=("postgres",)):
        super().__init__()
        self.stub = StubBroker(middleware=[CheckedPayload()])
        dramatiq.actor(actor_name="hook", broker=self.stub)(lambda letter: None)
        dramatiq.actor(actor_name="picky", broker=self.stub)(_picky)
        self.actors = dict(self.stub.actors)
        self.get_actor, self.emit_before = self.stub.get_actor, self.stub.emit_before
        self.places = {name: Place() for name in ("postgres", "redis", "rabbitmq")}
        self.routes.take({"*": brokers[0]} | {name: name for name in brokers[1:]})

    def new_job(self, message, delay=0.0):
        payload = encode_payload(message.actor_name, message.args, message.kwargs, 64_000)
        return new_job(message_id=message.message_id, actor=message.actor_name, payload=payload)

    def transport(self, name):
        return self.places[name]


def _picky(letter: int) -> None: ...


@pytest.fixture
def broker():
    return Mourning()


@pytest.fixture
def said(caplog):
    """What the duty has said so far."""
    configure_structlog()
    return lambda: [record.getMessage() for record in caplog.records if record.name == "keeper.dead_letters"]


@pytest.fixture
def keeping(node, broker):
    return Keeping(node, broker, seen=Seen(deaths=True))


def die(ledger, hook="hook", **fields):
    """A dead job; its message id."""
    id_ = add(ledger, **({"options": f'{{"on_dead": "{hook}"}}'} if hook else {}), **fields)
    by = claim(ledger, id_)
    write.finish(ledger, [failed(id_, by, state=State.DEAD)])
    return str(ledger.execute("SELECT message_id FROM switchyard.job WHERE id = %s", [id_]).fetchone()[0])


def hooked(ledger):
    """The dead jobs whose hooks have a job, once for each."""
    rows = ledger.execute("SELECT parent_id::text, payload FROM switchyard.job WHERE actor = 'hook' ORDER BY id").fetchall()
    assert all(payload["args"][0]["id"] == parent for parent, payload in rows)
    return [parent for parent, _ in rows]


def untold(ledger):
    return ledger.execute("SELECT consumer, message_id::text FROM switchyard.dead_notice ORDER BY 1, job_id").fetchall()


def test_each_death_is_told_once(ledger, keeping, broker):
    dead = [die(ledger), die(ledger, hook=None), die(ledger)]

    assert dead_letters.sweep(ledger, keeping) is None
    dead_letters.sweep(ledger, keeping)

    assert hooked(ledger) == [dead[0], dead[2]]
    assert broker.places["postgres"].put == dead
    assert untold(ledger) == []


def test_nothing_is_asked_while_no_death_waits(ledger, keeping):
    keeping.seen = Seen()

    assert dead_letters.sweep(None, keeping) is None


def test_a_keeper_that_dies_between_notice_and_job_leaves_both_to_the_next(ledger, database, broker):
    dead = die(ledger)
    other = database.dedicated("dies")

    other.execute("BEGIN")
    assert call_hooks(other, broker) == 1
    # While it lives nobody else may take the notice, and nothing waits for it.
    assert call_hooks(ledger, broker) == 0
    assert hooked(ledger) == []
    other.close()

    taken = Meanwhile(lambda: [call_hooks(ledger, broker) for _ in range(100)]).result()
    assert sum(taken) == 1
    assert hooked(ledger) == [dead]


def test_an_outage_between_notice_and_job_leaves_the_notice(ledger, broker, monkeypatch):
    dead = die(ledger)

    with monkeypatch.context() as outage:
        outage.setattr(write, "enqueue_many", _lost)
        with pytest.raises(psycopg.OperationalError):
            call_hooks(ledger, broker)

    assert ("hook", dead) in untold(ledger)
    assert call_hooks(ledger, broker) == 1
    assert hooked(ledger) == [dead]


def _lost(connection, jobs):
    raise psycopg.OperationalError("the connection was lost")


def test_a_keeper_that_dies_after_the_commit_leaves_nothing_to_do(ledger, database, broker):
    dead = die(ledger)
    with database.dedicated("dies") as other:
        assert call_hooks(other, broker) == 1

    assert call_hooks(ledger, broker) == 0
    assert hooked(ledger) == [dead]


def test_a_hook_that_this_process_does_not_know_is_left_to_one_that_does(ledger, keeping, broker):
    dead = die(ledger, hook="elsewhere")

    dead_letters.sweep(ledger, keeping)

    assert untold(ledger) == [("hook", dead)]


def test_a_hook_that_cannot_take_the_letter_is_said_and_keeps_no_other_from_its_job(ledger, keeping, said):
    bad, good = die(ledger, hook="picky"), die(ledger)

    dead_letters.sweep(ledger, keeping)

    assert hooked(ledger) == [good]
    assert untold(ledger) == []
    (line,) = said()
    assert "hook of a dead job not sent" in line
    assert bad in line


def test_a_hook_whose_job_is_refused_keeps_no_other_from_its_job(ledger, keeping, broker, monkeypatch, said):
    bad, good = die(ledger), die(ledger)
    taken = add(ledger, actor="other")
    (name,) = ledger.execute("SELECT message_id::text FROM switchyard.job WHERE id = %s", [taken]).fetchone()
    made = broker.new_job

    def new_job(message):
        job = made(message)
        return job._replace(message_id=name) if message.args[0]["id"] == bad else job

    monkeypatch.setattr(broker, "new_job", new_job)
    dead_letters.sweep(ledger, keeping)

    assert hooked(ledger) == [good]
    assert untold(ledger) == []
    (line,) = said()
    assert "hook of a dead job not sent" in line


def test_a_broker_that_is_down_holds_up_neither_hooks_nor_other_brokers(node, ledger):
    broker = Mourning(("redis", "rabbitmq"))
    ledger.execute("INSERT INTO switchyard.route (queue, broker) VALUES ('*', 'redis'), ('rabbitmq', 'rabbitmq')")
    keeping = Keeping(node, broker, seen=Seen(deaths=True))
    here, there = die(ledger), die(ledger, queue="rabbitmq")
    broker.places["redis"].down = True

    dead_letters.sweep(ledger, keeping)

    assert hooked(ledger) == [here, there]
    assert broker.places["rabbitmq"].put == [there]
    assert untold(ledger) == [("broker", here)]


def test_a_broker_that_was_down_is_tried_again_after_a_pause_that_grows(node, ledger, keeping, broker):
    dead = die(ledger, hook=None)
    place = broker.places["postgres"]
    place.down = True
    pauses = []
    for _ in range(8):
        before = monotonic()
        dead_letters.sweep(ledger, keeping)
        (retry,) = keeping.memory["dead_letters"].values()
        pauses.append(round(retry.at - before))
        # Not before its time.
        place.down = False
        dead_letters.sweep(ledger, keeping)
        place.down = True
        retry.at = 0.0

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert place.put == []
    place.down = False
    dead_letters.sweep(ledger, keeping)
    assert (place.put, untold(ledger)) == ([dead], [])


def test_a_broker_whose_circuit_is_open_is_left_alone(ledger, keeping, broker, monkeypatch):
    dead = die(ledger, hook=None)
    monkeypatch.setattr(broker.publisher, "is_open", lambda name: True)

    dead_letters.sweep(ledger, keeping)

    assert untold(ledger) == [("broker", dead)]


def test_a_turn_is_bounded_and_asks_for_the_next(ledger, keeping, broker, monkeypatch):
    monkeypatch.setattr(dead_letters, "CHUNK", 2)
    dead = [die(ledger) for _ in range(5)]

    turns = [dead_letters.sweep(ledger, keeping) for _ in range(3)]

    assert turns == [dead_letters.SOON, dead_letters.SOON, None]
    assert (hooked(ledger), broker.places["postgres"].put) == (dead, dead)


def test_what_nobody_can_be_told_for_a_week_is_given_up_and_said(ledger, keeping, said):
    die(ledger, hook="elsewhere")
    dead_letters.sweep(ledger, keeping)
    ledger.execute("UPDATE switchyard.dead_notice SET died_at = %s", [datetime.now(UTC) - timedelta(days=8)])

    dead_letters.sweep(ledger, keeping)

    assert untold(ledger) == []
    (line,) = said()
    assert "gave up telling a death" in line
