"""``switchyard broker status``: where the triggers of each queue go, and what lies in each broker, reachable or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from brokers import TRANSPORTS, make_transport
from brokers.transport import QueueRefused, TransportDown
from cli.moments import span
from cli.plain import say_json
from cli.tables import Listing, listing, print_listing
from cli.terminal import console
from errors import SettingsError
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


def run_status(settings: Settings, *, as_json: bool) -> None:
    """Print the table, or one JSON object. Raises: LedgerUnavailable."""
    database = Database(settings.database_url.get_secret_value(), pgbouncer=settings.pgbouncer)
    try:
        uses, queues = database.run(lambda connection: broker_uses(connection, TRANSPORTS))
    finally:
        database.close()
    depths = {use.name: depth_of(use.name, queues, settings) for use in uses}
    if as_json:
        say_json({"brokers": [_plain(use, depths[use.name]) for use in uses]})
        return
    print_listing(_table(uses, depths))
    for use in uses:
        for route in use.routes:
            if route.overruled:
                console().print(overruled(route))
        # Nobody needs a running RabbitMQ to look at Redis.
        depth = depths[use.name]
        if depth.reason is not None and _concerns(use):
            console().print(f"{use.name} is unreachable from here: {depth.reason}", style="yellow")
        for refused in depth.refused:
            console().print(
                f"{use.name} refuses the queue {refused.queue}: {refused.reason}. {capitalised(refused.advice)}.",
                style="yellow", markup=False, highlight=False,
            )  # fmt: skip


def capitalised(text: str) -> str:
    """The text, as it begins a sentence."""
    return text[:1].upper() + text[1:]


def overruled(route: Route) -> str:
    """What follows from an operator's decision about a route."""
    others = " and ".join(route.overruled)
    return (
        f"{named(route)}: an operator decided for {route.broker}; workers that declare {others} follow. "
        f"Set BROKER (or QUEUE_BROKERS) accordingly when they are restarted."
    )


def _concerns(use: BrokerUse) -> bool:
    return bool(use.routes or use.pending or use.declared_by or use.consumed_by or use.epoch)


def depth_of(name: str, queues: Sequence[str], settings: Settings) -> Depth:
    """Ask a broker how many triggers of these queues it holds; an answer also says that it can be reached."""
    try:
        transport = make_transport(name, settings)
    except SettingsError as error:
        return Depth(None, error.reason)
    try:
        return Depth(sum(transport.depth(queues).values()), refused=transport.refusals(queues))
    except TransportDown as error:
        return Depth(None, str(error).splitlines()[0])
    finally:
        transport.close()


def plain_refused(depth: Depth) -> list[dict[str, str]]:
    """The refused queues as JSON has them."""
    return [{"queue": refused.queue, "reason": refused.reason, "advice": refused.advice} for refused in depth.refused]


def _table(uses: list[BrokerUse], depths: dict[str, Depth]) -> Listing:
    headings = ("broker", "waiting", "triggers", "oldest", "declare", "consume", "epoch", "carries")
    table = listing(
        *headings,
        whole=("broker", "triggers", "oldest", "epoch"),
        below=("carries",),
        numbers=("waiting", "triggers", "oldest", "declare", "consume"),
        notes=(
            "waiting: jobs last published there; triggers: what it holds, also of jobs that went on elsewhere;",
            "declare, consume: living workers",
        ),
    )
    for use in uses:
        table.add_row(
            use.name,
            f"{use.pending:,}",
            _shown(depths[use.name]),
            None if use.oldest is None else span(use.oldest),
            use.declared_by,
            use.consumed_by,
            _epoch(use.epoch),
            ", ".join(map(named, use.routes)),
        )
    return table


def named(route: Route) -> str:
    """What a route is of, in words."""
    return "every other queue" if route.queue == EVERY_QUEUE else route.queue


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
    return found
