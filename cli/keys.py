"""``switchyard key``: which job a key stands for, and letting it go."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from cli.reporting import reported
from control.keys import Kind
from ledger.keys import KeyBinding
from switchyard import find_by_key, forget_key


@click.command("key", short_help="Show which job a key stands for, or make it free.")
@click.argument("actor")
@click.argument("key")
@click.option("--unique", is_flag=True, help="A key of the actor's unique_key; without it, a sender's idempotency_key.")
@click.option("--forget", is_flag=True, help="Make it free: the next send with it makes a new job.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@reported
def key_command(actor: str, key: str, unique: bool, forget: bool, as_json: bool) -> None:
    """Show which job KEY of ACTOR stands for, and until when. The exit code is 1 if the key is free."""
    kind: Kind = "unique" if unique else "idempotency"
    found = find_by_key(actor, key, kind=kind)
    forgotten = forget and forget_key(actor, key, kind=kind)
    if as_json:
        shown = None if found is None else {name: value for name, value in asdict(found).items() if name != "fingerprint"}
        click.echo(json.dumps({"key": shown, "forgotten": forgotten}, default=str))
    elif found is None:
        other = "a sender's idempotency_key: leave out --unique" if unique else "a key of the actor's unique_key: add --unique"
        click.echo(f"the {kind} key {key!r} of actor {actor!r} is free ({other})", err=True)
    else:
        Console().print(_table(found))
        if forgotten:
            click.echo("forgotten: the next send with this key makes a new job")
    if found is None:
        raise SystemExit(1)


def _table(found: KeyBinding) -> Table:
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("key", f"{found.key} ({found.kind})")
    table.add_row("actor", found.actor)
    table.add_row("job", found.job_id)
    table.add_row("state", "removed, the key outlives it" if found.state is None else found.state.value)
    table.add_row("since", f"{found.created_at:%Y-%m-%d %H:%M:%S %Z}")
    table.add_row("until", "the job ends" if found.expires_at is None else f"{found.expires_at:%Y-%m-%d %H:%M:%S %Z}")
    return table
