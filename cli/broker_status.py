"""``switchyard broker status``: where the triggers of each queue go, and what lies in each broker, reachable or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from brokers import TRANSPORTS, make_transport
from brokers.transport import QueueRefused, Transport, TransportDown
from cli.moments import span
from cli.plain import say_json
from cli.tables import Listing, listing, print_listing
from cli.terminal import console
from errors import SettingsError
from keeper.neighbours import ADVICE
from ledger import sent
from ledger.brokers import BrokerUse, broker_uses
from ledger.database import Database
from ledger.routes import EVERY_QUEUE, Route
from settings import Settings


@dataclass(frozen=True, slots=True)
class Depth:
    """How many triggers wait in a broker; None where it did not answer, with the reason."""

    triggers: int | None
    reason: str | None = None
    #: The queues that it refuses while it takes others.
    refused: Sequence[QueueRefused] = ()
    #: Other ledgers that use it with the same BROKER_PREFIX, as the keeper that watches over it has found.
    others: Sequence[str] = ()


def run_status(settings: Settings, *, as_json: bool) -> None:
    """Print the table, or one JSON object. Raises: LedgerUnavailable."""
    database = Database(settings.database_url.get_secret_value(), pgbouncer=settings.pgbouncer)
    try:
        (uses, queues), keepers = database.run(lambda connection: (broker_uses(connection, TRANSPORTS), sent.keepers(connection)))
    finally:
        database.close()
    depths = {use.name: depth_of(use.name, queues, settings, keepers.get(use.name)) for use in uses}
    if as_json:
        say_json({"brokers": [_plain(use, depths[use.name]) for use in uses]})
        return
    print_listing(_table(uses, depths))
    routes = [route for use in uses for route in use.routes]
    for use in uses:
        for route in use.routes:
            if route.overruled:
                console().print(overruled(route, routes))
        # Nobody needs a running RabbitMQ to look at Redis.
        depth = depths[use.name]
        if depth.reason is not None and _concerns(use):
            console().print(f"{use.name} is unreachable from here: {depth.reason}", style="yellow")
        for refused in depth.refused:
            console().print(
                f"{use.name} refuses the queue {refused.queue}: {refused.reason}. {capitalised(refused.advice)}.",
                style="yellow", markup=False, highlight=False,
            )  # fmt: skip
        if depth.others:
            console().print(
                f"{shared(use.name, depth.others, settings)}. {capitalised(ADVICE)}.",
                style="yellow",
                markup=False,
                highlight=False,
            )


def shared(name: str, others: Sequence[str], settings: Settings) -> str:
    """That other ledgers use a broker with the same prefix."""
    return (
        f"{name} at {make_transport(name, settings).place} carries triggers of other ledgers under the same BROKER_PREFIX, "
        f"{settings.broker_prefix}: {', '.join(others)}. Each system takes the other's triggers, so jobs of both start late"
    )


def capitalised(text: str) -> str:
    """The text, as it begins a sentence."""
    return text[:1].upper() + text[1:]


def overruled(route: Route, routes: Sequence[Route]) -> str:
    """What follows from an operator's decision about a route, one of ``routes``."""
    others = " and ".join(route.overruled)
    return (
        f"{named(route, routes)}: an operator decided for {route.broker}; workers that declare {others} follow. "
        f"Set BROKER (or QUEUE_BROKERS) accordingly when they are restarted."
    )


def _concerns(use: BrokerUse) -> bool:
    return bool(use.routes or use.pending or use.declared_by or use.consumed_by or use.epoch)


def depth_of(name: str, queues: Sequence[str], settings: Settings, keeper: str | None) -> Depth:
    """Ask a broker how many triggers of these queues it holds; an answer also says that it can be reached.

    Parameters:
        keeper: who watches over it, and has told it of other ledgers that it met there; None: nobody.
    """
    try:
        transport = make_transport(name, settings)
    except SettingsError as error:
        return Depth(None, error.reason)
    try:
        triggers, refused = sum(transport.depth(queues).values()), transport.refusals(queues)
        return Depth(triggers, refused=refused, others=_others(transport, keeper))
    except TransportDown as error:
        return Depth(None, str(error).splitlines()[0])
    finally:
        transport.close()


def _others(transport: Transport, keeper: str | None) -> Sequence[str]:
    try:
        presence = None if keeper is None else transport.presence(keeper)
    except TransportDown:
        # It has just answered: it refuses this alone.
        return ()
    return () if presence is None else presence.others


def plain_refused(depth: Depth) -> list[dict[str, str]]:
    """The refused queues as JSON has them."""
    return [{"queue": refused.queue, "reason": refused.reason, "advice": refused.advice} for refused in depth.refused]


def _table(uses: list[BrokerUse], depths: dict[str, Depth]) -> Listing:
    headings = ("broker", "waiting", "triggers", "oldest", "declare", "consume", "epoch", "carries")
    table = listing(
        *headings,
        whole=("broker", "triggers", "oldest", "epoch"),
        below=("carries", "epoch"),
        numbers=("waiting", "triggers", "oldest", "declare", "consume"),
        notes=(
            "waiting: jobs last published there; triggers: what it holds, also of jobs that went on elsewhere;",
            "declare, consume: living workers",
        ),
    )
    routes = [route for use in uses for route in use.routes]
    for use in uses:
        table.add_row(
            use.name,
            f"{use.pending:,}",
            _shown(depths[use.name]),
            None if use.oldest is None else span(use.oldest),
            use.declared_by,
            use.consumed_by,
            _epoch(use.epoch),
            ", ".join(named(route, routes) for route in use.routes),
        )
    return table


def named(route: Route, routes: Sequence[Route]) -> str:
    """What a route is of, in words; ``routes`` are all there are, since what is left to the general one depends on the others."""
    if route.queue != EVERY_QUEUE:
        return route.queue
    return "every queue" if all(other.queue == EVERY_QUEUE for other in routes) else "every other queue"


def _shown(depth: Depth) -> str:
    return "unreachable" if depth.triggers is None else f"{depth.triggers:,}"


def _epoch(epoch: dict[str, str]) -> str:
    if not epoch:
        return ""
    first = next(iter(epoch.values()))[:8]
    return first if len(epoch) == 1 else f"{first} and {len(epoch) - 1} more"


def _plain(use: BrokerUse, depth: Depth) -> dict[str, Any]:
    """As JSON has it; ages in seconds."""
    found = asdict(use)
    found["oldest_seconds"] = found.pop("oldest")
    found["depth"] = depth.triggers
    found["unreachable"] = depth.reason
    found["refused"] = plain_refused(depth)
    found["shared_with"] = list(depth.others)
    return found
