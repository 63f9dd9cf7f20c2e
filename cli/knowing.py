"""Names that nobody knows: done as asked, for they may be meant for a worker that starts tomorrow, but not without a word.

A mistyped queue or actor would otherwise look like success. The word goes to standard error and changes no exit code. Should the ledger not
answer the second question, there is no word: what was asked for is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, Final

import click

import switchyard
from cli.terminal import printable
from errors import LedgerUnavailable
from ledger import names

#: As many names are listed as one can read.
_LISTED: Final = 12


def warn_of_unknown(*, queue: str | None = None, actor: str | None = None) -> None:
    """Say on standard error if nothing knows a queue, or an actor, and which names there are."""
    for kind, name, known in (("queue", queue, names.known_queues), ("actor", actor, names.known_actors)):
        if name is not None:
            _warn(kind, name, known)


def _warn(kind: str, name: str, known: Callable[[Any], Sequence[str]]) -> None:
    try:
        found = switchyard.database().run(known)
    except LedgerUnavailable:
        return
    if name not in found:
        click.echo(f"switchyard: warning: nothing knows {kind} {name!r}: {_why(kind)}{_others(name, found)}", err=True)


def _why(kind: str) -> str:
    if kind == "queue":
        return "no worker consumes it, and no job was sent to it lately"
    return "no worker has it, and no job of it was sent lately"


def _others(name: str, found: Sequence[str]) -> str:
    if not found:
        return ""
    close = get_close_matches(name, found, n=3)
    if close:
        return f"; did you mean {' or '.join(map(printable, close))}?"
    shown = ", ".join(map(printable, found[:_LISTED]))
    return f"; there are {shown}{' and more' if len(found) > _LISTED else ''}"
