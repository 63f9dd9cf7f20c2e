"""What a sender has to be allowed: exactly what the page on transactions grants, and what is missing is named."""

from __future__ import annotations

import re
from types import SimpleNamespace

import dramatiq
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import switchyard
from errors import LedgerForbidden
from ledger import rights, tables
from tests.conformance.system import System
from tests.rig.processes import ROOT

PAGE = ROOT / "docs/howto/enqueue-in-a-transaction.md"


def granted():
    """The statements of the page, for its role ``app``."""
    return re.findall(r"GRANT [A-Z, ]+ ON [A-Za-z_. ]+ TO app", PAGE.read_text())


def declare(broker):
    """Actors that use all that a sender may use."""

    @dramatiq.actor(broker=broker)
    def plain(a):
        return a

    @dramatiq.actor(broker=broker, rate_limit="5/minute", concurrency=2)
    def limited(a):
        return a

    @dramatiq.actor(broker=broker, unique_for=60)
    def unique(a):
        return a

    @dramatiq.actor(broker=broker, unique_key=True)
    def single(a):
        return a

    return SimpleNamespace(plain=plain, limited=limited, unique=unique, single=single)


SENDS = {
    "plain": lambda s: s.jobs.plain.send(1),
    "delayed": lambda s: s.jobs.plain.send_with_options(args=(1,), delay=60_000),
    "many": lambda s: switchyard.enqueue_many([s.jobs.plain.message(n) for n in range(3)]),
    "keyed": lambda s: [s.jobs.plain.send_with_options(args=(1,), idempotency_key="k") for _ in range(2)],
    "many keyed": lambda s: [
        switchyard.enqueue_many([s.jobs.plain.message_with_options(args=(1,), idempotency_key=f"k{n}") for n in range(3)])
        for _ in range(2)
    ],
    "unique for": lambda s: [s.jobs.unique.send(1) for _ in range(2)],
    "unique key": lambda s: [s.jobs.single.send(1) for _ in range(2)],
    "limited": lambda s: [s.jobs.limited.send(1) for _ in range(2)],
    "group": lambda s: switchyard.group([s.jobs.plain.message(n) for n in range(2)]).run(),
    "pipeline": lambda s: switchyard.pipeline([s.jobs.plain.message(1), s.jobs.plain.message(2)]).run(),
    "result": lambda s: switchyard.get_job(s.jobs.plain.send(1).message_id),
}


@pytest.fixture
def sender(settings, database_url, bare_url):
    """A system whose user has no rights yet, its name, and how to give it some."""
    user = conninfo_to_dict(bare_url)["user"]
    kind = type(settings.database_url)
    system = System(settings.model_copy(update={"database_url": kind(bare_url)}), declare)

    def grant(statements):
        with psycopg.connect(database_url, autocommit=True) as owner:
            for statement in statements:
                owner.execute(statement.replace(" TO app", f" TO {user}"))

    def owned(query):
        with psycopg.connect(database_url) as owner:
            ((count,),) = owner.execute(query).fetchall()
            return count

    yield SimpleNamespace(system=system, user=user, grant=grant, owned=owned, url=bare_url)
    system.close()


@pytest.mark.parametrize("enlisted", [False, True], ids=["plain", "enlisted"])
def test_whoever_sends_needs_what_the_page_grants(sender, enlisted):
    sender.grant(granted())

    for send in SENDS.values():
        if enlisted:
            with psycopg.connect(sender.url) as connection, switchyard.enlist(connection):
                send(sender.system)
        else:
            send(sender.system)


@pytest.mark.parametrize(
    ("table", "kind"), [("route", "plain"), ("job", "plain"), ("idempotency", "keyed"), ("rule", "limited"), ("batch", "group")]
)
def test_a_send_without_one_of_them_names_it_and_stores_nothing(sender, table, kind):
    (missing,) = [statement for statement in granted() if f" ON switchyard.{table} " in statement]
    sender.grant([statement for statement in granted() if statement != missing])

    with pytest.raises(LedgerForbidden) as refused:
        SENDS[kind](sender.system)

    assert refused.value.grant == missing.replace(" TO app", f" TO {sender.user}")
    assert str(refused.value).endswith(" stored")
    assert sender.owned("SELECT count(*) FROM switchyard.job") == 0


def test_a_send_without_any_right_names_the_schema(sender):
    with pytest.raises(
        LedgerForbidden, match=r"may not use schema switchyard; GRANT USAGE ON SCHEMA switchyard TO .* is not stored$"
    ):
        sender.system.jobs.plain.send(1)


def test_the_page_grants_what_the_errors_advise():
    advised = {f"GRANT {needed} ON switchyard.{table} TO app" for table, needed in rights.SENDING.items()}

    assert set(granted()) == {"GRANT USAGE ON SCHEMA switchyard TO app", *advised}


def test_a_refusal_that_is_not_the_ledgers_stays_the_drivers(sender, database_url):
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("CREATE TABLE public.orders (id int)")

    with pytest.raises(psycopg.errors.InsufficientPrivilege), sender.system.database.connection() as connection:
        connection.execute("SELECT * FROM public.orders")


def test_every_table_is_known_by_name():
    assert {table.name for table in tables.metadata.tables.values()} | {"alembic_version"} == rights.TABLES
