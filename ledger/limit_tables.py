"""The tables of limits: what is allowed, and the keys that are asked for. See ``ledger/sql/limits.sql``."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, DateTime, Float, Integer, Table, Text, text

from ledger.metadata import NOW, metadata

rule = Table(
    "rule",
    metadata,
    # rate and concurrency: of an actor; queue: how many of a queue may run at once.
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    # In force: so many in a period of so many seconds (null: at once), and so many of them together.
    Column("amount", Integer, nullable=False),
    Column("period", Float),
    Column("burst", Integer),
    # What the code or the settings declare; null: nothing, an operator alone wants it.
    Column("declared_amount", Integer),
    Column("declared_period", Float),
    Column("declared_burst", Integer),
    # An operator decided otherwise, until it is reset.
    Column("overridden", Boolean, nullable=False, server_default=text("false")),
    # Raised with each change; what was promised under an older one is void, and until all of that came once more it is renewing.
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("renewing", Boolean, nullable=False, server_default=text("false")),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    CheckConstraint("kind IN ('rate', 'concurrency', 'queue')", name="kind_known"),
    CheckConstraint(
        "amount > 0 AND CASE WHEN kind = 'rate' THEN period > 0 AND burst > 0 ELSE period IS NULL AND burst IS NULL END",
        name="limits_something",
    ),
)

gate = Table(
    "gate",
    metadata,
    # rate or slot. What they remember stands in ledger/sql/limits.sql.
    Column("kind", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    # The rule's: an actor or a queue.
    Column("name", Text, nullable=False),
    Column("version", BigInteger, nullable=False, server_default=text("0")),
    Column("tat", DateTime(timezone=True)),
    Column("tail", DateTime(timezone=True)),
    Column("shift", Float, nullable=False, server_default=text("0")),
    Column("clock", Float, nullable=False, server_default=text("0")),
    Column("used_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    postgresql_with={"fillfactor": "70"},
)
