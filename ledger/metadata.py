"""What all of the ledger's tables have in common: their schema, the names of their constraints, and the clock."""

from __future__ import annotations

from sqlalchemy import MetaData, text

from ledger.version import SCHEMA

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={"ix": "%(table_name)s_%(column_0_N_name)s", "ck": "%(table_name)s_%(constraint_name)s"},
)

NOW = text("clock_timestamp()")
