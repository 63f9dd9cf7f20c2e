"""``switchyard key``: which job a key stands for, and letting it go."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import click

import switchyard
from cli.knowing import warn_of_unknown
from cli.moments import off
from cli.plain import as_json, say_json
from cli.reporting import reported
from cli.tables import print_details
from control.keys import Kind
from ledger.keys import KeyBinding
from ledger.overview import clock
from switchyard import find_by_key, forget_key


@click.command("key", short_help="Show which job a key stands for, or make it free.")
@click.argument("actor")
@click.argument("key")
@click.option("--unique", is_flag=True, help="A key of the actor's unique_key; without it, a sender's idempotency_key.")
@click.option("--forget", is_flag=True, help="Make it free: the next send with it makes a new job.")
@as_json
@reported
def key_command(actor: str, key: str, unique: bool, forget: bool, as_json: bool) -> None:
    """Show which job KEY of ACTOR stands for, and until when. The exit code is 1 if the key is free."""
    kind: Kind = "unique" if unique else "idempotency"
    found = find_by_key(actor, key, kind=kind)
    forgotten = forget and forget_key(actor, key, kind=kind)
    if as_json:
        shown = None if found is None else {name: value for name, value in asdict(found).items() if name != "fingerprint"}
        say_json({"key": shown, "forgotten": forgotten})
    elif found is None:
        other = "a sender's idempotency_key: leave out --unique" if unique else "a key of the actor's unique_key: add --unique"
        click.echo(f"the {kind} key {key!r} of actor {actor!r} is free ({other})", err=True)
        warn_of_unknown(actor=actor)
    else:
        _show(found, switchyard.database().run(clock))
        if forgotten:
            click.echo("forgotten: the next send with this key makes a new job")
    if found is None:
        raise SystemExit(1)


def _show(found: KeyBinding, now: datetime) -> None:
    print_details(
        [
            ("key", f"{found.key} ({found.kind})"),
            ("actor", found.actor),
            ("job", found.job_id),
            ("state", "removed, the key outlives it" if found.state is None else found.state.value),
            ("since", off(found.created_at, now)),
            ("until", "the job ends" if found.expires_at is None else off(found.expires_at, now)),
        ]
    )
