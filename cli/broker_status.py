"""``switchyard broker status``: where the triggers of each queue go, and what lies in each broker, reachable or not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from brokers import TRANSPORTS, make_transport
from brokers.transport import TransportDown
from errors import SettingsError
from ledger.brokers import BrokerUse, broker_uses
from ledger.database import Database
from ledger.routes import EVERY_QUEUE, Route
from settings import Settings

_DASH: Final = "-"


@dataclass(frozen=True, slots=True)
class Depth:
    """How many triggers wait in a broker; None where it did not answer, with the reason."""

    triggers: int | None
    reason: str | None = None


def run_status(settings: Settings, console: Console, *, as_json: bool) -> None:
    """Print the table, or one JSON object. Raises: LedgerUnavailable."""
    database = Database(settings.database_url.get_secret_value(), pgbouncer=settings.pgbouncer)
    try:
        uses, queues = database.run(lambda connection: broker_uses(connection, TRANSPORTS))
    finally:
        database.close()
    depths = {use.name: _depth(use.name, queues, settings) for use in uses}
    if as_json:
        click.echo(json.dumps({"brokers": [_plain(use, depths[use.name]) for use in uses]}, default=str))
        return
    console.print(_table(uses, depths))
    for use in uses:
        for route in use.routes:
            if route.overruled:
                others = " and ".join(route.overruled)
                console.print(
                    f"{_named(route)}: an operator decided for {use.name}; workers that declare {others} follow. "
                    f"Set BROKER (or QUEUE_BROKERS) accordingly when they are restarted."
                )
        # Nobody needs a running RabbitMQ to look at Redis.
        depth = depths[use.name]
        if depth.reason is not None and _concerns(use):
            console.print(f"{use.name} is unreachable from here: {depth.reason}", style="yellow", markup=False)


def _concerns(use: BrokerUse) -> bool:
    return bool(use.routes or use.pending or use.declared_by or use.consumed_by or use.epoch)


def _depth(name: str, queues: list[str], settings: Settings) -> Depth:
    try:
        transport = make_transport(name, settings)
    except SettingsError as error:
        return Depth(None, error.reason)
    try:
        return Depth(sum(transport.depth(queues).values()))
    except TransportDown as error:
        return Depth(None, str(error).splitlines()[0])
    finally:
        transport.close()


def _table(uses: list[BrokerUse], depths: dict[str, Depth]) -> Table:
    table = Table(
        caption="waiting: jobs last published there; triggers: what it holds, also of jobs that went on elsewhere;\n"
        "declare, consume: living workers"
    )
    for heading in ("broker", "carries", "waiting", "triggers", "oldest", "epoch", "declare", "consume"):
        # In a narrow terminal these two take several lines, and the others stay whole.
        wraps = heading in ("carries", "epoch")
        table.add_column(heading, justify="left" if wraps or heading == "broker" else "right", no_wrap=not wraps)
    for use in uses:
        table.add_row(
            use.name,
            ", ".join(map(_named, use.routes)) or _DASH,
            f"{use.pending:,}",
            _shown(depths[use.name]),
            _DASH if use.oldest is None else _age(use.oldest),
            _epoch(use.epoch),
            str(use.declared_by),
            str(use.consumed_by),
        )
    return table


def _named(route: Route) -> str:
    return "every other queue" if route.queue == EVERY_QUEUE else route.queue


def _shown(depth: Depth) -> str:
    return "unreachable" if depth.triggers is None else f"{depth.triggers:,}"


def _epoch(epoch: dict[str, str]) -> str:
    if not epoch:
        return _DASH
    first = next(iter(epoch.values()))[:8]
    return first if len(epoch) == 1 else f"{first} and {len(epoch) - 1} more"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0.0, seconds):.1f} s"


def _plain(use: BrokerUse, depth: Depth) -> dict[str, Any]:
    """As JSON has it; ages in seconds."""
    found = asdict(use)
    found["oldest_seconds"] = found.pop("oldest")
    found["depth"] = depth.triggers
    found["unreachable"] = depth.reason
    return found
