"""``switchyard limits``: what may run how often and how many at once, changed while jobs run."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

import switchyard
from cli.choosing import queue_name, values_checked
from cli.knowing import alike, warn_of_unknown
from cli.moments import span
from cli.plain import as_json, say_json
from cli.reporting import reported
from cli.tables import listing, print_listing
from ledger.limits import Limit, Rule, rate_text
from ledger.overview import clock


@click.group("limits", short_help="Look at limits, and change them.")
def limits_group() -> None:
    """Look at the limits of actors and queues, and change them while jobs run; docs/howto/limits.md."""


@limits_group.command("list", short_help="Show limits, what they hold, and who waits.")
@as_json
@reported
def list_command(as_json: bool) -> None:
    """Show every limit: what is in force and what the code declares, how much is used, how many jobs wait, when the next may start.

    Of a limit with keys, what is used and the next free time are those of its fullest key.
    """
    limits = switchyard.limits()
    if as_json:
        say_json({"limits": [_plain(limit) for limit in limits]})
        return
    headings = ("of", "limit", "declared", "keys", "used", "waiting", "next free")
    table = listing(*headings, whole=("of",), below=("declared", "limit"), numbers=("keys", "used", "waiting"))
    now = switchyard.database().run(clock) if limits else None
    for limit in limits:
        table.add_row(
            f"queue {limit.name}" if limit.kind == "queue" else limit.name,
            limit.in_force,
            None if not limit.overridden else limit.declared or "nothing",
            f"{limit.keys:,}",
            f"{limit.used:,}",
            f"{limit.waiting:,}",
            _when(limit, now),
        )
    print_listing(table, "no limits: no actor that a worker knows declares one, and nobody set one")


def _when(limit: Limit, now: datetime | None) -> str:
    if limit.next_free_at is None or now is None:
        return "when one ends" if limit.used >= limit.in_force.amount else "now"
    seconds = (limit.next_free_at - now).total_seconds()
    return f"in {span(seconds)}" if seconds > 0.05 else "now"


def _plain(limit: Limit) -> dict[str, Any]:
    plain = asdict(limit)
    for name in ("in_force", "declared"):
        rule: Rule | None = getattr(limit, name)
        plain[name] = None if rule is None else {"amount": rule.amount, "period": rule.period, "burst": rule.burst}
        if rule is not None and rule.period is not None:
            plain[name]["rate"] = rate_text(rule.amount, rule.period)
    return plain


def _one_of(actor: str | None, queue: str | None) -> str:
    if (actor is None) == (queue is None):
        raise click.UsageError("say whose: an ACTOR, or --queue NAME")
    return f"queue {queue}" if queue is not None else str(actor)


@limits_group.command("set", short_help="Put another limit in force, everywhere and at once.")
@click.argument("actor", required=False)
@click.option("--queue", callback=queue_name, metavar="NAME", help="A queue instead of an actor.")
@click.option("--rate", metavar="RATE", help="How often jobs may start: 100/minute, 10/second, 5/30s.")
@click.option("--burst", type=int, metavar="N", help="With --rate: how many may start together.")
@click.option("--concurrency", type=int, metavar="N", help="How many may run at once.")
@reported
@values_checked
def set_command(actor: str | None, queue: str | None, rate: str | None, burst: int | None, concurrency: int | None) -> None:
    """Put another limit in force for an ACTOR or a queue than the code declares. It stays through restarts and deploys until
    `switchyard limits reset`; jobs that run already go on.
    """
    whose = _one_of(actor, queue)
    try:
        switchyard.set_limit(actor=actor, queue=queue, rate=rate, burst=burst, concurrency=concurrency)
    except ValueError as error:
        limited = [limit.name for limit in switchyard.limits() if limit.kind != "queue"]
        hint = "" if actor is None or actor in limited else alike(actor, limited)
        raise click.UsageError(f"{error}{hint}") from None
    name = queue or actor
    for limit in switchyard.limits():
        if limit.name == name and limit.overridden and (limit.kind == "queue") is (queue is not None):
            click.echo(f"{whose}: {limit.in_force}")
    warn_of_unknown(queue=queue)


@limits_group.command("reset", short_help="Go back to what the code declares.")
@click.argument("actor", required=False)
@click.option("--queue", callback=queue_name, metavar="NAME", help="A queue instead of an actor.")
@reported
@values_checked
def reset_command(actor: str | None, queue: str | None) -> None:
    """Put in force again what the code of an ACTOR, or the setting QUEUE_CONCURRENCY, declares."""
    whose = _one_of(actor, queue)
    changed = switchyard.reset_limit(actor=actor, queue=queue)
    click.echo(f"{whose}: as declared" if changed else f"{whose}: nothing else was in force")
    if not changed:
        warn_of_unknown(queue=queue, actor=actor)
