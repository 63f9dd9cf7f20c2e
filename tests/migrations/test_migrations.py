"""The history: linear, documented, reversible, equal to the models, and safe to run from two places at once."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

import migrations
from errors import LedgerNotMigrated, LedgerUnavailable
from ledger.database import Database, applied_revision, require_migrated
from ledger.tables import metadata
from ledger.version import LEDGER_REVISION, SCHEMA
from tests.ledger.blocking import Meanwhile
from tests.rig.postgres import Databases
from tests.rig.processes import ROOT
from tests.rig.waiting import wait_until

FILES = sorted(Path(migrations.__file__).parent.joinpath("versions").glob("[!_]*.py"))
SCRIPTS = ScriptDirectory(str(Path(migrations.__file__).parent))

CHECKS = """
    SELECT conrelid::regclass::text || ' ' || conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'switchyard'::regnamespace ORDER BY 1
"""
RULES = "SELECT proname, prosrc, provolatile FROM pg_proc WHERE pronamespace = 'switchyard'::regnamespace AND proname = 'job_is_sound'"
INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'switchyard' ORDER BY 1"
COLUMNS = """
    SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity
    FROM information_schema.columns WHERE table_schema = 'switchyard' ORDER BY 1, 2
"""
OPTIONS = "SELECT relname, reloptions FROM pg_class WHERE relnamespace = 'switchyard'::regnamespace AND relkind = 'r' ORDER BY 1"


@pytest.fixture
def from_models(databases: Databases) -> Iterator[str]:
    """A database with the tables as the models have them, made without alembic."""
    url = databases.create(migrated=False)
    with migrations.engine(url).begin() as connection:
        connection.execute(CreateSchema(SCHEMA))
        metadata.create_all(connection)
    yield url
    databases.drop(url)


def catalogue(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(query).fetchall()
    return [row for row in rows if "alembic_version" not in str(row[0])]


def test_alembic_finds_nothing_to_do(database_url):
    command.check(migrations.alembic_config(database_url))


@pytest.mark.parametrize(
    "query", [CHECKS, RULES, INDEXES, COLUMNS, OPTIONS], ids=["constraints", "rules", "indexes", "columns", "options"]
)
def test_the_migrated_ledger_is_what_the_models_say(database_url, from_models, query):
    assert catalogue(database_url, query) == catalogue(from_models, query)
    assert catalogue(database_url, query)


def test_every_check_of_the_models_is_named(database_url):
    names = {str(name).split(".")[-1].split()[-1] for name, _ in catalogue(database_url, CHECKS)}

    for table in metadata.tables.values():
        for constraint in table.constraints:
            if isinstance(constraint, CheckConstraint):
                assert postgresql.dialect().identifier_preparer.format_constraint(constraint) in names


def test_up_down_and_up_again_leaves_the_same_ledger(empty_database_url):
    migrations.upgrade(empty_database_url)
    first = [catalogue(empty_database_url, query) for query in (CHECKS, INDEXES, COLUMNS, OPTIONS)]

    migrations.downgrade(empty_database_url, "base")
    assert [row for row in catalogue(empty_database_url, COLUMNS) if row[0] != "alembic_version"] == []
    with psycopg.connect(empty_database_url) as connection:
        left = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'switchyard'::regnamespace"
            " UNION ALL SELECT nspname FROM pg_namespace WHERE nspname LIKE 'switchyard%' AND nspname <> 'switchyard'"
        ).fetchall()
    assert left == []

    migrations.upgrade(empty_database_url)
    assert [catalogue(empty_database_url, query) for query in (CHECKS, INDEXES, COLUMNS, OPTIONS)] == first


def test_each_step_can_be_taken_back_alone(empty_database_url):
    revisions = [script.revision for script in reversed(list(SCRIPTS.walk_revisions()))]

    for revision in revisions:
        migrations.upgrade(empty_database_url, revision)
        migrations.downgrade(empty_database_url, "-1")
        migrations.upgrade(empty_database_url, revision)
        with psycopg.connect(empty_database_url) as connection:
            assert applied_revision(connection) == revision


def test_the_history_is_linear_and_numbered():
    scripts = list(reversed(list(SCRIPTS.walk_revisions())))

    assert len(SCRIPTS.get_heads()) == 1
    assert [script.revision for script in scripts] == [f"{number:04}" for number in range(1, len(scripts) + 1)]
    assert [script.down_revision for script in scripts] == [None, *[script.revision for script in scripts[:-1]]]
    assert all(not script.branch_labels and not script.dependencies for script in scripts)


def test_the_code_asks_for_the_newest_revision():
    assert migrations.newest() == LEDGER_REVISION == migrations.HEAD


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_migration_is_named_and_documented(file):
    module = ast.parse(file.read_text())
    doc = ast.get_docstring(module) or ""

    assert re.fullmatch(r"\d{4}_[a-z]+(_[a-z0-9]+)+\.py", file.name)
    assert re.search(r"^Lock cost: \S", doc, re.MULTILINE)
    assert re.search(r"^Deploy: \S", doc, re.MULTILINE)
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    for name in ("upgrade", "downgrade"):
        assert not isinstance(functions[name].body[0], ast.Pass | ast.Raise), f"{name} is empty"


def test_two_upgrades_at_once_make_one_ledger(empty_database_url):
    # In processes of their own: alembic keeps its state in globals.
    code = "import sys, migrations; migrations.upgrade(sys.argv[1])"
    upgrades = [subprocess.Popen([sys.executable, "-c", code, empty_database_url], cwd=ROOT) for _ in range(3)]

    assert [process.wait(60) for process in upgrades] == [0, 0, 0]
    require_migrated(Database(empty_database_url))


def test_an_upgrade_waits_for_the_one_before(empty_database_url):
    with psycopg.connect(empty_database_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(727227001)")
        meanwhile = Meanwhile(lambda: migrations.upgrade(empty_database_url))
        wait_until(
            lambda: other.execute(
                # Between two questions it has no transaction: an index that is built meanwhile does not wait for it.
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND state = 'idle' AND query = 'ROLLBACK'"
            ).fetchone(),
            30,
            "the upgrade waits",
        )
        assert catalogue(empty_database_url, "SELECT nspname FROM pg_namespace WHERE nspname = 'switchyard'") == []

    meanwhile.result(30)
    require_migrated(Database(empty_database_url))


INSERT = """
    INSERT INTO switchyard.job (message_id, queue, actor, state, payload, broker)
    VALUES (gen_random_uuid(), 'q', 'a', 'pending', '{}', 'postgres')
