"""The ledger's migration history, and the two things anybody does with it: bring a database up to date, and ask where it stands.

The alembic version table lives in the ledger's own schema. A migration's docstring states its lock cost and whether it goes
before or after the code that needs it.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from ledger.version import LEDGER_REVISION

#: The newest revision in this package.
HEAD = LEDGER_REVISION


def alembic_config(database_url: str) -> Config:
    """An alembic configuration for this package and the given database, without an .ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["database_url"] = database_url
    return config


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the database to ``revision`` (default: the newest), one migration a transaction.

    Safe to run again and from several processes at once: each step finds out under the lock whether another process took it. Works
    through PgBouncer.
    """
    config = alembic_config(database_url)
    steps = list(ScriptDirectory.from_config(config).iterate_revisions(revision, "base"))
    for step in reversed(steps):
        command.upgrade(config, step.revision)


def downgrade(database_url: str, revision: str) -> None:
    """Take the database back to ``revision`` (``"base"`` removes every table, and the jobs in them)."""
    command.downgrade(alembic_config(database_url), revision)


def newest() -> str | None:
    """The head of the history as the files have it; a test holds it against ``HEAD``."""
    return ScriptDirectory(str(Path(__file__).parent)).get_current_head()


def engine(database_url: str) -> sqlalchemy.Engine:
    """A short-lived SQLAlchemy engine on psycopg for ``postgresql://`` URLs; it prepares nothing, which no pooler would keep."""
    url = sqlalchemy.make_url(database_url).set(drivername="postgresql+psycopg")
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args={"prepare_threshold": None})
