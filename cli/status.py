"""``switchyard status`` and ``switchyard workers``: is the system healthy, on one screen, for people and for health checks.

The look is cheap (``ledger.overview``), so ``--watch`` may go on for hours beside the work. With Postgres away it says so, in the same
form, and watching goes on; brokers are asked one after the other, each with the patience of its own settings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import click

from cli import health
from cli.broker_status import Depth, depth_of, named, plain_refused
from cli.health import Finding
from cli.moments import Span, off, span, utc
from cli.plain import as_json, say_json
from cli.reporting import explained, reported
from cli.signals import Signals, Stopped
from cli.tables import Listing, listing, print_details, print_listing, print_paragraph
from cli.terminal import console
from errors import LedgerUnavailable
from ledger.database import BoundedConnection, Database, applied_revision
from ledger.overview import Overview, WorkerState, overview, worker_states
from ledger.place import place
from runtime.identity import own_version
from settings import Settings, load

#: Seconds between two looks of ``--watch``, and the shortest.
INTERVAL = 2.0
SHORTEST = 0.5
#: How long one look at the ledger may take, in seconds: a server that is slow is no server that is away.
PATIENCE = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One look, judged."""

    #: Whether Postgres answered.
    reachable: bool
    #: The migration that the database is at; None: it has no ledger, or did not answer.
    revision: str | None
    #: None: there was nothing to look at; a problem says why.
    overview: Overview | None
    #: Those in use, each with its answer.
    brokers: Mapping[str, Depth]
    problems: Sequence[Finding]
    notes: Sequence[Finding]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@click.command("status", short_help="Is the system healthy? All of it on one screen.")
@click.option("--max-wait", type=Span(), metavar="DURATION", help="A job that has been due for longer is a problem, such as 5m.")
@click.option("-w", "--watch", is_flag=True, help="Draw it anew until Ctrl-C; with --json, a line each time.")
@click.option("--every", type=Span(), default=INTERVAL, metavar="DURATION", help="With --watch: how often. [default: 2s]")
@as_json
@reported
def status_command(max_wait: float | None, watch: bool, every: float, as_json: bool) -> None:
    """Show ledger, brokers, queues, workers and schedules, what is wrong with them, and what to do about it.

    Something is wrong when Postgres or a broker in use does not answer, a broker refuses a queue, another ledger uses a broker with the
    same BROKER_PREFIX, the ledger is not migrated, no worker or keeper lives, jobs wait in a queue that nobody consumes or for an actor
    that nobody knows, a schedule is overdue, or jobs of dead workers are not rescued. What is younger than a minute is not judged. Dead
    letters and pauses are noted.

    The exit code is 1 when something is wrong, so that this is a health check, and 0 after Ctrl-C of --watch.
    """
    if every < SHORTEST:
        raise click.BadParameter(f"{span(every)} is too short; {span(SHORTEST)} is the shortest", param_hint="--every")
    settings = load()
    database = Database(settings.database_url.get_secret_value(), pool_size=1, pgbouncer=settings.pgbouncer)
    try:
        if watch:
            _watch(settings, database, max_wait, every, as_json=as_json)
            return
        report = look(settings, database, max_wait)
        _print(report, settings, as_json=as_json)
    finally:
        database.close()
    if not report.healthy:
        raise click.exceptions.Exit(1)


@click.command("workers", short_help="The worker processes: where, how busy, how alive.")
@as_json
@reported
def workers_command(as_json: bool) -> None:
    """Show every worker process: host, process id, busy threads, age of the last heartbeat, broker, version of
    Switchyard, queues.

    One that ended in order is not shown; one that died is silent, and forgotten after ten leases.
    """
    settings = load()
    database = Database(settings.database_url.get_secret_value(), pool_size=1, pgbouncer=settings.pgbouncer)
    try:
        workers = database.run(worker_states)
    finally:
        database.close()
    if as_json:
        say_json({"workers": [_plain_worker(worker) for worker in workers]})
        return
    print_listing(_workers(workers, queues=True), "no worker lives: start one with `switchyard worker`")


def look(settings: Settings, database: Database, max_wait: float | None) -> Report:
    """Look at everything and judge it. Never raises for what is away: that is a problem in the report."""
    try:
        revision, found = database.run(_read, PATIENCE)
    except LedgerUnavailable as error:
        problem = Finding(kind="ledger_unavailable", text=explained(error), advice="nothing else can be seen without it")
        return Report(reachable=False, revision=None, overview=None, brokers={}, problems=[problem], notes=[])
    behind = health.outdated(revision)
    if found is None:
        return Report(reachable=True, revision=revision, overview=None, brokers={}, problems=[behind] if behind else [], notes=[])
    queues = [queue.queue for queue in found.queues]
    brokers = {name: depth_of(name, queues, settings, found.keepers.get(name)) for name in health.in_use(found, settings.broker)}
    return Report(
        reachable=True,
        revision=revision,
        overview=found,
        brokers=brokers,
        problems=health.problems(found, brokers, settings, max_wait=max_wait),
        notes=health.notes(found),
    )


def _read(connection: BoundedConnection) -> tuple[str | None, Overview | None]:
    revision = applied_revision(connection)
    return revision, None if health.outdated(revision) else overview(connection)


def _watch(settings: Settings, database: Database, max_wait: float | None, every: float, *, as_json: bool) -> None:
    with Signals():
        try:
            while True:
                report = look(settings, database, max_wait)
                if not as_json:
                    click.clear()
                _print(report, settings, as_json=as_json)
                time.sleep(every)
        except Stopped:
            return


