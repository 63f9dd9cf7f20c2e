"""F9: the network between one process and one server."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.proxy import DOWN, UP, Proxy
from tests.faults.rig import LEASE, Links, Rig, pause
from tests.faults.scenarios import Plan, scenario


class Wires:
    """The proxies of one worker, of the producer, and the rig."""

    def __init__(self, rig: Rig, worker: Links, producer: Links) -> None:
        self.rig = rig
        self.worker = worker
        self.producer = producer


def _held(proxy: Proxy, *directions: str) -> None:
    proxy.hold(*directions)
    pause(1.75 * LEASE)
    proxy.release()


def _slow(proxy: Proxy) -> None:
    proxy.delay = 0.2
    pause(3.0)
    proxy.release()


def _dropped(wires: Wires, proxy: Proxy, request: bytes) -> None:
    before = proxy.dropped
    proxy.drop_reply(request)
    wires.rig.until(lambda: proxy.dropped > before, 30, f"a reply to {request!r} is dropped")


def _cut(wires: Wires, proxy: Proxy) -> None:
    before = proxy.dropped
    proxy.cut_after(wires.rig.random.randrange(1, 2_000))
    wires.rig.until(lambda: proxy.dropped > before, 30, "a connection is cut")


#: Name and deed. What a request holds: the arguments of a job only in the INSERT of a send, the result of a job only in its finish.
FAULTS: tuple[tuple[str, Callable[[Wires], None]], ...] = (
    ("the reply to a send's commit is lost", lambda w: _dropped(w, w.producer.postgres, b'"args"')),
    ("worker and Postgres are cut off", lambda w: _held(w.worker.postgres)),
    ("the reply to a job's own commit is lost", lambda w: _dropped(w, w.worker.postgres, b"COMMIT")),
    ("worker and broker are cut off", lambda w: _held(w.worker.broker)),
    ("the reply to a finish is lost", lambda w: _dropped(w, w.worker.postgres, b'token\\"')),
    ("Postgres does not hear the worker", lambda w: _held(w.worker.postgres, UP)),
    ("the worker does not hear Postgres", lambda w: _held(w.worker.postgres, DOWN)),
    ("the worker does not hear the broker", lambda w: _held(w.worker.broker, DOWN)),
    ("the reply to a publish is lost", lambda w: _dropped(w, w.producer.broker, b"plain")),
    ("worker and Postgres are reset", lambda w: w.worker.postgres.reset()),
    ("a reply of Postgres is cut in the middle", lambda w: _cut(w, w.worker.postgres)),
    ("worker and broker are reset", lambda w: w.worker.broker.reset()),
    ("Postgres takes 0.2 to 0.4 s", lambda w: _slow(w.worker.postgres)),
    ("the producer and Postgres are cut off", lambda w: _held(w.producer.postgres)),
)


@scenario(
    "F9",
    "the network: cut off in both or one direction, slow, replies to commits and publishes lost, reset in the middle",
    unit="faults",
    full=20 * len(FAULTS),
    weight=4,
    kinds=len(FAULTS),
)
def hurt_network(rig: Rig, plan: Plan) -> None:
    """One worker and the producer behind proxies, another worker beside them."""
    rig.staff(1)
    (behind,) = rig.staff(1, linked=True)
    worker, producer = rig.links_of(behind), rig.stream(linked=True)
    assert worker is not None
    assert producer is not None
    wires = Wires(rig, worker, producer)
    rig.baseline = rig.needs()
    for trial in plan:
        name, hurt = FAULTS[trial % len(FAULTS)]
        with rig.faulty(name):
            hurt(wires)
        rig.flowing(10)
    assert all(worker.running for worker in rig.workers), rig.logs()
