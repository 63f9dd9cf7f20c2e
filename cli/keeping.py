"""``switchyard keeper``: the keeper's duties in a process of their own, which runs no jobs.

Every worker has a keeper already; one of its own goes on relaying, rescuing and removing while no worker lives, or is kept from it by jobs
that hold the interpreter. It needs no actors: what a fleet knows stands in the ledger. Postgres away at the start is a refusal; later, it
waits and goes on by itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

import click

import switchyard
from brokers.broker import SwitchyardBroker
from cli.refusals import database_refusal
from cli.signals import Signals, Stopped
from errors import LedgerNotMigrated, LedgerUnavailable, SettingsError, SwitchyardError
from keeper import Keeper
from ledger.database import Database, require_migrated
from runtime.counters import Counters
from settings import Settings

#: How often the main thread looks whether the other one lives, in seconds; a signal is answered at once.
_INTERVAL: Final = 1.0


@dataclass(slots=True)
class _Node:
    """A process without claims."""

    settings: Settings
    database: Database
    counters: Counters = field(default_factory=Counters)


def run_keeper() -> None:
    """Do the duties until a signal comes.

    Raises:
        SettingsError: a setting is wrong, or BROKER is stub.
        LedgerUnavailable: Postgres cannot be reached, or is not migrated.
        SwitchyardError: the keeper ended by itself, which is a bug; its log has the reason.
    """
    broker = switchyard.configure()
    if not isinstance(broker, SwitchyardBroker):
        raise SettingsError("BROKER", "is stub, which has no ledger to keep; write postgres, redis or rabbitmq")
    try:
        require_migrated(broker.database)
    except LedgerNotMigrated:
        raise
    except LedgerUnavailable as error:
        raise database_refusal(error, broker.settings) from error
    keeper = Keeper(broker)
    try:
        with Signals() as signals:
            try:
                keeper.start(_Node(broker.settings, broker.database))
                click.echo(f"keeping the ledger, broker {broker.settings.broker}")
                while keeper.alive:
                    time.sleep(_INTERVAL)
            except Stopped as stopped:
                signals.stopping()
                click.echo(str(stopped))
                return
    finally:
        keeper.stop()
        broker.close()
    raise SwitchyardError("the keeper ended by itself; its last lines say why")