def _print(report: Report, settings: Settings, *, as_json: bool) -> None:
    if as_json:
        say_json(_plain(report))
        return
    found = report.overview
    if found is not None:
        _print_overview(found, report, settings)
        click.echo()
    for finding in report.problems:
        print_paragraph("PROBLEM  ", finding.text, finding.advice, style="bold red")
    for finding in report.notes:
        print_paragraph("note     ", finding.text, finding.advice, style="yellow")
    if report.healthy:
        console().print("nothing is wrong", style="green")


def _print_overview(found: Overview, report: Report, settings: Settings) -> None:
    print_details(
        [
            ("switchyard", f"{own_version()}, {utc(found.now)}"),
            ("ledger", _ledger(found, report, settings)),
            *((name, _broker(name, depth, found)) for name, depth in report.brokers.items()),
            ("schedules", _schedules(found)),
        ]
    )
    click.echo()
    print_listing(_queues(found), "no queue is in use")
    click.echo()
    print_listing(_workers(found.workers), "no worker lives")


def _ledger(found: Overview, report: Report, settings: Settings) -> str:
    where = place(settings.database_url.get_secret_value())
    return (
        f"{where}, revision {report.revision}, about {found.jobs:,} {'job' if found.jobs == 1 else 'jobs'}, {_size(found.bytes)}"
    )


def _size(count: int) -> str:
    for unit, size in (("GB", 2**30), ("MB", 2**20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 2**10:,.0f} kB"


def _broker(name: str, depth: Depth, found: Overview) -> str:
    carried = ", ".join(named(route, found.routes) for route in found.routes if route.broker == name)
    carries = f"carries {carried}" if carried else "carries nothing more"
    answer = "unreachable" if depth.triggers is None else f"reachable, {depth.triggers:,} triggers"
    return f"{answer}, {carries}"


def _schedules(found: Overview) -> str:
    if not found.schedules:
        return "none"
    following = "none is due" if found.next_due_at is None else f"the next is due {off(found.next_due_at, found.now)}"
    return f"{found.schedules:,}, {len(found.overdue)} overdue, {following}"


def _queues(found: Overview) -> Listing:
    counted = ("waiting", "running", "retrying", "scheduled", "limited", "dead", "workers")
    notes = []
    if found.as_of is not None:
        notes.append(f"too many to count: figures of the sample at {off(found.as_of, found.now)}")
    if found.at_least:
        notes.append("too many to count: there are more than these figures say")
    table = listing(
        "queue", *counted, "oldest", "state", whole=("queue",), below=("state", "limited", "retrying", "scheduled", "oldest"),
        numbers=(*counted, "oldest"), notes=notes,
    )  # fmt: skip
    for queue in found.queues:
        state = "paused" if queue.paused else f"{queue.parked:,} paused" if queue.parked else None
        oldest = None if queue.oldest is None else span(queue.oldest)
        table.add_row(queue.queue, *(f"{getattr(queue, name):,}" for name in counted), oldest, state)
    return table


def _workers(workers: Sequence[WorkerState], *, queues: bool = False) -> Listing:
    headings = ["worker", "host", "pid", "busy", "heartbeat", "up", "broker", "version", "state", *(["queues"] if queues else [])]
    numbers = ("pid", "busy", "heartbeat", "up")
    table = listing(
        *headings,
        whole=("worker", "busy", "heartbeat"),
        below=("queues", "host", "pid", "up", "broker", "version", "state"),
        numbers=numbers,
    )
    for worker in workers:
        now = worker.beat_at.timestamp() + worker.silence
        cells = [
            worker.id, worker.host, worker.pid, f"{worker.busy}/{worker.threads}", span(worker.silence),
            span(now - worker.started_at.timestamp()), worker.broker, worker.version, None if worker.alive else "silent",
        ]  # fmt: skip
        table.add_row(*cells, *([", ".join(worker.queues)] if queues else []))
    return table


def _plain(report: Report) -> dict[str, Any]:
    found = report.overview
    plain: dict[str, Any] = {
        "healthy": report.healthy,
        "version": own_version(),
        "at": None if found is None else found.now,
        "ledger": {"reachable": report.reachable, "revision": report.revision},
        "brokers": [
            {
                "name": name,
                "reachable": depth.triggers is not None,
                "triggers": depth.triggers,
                "unreachable": depth.reason,
                "refused": plain_refused(depth),
                "shared_with": list(depth.others),
            }
            for name, depth in report.brokers.items()
        ],
        "problems": list(map(asdict, report.problems)),
        "notes": list(map(asdict, report.notes)),
    }
    return plain if found is None else plain | _plain_overview(found, plain["ledger"])


def _plain_overview(found: Overview, ledger: dict[str, Any]) -> dict[str, Any]:
    as_of: datetime | None = found.as_of
    return {
        "ledger": ledger | {"bytes": found.bytes, "jobs": found.jobs},
        "queues": list(map(asdict, found.queues)),
        "as_of": as_of,
        "at_least": found.at_least,
        "dead": {"count": found.dead, "at_least": found.dead_at_least, "last_hour": found.died_lately},
        "workers": [_plain_worker(worker) for worker in found.workers],
        "schedules": {"count": found.schedules, "next_due_at": found.next_due_at, "overdue": list(map(asdict, found.overdue))},
        "paused": [
            {"queue": pause.queue, "actor": pause.actor, "since": pause.since, "what": pause.what} for pause in found.pauses
        ],
    }


def _plain_worker(worker: WorkerState) -> dict[str, Any]:
    return asdict(worker) | {"busy": worker.busy, "alive": worker.alive}
