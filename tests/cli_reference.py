"""Writes ``docs/reference/cli.md`` from the parser of the command line (``make reference``); a test holds it to that."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from cli import main
from ledger.states import SYNONYMS, State

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/reference/cli.md"
#: As pages are wrapped.
WIDTH = 140

_HEADER = """\
# The command line

`switchyard COMMAND --help` says the same. Settings come from the environment or a `.env` file: [settings](../settings.md).

## What holds for every command

**Exit codes**

| code | meaning |
|---|---|
| 0 | done |
| 1 | not done, or not all of it: a line on standard error says why; of `status`: something is wrong |
| 2 | typed wrongly, or a question that nobody answered |
| 3 | `worker`: no process could start; the others of its own: [run workers](../howto/run-workers.md) |
| 130, 143 | ended by Ctrl-C, by SIGTERM; commands that run until then (`worker`, `keeper`, `up`, `status --watch`) end with 0 |

Results go to standard output, questions, warnings and errors to standard error. A name that nothing knows (a queue that no worker
consumes, an actor that none has) is taken all the same, with a warning, for it may be meant for a worker that starts tomorrow. A tag, a
type of error or a group of dead letters that nothing has is an empty list, with a warning. A word of a closed set (a state, a reason, a
time zone) that is not in it is typed wrongly. Each names what it looks like.

**Ids** may be written whole or as their first eight characters or more, as long as no other begins so; where several do, they are named.

**Times** are shown in UTC with their zone, spans in the units that options take: `40ms`, `4.7s`, `59m`, `2.5h`, `120d`. An option that
takes WHEN reads an age (`30m`, `2h`, `7d`: so long ago) or an ISO 8601 time, which is in UTC unless it has a zone. DURATION is seconds, or
a number with s, m, h, d or w.

**States** in `--state`, and in `switchyard.list_jobs(state=)`, are the seven of the [glossary](../glossary.md), or the words that other
queues have for them:

{states}

**Output** fits any width; what is not a terminal gets each row in one line, and no colours. `NO_COLOR` takes them away, `COLUMNS` sets the
width.

**`--json`** prints one object on one line. Times are ISO 8601 in UTC, spans are seconds. What is there stays; more may be added, so a
reader ignores what it does not know:

{json}

"""

#: The first names of each object. Pinned by a test that runs them.
JSON_NAMES = {
    "batches list": ("batches",),
    "batches show": ("id", "name", "state", "total", "percent", "counts", "callbacks", "batches"),
    "broker status": ("brokers",),
    "cancel": ("cancelled", "asked", "dry_run"),
    "cancel ID": ("jobs", "dry_run"),
    "dead discard": ("matched", "discarded", "dry_run"),
    "dead discard ID": ("jobs",),
    "dead groups": ("groups",),
    "dead list": ("dead_letters", "next"),
    "dead replay": ("matched", "replayed", "last_due", "dry_run"),
    "dead replay ID": ("jobs",),
    "dead show": ("id", "state", "error", "dead_reason", "traceback", "attempts"),
    "jobs": ("jobs", "next"),
    "key": ("key", "forgotten"),
    "limits list": ("limits",),
    "paused": ("paused",),
    "schedules create": ("name", "actor", "expression", "state", "next_tick_at"),
    "schedules list": ("schedules",),
    "schedules next": ("cron", "timezone", "utc", "local"),
    "schedules show": ("name", "actor", "expression", "state", "next_tick_at", "ticks"),
    "secrets rotate": (
        "looked_at", "rotated", "batches", "batches_rotated", "keys", "keys_rotated", "keys_left", "unreadable", "running", "missed",
    ),
    "show": ("job", "why", "attempts", "log"),
    "status": (
        "healthy", "version", "at", "ledger", "brokers", "queues", "as_of", "at_least", "dead", "workers", "schedules", "paused",
        "problems", "notes",
    ),
    "workers": ("workers",),
}  # fmt: skip


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that lead to it, groups before what is in them."""
    for name in sorted(group.commands):
        command = group.commands[name]
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def page() -> str:
    """The text of the page."""
    states = ", ".join(
        f"`{word}` is {' or '.join(f'`{state}`' for state in State if state in SYNONYMS[word])}" for word in SYNONYMS
    )
    names = [f"| `{command}` | {', '.join(f'`{name}`' for name in names)} |" for command, names in JSON_NAMES.items()]
    header = _HEADER.format(states=_wrapped(f"{states}."), json="\n".join(["| command | names |", "|---|---|", *names]))
    return header + "\n".join(_section(path, command) for path, command in commands())


def _section(path: tuple[str, ...], command: click.Command) -> str:
    context = click.Context(command, info_name=" ".join(("switchyard", *path)))
    usage = " ".join(command.collect_usage_pieces(context))
    help_ = inspect.cleandoc(command.help or "").replace("\b\n", "")
    lines = ["#" * (1 + len(path)) + f" {context.info_name}", "", f"`{context.info_name} {usage}`".replace(" `", "`"), ""]
    for paragraph in re.split(r"\n\n+", help_):
        # What is indented is to be typed.
        lines += [paragraph if paragraph.startswith("    ") else _wrapped(paragraph), ""]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    rows = [f"| `{_escaped(names)}` | {_escaped(' '.join(text.split()))} |" for names, text in records]
    if rows:
        lines += ["| option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _wrapped(text: str) -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


if __name__ == "__main__":
    PAGE.write_text(page())
