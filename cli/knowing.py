"""Names that nobody knows: done as asked, for they may be meant for a worker that starts tomorrow, but not without a word.

A mistyped queue or actor would otherwise look like success. The word goes to standard error and changes no exit code. Should the ledger not
answer the second question, there is no word: what was asked for is done. Where the names are a closed set, the command refuses instead,
with the same hint (``meant``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Final

import click

import switchyard
from cli.terminal import printable
from errors import LedgerUnavailable
from ledger import names
from ledger.dead import REASONS

#: As many names are listed as one can read.
_LISTED: Final = 12


def _reasons(connection: Any) -> list[str]:
    """Why jobs die: our reasons, and the application's own, which nobody can tell once no dead letter has them."""
    return sorted({*REASONS, *names.known_reasons(connection)})


#: Of each kind of name: how to find those there are, and what it means that one is not among them.
_KINDS: Final[dict[str, tuple[Callable[[Any], Sequence[str]], str]]] = {
    "queue": (names.known_queues, "no worker consumes it, and no job was sent to it lately"),
    "actor": (names.known_actors, "no worker has it, and no job of it was sent lately"),
    "tag": (names.known_tags, "no job sent lately has it"),
    "error type": (names.known_error_types, "no dead letter of late has it"),
    "group": (names.known_fingerprints, "no dead letter of late is of it"),
    "reason": (_reasons, "it is none of ours, and no dead letter of late has it"),
}


def warn_of_unknown(
    *,
    queue: str | None = None,
    actor: str | None = None,
    tag: str | None = None,
    error_type: str | None = None,
    fingerprint: str | None = None,
    reason: str | None = None,
) -> None:
    """Say on standard error if nothing knows one of these names, and which names there are."""
    given = {"queue": queue, "actor": actor, "tag": tag, "error type": error_type, "group": fingerprint, "reason": reason}
    for kind, name in given.items():
        if name is not None:
            _warn(kind, name)


def warn_of_undeclared(queue: str) -> None:
    """Say on standard error if jobs moved to a queue would wait there for ever: no worker consumes it, for none has an actor on it. That
    jobs are in it already is no sign that any will be run, unless no worker has said yet which queues there are."""
    try:
        database = switchyard.database()
        found = database.run(names.declared_queues) or database.run(names.known_queues)
    except LedgerUnavailable:
        return
    if queue not in found:
        why = f"no worker consumes queue {queue!r}: jobs in it wait until a worker has an actor that is declared on it"
        click.echo(f"switchyard: warning: {why}{meant(queue, found)}", err=True)


def require_known_queue(queue: str) -> None:
    """Refuse a queue that nothing knows, where a mistyped name would leave something behind. Raises: click.BadParameter."""
    try:
        found = switchyard.database().run(names.known_queues)
    except LedgerUnavailable:
        # What is asked for says so itself.
        return
    if queue not in found:
        why = f"nothing knows queue {queue!r}: {_KINDS['queue'][1]}"
        raise click.UsageError(f"--queue: {why}, so nothing was changed{meant(queue, found)}")


def alike(name: str, there_are: Iterable[str]) -> str:
    """The question that follows the refusal of a name that looks like others: ``; did you mean a or b?``. Empty if it looks like none."""
    # What differs in capitals alone is alike.
    lower = {known.lower(): known for known in there_are}
    close = [lower[match] for match in get_close_matches(name.lower(), lower, n=3)]
    return f"; did you mean {' or '.join(map(printable, close))}?" if close else ""


def meant(name: str, there_are: Iterable[str]) -> str:
    """The same, or else the first of those there are; empty if there are none."""
    found = list(there_are)
    if (question := alike(name, found)) or not found:
        return question
    shown = ", ".join(map(printable, found[:_LISTED]))
    return f"; there {'is' if len(found) == 1 else 'are'} {shown}{' and more' if len(found) > _LISTED else ''}"


def _warn(kind: str, name: str) -> None:
    known, why = _KINDS[kind]
    try:
        found = switchyard.database().run(known)
    except LedgerUnavailable:
        return
    if name not in found:
        click.echo(f"switchyard: warning: nothing knows {kind} {name!r}: {why}{meant(name, found)}", err=True)
