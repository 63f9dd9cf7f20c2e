"""The sending side of each test, and the traces that its workers' jobs leave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from settings import Settings
from tests.acceptance.jobs import TABLE, declare
from tests.conformance.system import System


@pytest.fixture
def system(settings: Settings) -> Iterator[System]:
    """This test's Switchyard without a worker: sends, and asks the ledger."""
    system = System(settings, declare)
    system.database.run(lambda connection: connection.execute(TABLE))
    yield system
    system.close()
