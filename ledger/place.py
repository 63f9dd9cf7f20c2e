"""Where a ledger is, for people."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict


def place(url: str) -> str:
    """Host, port and database of a DATABASE_URL, without user and password: ``db.example.com:5432/shop``."""
    parts = conninfo_to_dict(url)
    host, port, name = (parts.get(word) for word in ("host", "port", "dbname"))
    return f"{host or 'the local Postgres'}{f':{port}' if port else ''}{f'/{name}' if name else ''}"
