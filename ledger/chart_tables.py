"""The tables that charts are drawn from: how full the queues were, and what the workers did."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Float, Integer, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY

from ledger.metadata import metadata

sample = Table(
    "sample",
    metadata,
    Column("at", DateTime(timezone=True), primary_key=True),
    Column("queue", Text, primary_key=True),
    Column("scheduled", BigInteger, nullable=False),
    Column("pending", BigInteger, nullable=False),
    Column("running", BigInteger, nullable=False),
    Column("retrying", BigInteger, nullable=False),
    # Seconds since the oldest pending job became due; null: none is pending.
    Column("oldest_pending", Float),
)

activity = Table(
    "activity",
    metadata,
    # The minute in which the workers reported it.
    Column("at", DateTime(timezone=True), primary_key=True),
    Column("queue", Text, primary_key=True),
    Column("actor", Text, primary_key=True),
    # Executions by their end; dead are those of the failed that were the last.
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("dead", BigInteger, nullable=False),
    # How many of them waited, and ran, how long: the n-th number (from 0) counts those below 2^n milliseconds and not below 2^(n-1).
    Column("waits", ARRAY(Integer), nullable=False),
    Column("runs", ARRAY(Integer), nullable=False),
)
