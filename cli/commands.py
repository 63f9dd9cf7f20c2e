"""The commands. What goes wrong in a way we know is one line on standard error and exit code 1, never a traceback."""

from __future__ import annotations

import os
import re
import sys

import click
from rich.console import Console

from brokers import TRANSPORTS
from cli.broker_drain import Drain
from cli.broker_status import run_status
from cli.choosing import queue_name
from cli.demo import run_demo
from cli.keeping import run_keeper
from cli.knowing import require_known_queue
from cli.migrating import migrate as migrate_database
from cli.plain import as_json
from cli.refusals import database_refusal
from cli.reporting import reported
from cli.supervisor import Supervisor
from cli.up import run_up
from errors import LedgerUnavailable, SettingsError
from runtime.child import Options
from runtime.identity import own_version
from runtime.process import REFUSED, spare_last_collections
from settings import load

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:I?B)?", re.IGNORECASE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(own_version(), prog_name="switchyard")
def main() -> None:
    """Background jobs: Dramatiq actors, a ledger in Postgres, a broker of your choice.

    Settings come from the environment or a .env file; .env.example lists them. Without DATABASE_URL, `demo` and `up` bring a
    Postgres of their own; without REDIS_URL, BROKER=redis brings a Redis.

    Exit codes: 0 done; 1 not done, and a line on standard error says why; 2 typed wrongly; 130 after Ctrl-C, 143 after SIGTERM. `status`
    exits with 1 when something is wrong, `worker` with 3 when none could start. Everything that lists has --json. docs/reference/cli.md.
    """


@main.command(short_help="Bring the database up to date.")
@reported
def migrate() -> None:
    """Bring the database at DATABASE_URL up to date.

    Safe to run again, and from several machines at once.
    """
    settings = load()
    try:
        before, after = migrate_database(settings.database_url.get_secret_value(), pgbouncer=settings.pgbouncer)
    except LedgerUnavailable as error:
        raise database_refusal(error, settings) from error
    click.echo(f"the ledger is at {after} already" if before == after else f"migrated the ledger: {before or 'empty'} -> {after}")


@main.command(short_help="Run the keeper's duties without running jobs.")
@reported
def keeper() -> None:
    """Relay what is due, rescue the jobs of lost workers, bury what expired, remove what is old, and sample; run no job.

    Every worker does the same beside its jobs, so this is for fleets whose workers may all be away or busy for long. Any number may run,
    on any machine that reaches Postgres and the broker. It needs no actors.

    The exit code is 0 after Ctrl-C or SIGTERM, which end it at once, and 1 when it cannot start.
    """
    run_keeper()


@main.command(short_help="Send a job of every type, show and check them.")
@reported
def demo() -> None:
    """Send a real job of every type through a whole stack, show them, check what they made.

    Takes ten seconds, or a minute on a busy machine. The exit code is 0 if every job ended as it should and every file is there.
    """
    console = Console()
    problems = run_demo(console)
    for problem in problems:
        click.echo(f"FAILED  {problem}", err=True)
    if problems:
        sys.exit(1)


@main.command(short_help="Run the whole stack until Ctrl-C.")
@click.option(
    "--actors", "actors", multiple=True, metavar="MODULE", help="A module with actors; may be repeated. [default: actors]"
)
@reported
def up(actors: tuple[str, ...]) -> None:
    """Run Postgres, the broker and workers until Ctrl-C, and print the variables that lead there.

    The exit code is 0 after Ctrl-C or SIGTERM, and 1 when a process of the stack ended by itself.
    """
    run_up(actors or ("actors",))


def _size(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Read 512MB, 1.5G or a number of bytes; the units are powers of 1024."""
    if value is None:
        return None
    found = _SIZE.fullmatch(value.strip())
    size = 0 if found is None else int(float(found[1]) * 2 ** _UNITS[found[2].upper()])
    if not size:
        raise click.BadParameter("write a size such as 512MB or 1.5GB")
    return size


def _queues(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> list[str]:
    """The names in all the lists; a name that no queue can have is refused, for its jobs would be waited for in vain."""
    names = [name.strip() for entry in value for name in entry.split(",") if name.strip()]
    for name in names:
        queue_name(context, option, name)
    return names


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@main.command(short_help="Run worker processes and keep them alive.")
@click.argument("modules", nargs=-1, metavar="[MODULE]...")
@click.option("-p", "--processes", type=click.IntRange(1), help="How many. [default: one per processor]")
@click.option("-t", "--threads", type=click.IntRange(1), default=8, show_default=True, help="Jobs that each runs at a time.")
@click.option(
    "-Q",
    "--queues",
    multiple=True,
    callback=_queues,
    metavar="QUEUE[,QUEUE]...",
    help="Consume only these. [default: all]",
)
@click.option("--max-jobs", type=click.IntRange(1), help="Replace a process after about so many jobs.")
@click.option("--max-memory", callback=_size, metavar="SIZE", help="Replace a process that uses more, such as 512MB.")
def worker(
    modules: tuple[str, ...],
    processes: int | None,
    threads: int,
    queues: list[str],
    max_jobs: int | None,
    max_memory: int | None,
) -> None:
    """Run the jobs of the actors in MODULEs (default: actors) until Ctrl-C or SIGTERM.

    Each process is what `dramatiq MODULE -p 1` runs. One that dies is replaced, and the others go on. After a signal running jobs get
    SHUTDOWN_GRACE; after a second one they are given back at once. The exit code is 0 when all of them ended well, and 3 when none
    could start.
    """
    try:
        load()
    except SettingsError as error:
        click.echo(f"switchyard: {error}", err=True)
        sys.exit(REFUSED)
    options = Options(
        channel=-1,
        modules=list(modules) or ["actors"],
        threads=threads,
        queues=queues,
        max_jobs=max_jobs,
        max_memory=max_memory,
    )
    code = Supervisor(options, processes or _processors()).run()
    spare_last_collections()
    sys.exit(code)


@main.group(short_help="Look at the brokers, and move from one to another.")
def broker() -> None:
    """Look at the brokers, and move from one to another while jobs flow.

    Usually nothing is needed but a rolling restart with another BROKER; docs/howto/switch-broker.md.
    """


@broker.command(short_help="Show where triggers go, and what lies in each broker.")
@as_json
@reported
def status(as_json: bool) -> None:
    """Show, per broker: the queues it carries, jobs waiting that were published there, triggers in it, age, epoch, workers."""
    run_status(load(), as_json=as_json)


@broker.command(short_help="Move everything from one broker to another.")
@click.argument("old", type=click.Choice(TRANSPORTS), metavar="OLD")
@click.option("--to", "new", type=click.Choice(TRANSPORTS), required=True, help="The broker to move to; it has to be running.")
@click.option("--queue", callback=queue_name, metavar="NAME", help="Move this queue alone.")
@reported
def drain(old: str, new: str, queue: str | None) -> None:
    """Have everything that goes to OLD (postgres, redis or rabbitmq) go to another broker, at once, and move the jobs that wait there.

    Workers and senders follow within seconds, whatever their BROKER says, and OLD may be down. Ends when OLD holds nothing that
    matters. Ctrl-C loses nothing: run it again, or leave the rest to the workers.
    """
    if old == new:
        raise click.UsageError(f"{old} cannot be drained to itself: name another broker with --to")
    settings = load()
    if queue is not None:
        # The route of a mistyped queue would stay, and no command takes it back.
        require_known_queue(queue)
    Drain(settings, old, new, queue, Console()).run()
