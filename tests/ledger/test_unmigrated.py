"""A database without our tables, as whoever sends to it meets it."""

from __future__ import annotations

import pytest

import switchyard
from errors import LedgerNotMigrated
from tests.conformance.system import System


def test_a_send_to_a_database_that_is_not_migrated_names_the_command(settings, empty_database_url):
    kind = type(settings.database_url)
    system = System(settings.model_copy(update={"database_url": kind(empty_database_url)}))
    try:
        for use in (
            lambda: system.jobs.add.send(1, 2),
            lambda: switchyard.enqueue_many([system.jobs.add.message(1, 2)]),
            switchyard.counts,
        ):
            with pytest.raises(LedgerNotMigrated, match=r"has no switchyard tables, .* run `switchyard migrate`"):
                use()
    finally:
        system.close()
