"""``switchyard secrets``: keys for the arguments that actors keep secret."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.plain import as_json, say_json
from cli.reporting import reported
from control.secrets_rotation import Rotation, rotate_secrets
from runtime.secrets import new_key
from switchyard import settings


@click.group("secrets", short_help="Make and change the keys of secret arguments.")
def secrets_group() -> None:
    """Make and change the keys (SECRET_KEYS) of the arguments that actors keep secret; docs/howto/secrets.md."""


@secrets_group.command("new-key", short_help="Print a new key.")
def new_key_command() -> None:
    """Print a new key for SECRET_KEYS, from the system's random numbers. It is stored nowhere."""
    click.echo(new_key())


@secrets_group.command("rotate", short_help="Encrypt everything that is secret with the first key.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@as_json
@reported
def rotate_command(dry_run: bool, as_json: bool) -> None:
    """Encrypt the secrets of every job that waits, or is dead or cancelled, with the first key of SECRET_KEYS; those of the callbacks that
    batches keep; and secret results. Fingerprints of sends with an idempotency key are made anew as well.

    Safe while jobs flow, and to run again. The exit code is 1 while something is left that needs another key: then keep the old one.
    """
    found = rotate_secrets(settings(), dry_run=dry_run)
    if as_json:
        say_json(asdict(found))
    else:
        _say(found, "would be" if dry_run else "were")
    if not found.is_complete:
        raise SystemExit(1)


def _say(found: Rotation, were: str) -> None:
    click.echo(f"{found.rotated:,} of {found.looked_at:,} jobs with secrets {were} encrypted with the first key")
    click.echo(f"{found.batches_rotated:,} of {found.batches:,} batches with secret callbacks {were}")
    click.echo(f"{found.keys_rotated:,} of {found.keys:,} idempotency keys {were} given a fingerprint of the first key")
    left = (
        (found.missed, "changed meanwhile: run this again"),
        (found.running, "are running, and may wait again with an older key: run this again later"),
        (found.unreadable, "cannot be read with any key of SECRET_KEYS: add the key they were sent with"),
        (
            found.keys_left,
            "idempotency keys need an older key until they expire, or a repeated send is refused: their jobs were changed or removed",
        ),
    )
    for count, what in left:
        if count:
            click.echo(f"{count:,} {what}", err=True)
