"""The actors' tables: what the migrations make is what the module declares."""

from __future__ import annotations

import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from actors import tables


def test_the_migrations_make_the_declared_tables(database_url: str) -> None:
    engine = sqlalchemy.create_engine(sqlalchemy.make_url(database_url).set(drivername="postgresql+psycopg"))

    def ours(name: str | None, kind: str, _parents: object) -> bool:
        return name == tables.SCHEMA if kind == "schema" else True

    with engine.connect() as connection:
        options = {"include_schemas": True, "include_name": ours, "compare_server_default": True, "compare_type": True}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)
        checks = sqlalchemy.inspect(connection).get_check_constraints("import_run", schema=tables.SCHEMA)
    engine.dispose()

    assert differences == []
    declared = {c.name for c in tables.import_run.constraints if isinstance(c, sqlalchemy.CheckConstraint)}
    assert {check["name"] for check in checks} == declared