"""
BUILDING = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY job_parent%' AND wait_event_type = 'Lock'"


def test_an_index_is_built_while_others_write(empty_database_url):
    migrations.upgrade(empty_database_url, "0011")
    with psycopg.connect(empty_database_url) as slow, psycopg.connect(empty_database_url, autocommit=True) as other:
        other.execute("SET lock_timeout = '5s'")
        slow.execute(INSERT)
        building = Meanwhile(lambda: migrations.upgrade(empty_database_url, "0012"))
        wait_until(lambda: other.execute(BUILDING).fetchone(), 30, "the index waits for the writer before it")

        other.execute(INSERT)
        slow.commit()
        building.result(30)

    assert ("job_parent",) in [row[:1] for row in catalogue(empty_database_url, INDEXES)]
    assert catalogue(empty_database_url, "SELECT indexrelid FROM pg_index WHERE NOT indisvalid") == []


def test_an_index_whose_building_was_interrupted_is_built_anew(empty_database_url):
    migrations.upgrade(empty_database_url, "0011")
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        # As an interrupted one is left behind: there, but of no use.
        connection.execute("CREATE INDEX job_parent ON switchyard.job (parent_id) WHERE false")

    migrations.upgrade(empty_database_url, "0012")

    (built,) = [definition for name, definition in catalogue(empty_database_url, INDEXES) if name == "job_parent"]
    assert "(parent_id, id) WHERE (parent_id IS NOT NULL)" in str(built)


@pytest.mark.parametrize(("first", "then"), [("batch", "attempt"), ("attempt", "batch")])
def test_histories_are_bounded_beside_transactions_that_use_both_tables_in_either_order(empty_database_url, first, then):
    migrations.upgrade(empty_database_url, "0012")
    use = {
        "batch": "SELECT FROM switchyard.batch FOR UPDATE",
        "attempt": "DELETE FROM switchyard.attempt",
    }
    waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
    with psycopg.connect(empty_database_url) as slow, psycopg.connect(empty_database_url, autocommit=True) as other:
        slow.execute(use[first])
        migrating = Meanwhile(lambda: migrations.upgrade(empty_database_url, "0013"))
        wait_until(lambda: other.execute(waits).fetchone(), 30, "it waits for the one before")

        slow.execute(use[then])
        slow.commit()
        migrating.result(30)

    require_migrated(Database(empty_database_url))


def test_migrations_prepare_nothing(empty_database_url):
    with migrations.engine(empty_database_url).connect() as connection:
        for _ in range(20):
            connection.execute(text("SELECT 1"))

        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar() == 0


def test_a_migration_that_fails_leaves_those_before_it(empty_database_url):
    migrations.upgrade(empty_database_url, "0001")
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        # In the way of one that comes later.
        connection.execute("CREATE TABLE switchyard.schedule ()")

        with pytest.raises(DBAPIError, match="already exists"):
            migrations.upgrade(empty_database_url)

        assert "0001" < (applied_revision(connection) or "") < LEDGER_REVISION


def test_a_default_isolation_that_no_pooler_lets_us_change_is_refused(database_url):
    name = Databases.name_of(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")

    with pytest.raises(LedgerUnavailable, match=r"REPEATABLE READ by default.*ALTER ROLE \S+ SET default_transaction_isolation"):
        require_migrated(Database(database_url, pgbouncer=True))
    require_migrated(Database(database_url))


def test_a_database_without_tables_or_behind_is_refused(empty_database_url):
    with pytest.raises(LedgerNotMigrated, match="has no switchyard tables"):
        require_migrated(Database(empty_database_url))

    migrations.upgrade(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("UPDATE switchyard.alembic_version SET version_num = '0000'")
    with pytest.raises(LedgerNotMigrated, match=r"at migration 0000.*switchyard migrate"):
        require_migrated(Database(empty_database_url))


def test_a_newer_database_is_fine(database_url):
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE switchyard.alembic_version SET version_num = '9999'")

    require_migrated(Database(database_url))


def test_an_applications_own_tables_are_left_alone(empty_database_url):
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE public.job (id int)")
        connection.execute("INSERT INTO public.job VALUES (1)")

    migrations.upgrade(empty_database_url)
    command.check(migrations.alembic_config(empty_database_url))
    migrations.downgrade(empty_database_url, "base")

    assert catalogue(empty_database_url, "SELECT id FROM public.job") == [(1,)]
