"""``switchyard migrate``: bring a database up to date, and say from where to where."""

from __future__ import annotations

from errors import LedgerForbidden, LedgerUnavailable
from ledger.database import Database, applied_revision
from ledger.version import LEDGER_REVISION


def migrate(database_url: str, *, pgbouncer: bool = False) -> tuple[str | None, str]:
    """Apply what is missing.

    A database that is newer than this code is left alone: migrations only ever expand, so it fits.

    Parameters:
        pgbouncer: the URL leads through PgBouncer in transaction mode.

    Returns:
        The revision before (None: there were no tables) and after.

    Raises:
        LedgerUnavailable: Postgres does not answer, or refuses to have its tables changed.
    """
    with Database(database_url, pgbouncer=pgbouncer).dedicated("migrate") as connection:
        try:
            before = applied_revision(connection)
        except LedgerForbidden as error:
            raise LedgerUnavailable(f"cannot migrate: {error.denied}; migrate as the owner of the schema") from error
    if before is not None and before >= LEDGER_REVISION:
        return before, before
    # Only here: these two take longer to load than all that a worker needs, and every command and worker would wait for them.
    from sqlalchemy.exc import DBAPIError

    import migrations

    try:
        migrations.upgrade(database_url)
    except DBAPIError as error:
        raise LedgerUnavailable(f"cannot migrate: {str(error.orig).strip().splitlines()[0]}") from error
    return before, LEDGER_REVISION
