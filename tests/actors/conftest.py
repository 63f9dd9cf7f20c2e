"""What the actors' tests share: settings of the test's own, and real counterparts to talk to.

Actors are called as functions inside ``switchyard.job_context``: no worker, no broker, but the real servers, files and tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
from psycopg import Connection

import switchyard
from actors import outbound
from ledger.database import Database
from settings import Settings
from tests.actors.servers import HttpServer

Deploy = Callable[..., Settings]


@pytest.fixture
def deploy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Deploy:
    """Gives the actors settings of this test's own: ``deploy(webhook_secret="...")``. Files go below ``tmp_path``."""

    def deploy(**overrides: Any) -> Settings:
        settings = Settings(data_dir=tmp_path / "data", **overrides)
        monkeypatch.setattr(switchyard, "settings", lambda: settings)
        return settings

    return deploy


@pytest.fixture
def database(deploy: Deploy, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection[Any]]:
    """Gives the actors a migrated database of this test's own; yields a connection to it that commits at once."""
    deploy(database_url=database_url)
    ledger = Database(database_url, pool_size=4)
    monkeypatch.setattr(switchyard, "database", lambda: ledger)
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection
    ledger.close()


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    """An HTTP server on the loopback that answers as the test says."""
    with HttpServer() as server:
        yield server


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[trustme.CA]:
    """A certificate authority that this process trusts as the machine's own."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    outbound._tls.cache_clear()
    yield ca
    outbound._tls.cache_clear()
