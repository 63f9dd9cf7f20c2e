"""The demo's jobs on the screen: a live table on a terminal, otherwise one line for each change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from switchyard import State

#: From this width on, in columns, there is room for what each job says.
_WIDE: Final = 104
_BAR: Final = 8
#: Steps of progress, in percent, that are worth a line of their own.
_PLAIN_STEP: Final = 25

_COLOURS: Final = {
    State.SCHEDULED: "blue",
    State.PENDING: "yellow",
    State.RUNNING: "cyan",
    State.RETRYING: "magenta",
    State.COMPLETED: "green",
    State.DEAD: "red",
    State.CANCELLED: "dim",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One job as it stands; without a state it has not been sent yet."""

    name: str
    actor: str = ""
    state: State | None = None
    #: The state it is meant to end in.
    expected: State = State.COMPLETED
    attempt: str = ""
    #: Percent, 0 to 100.
    progress: float | None = None
    stage: str = ""
    time: str = ""
    note: str = ""


class Board:
    """Shows rows for the length of a ``with`` block; on a terminal the last table stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._shown: dict[str, tuple[object, ...]] = {}

    def __enter__(self) -> Board:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # Not refreshed by a thread: the table changes when the ledger was asked, and then at once.
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.vertical_overflow = "visible"
            self._live.stop()

    def show(self, rows: Sequence[Row], elapsed: float) -> None:
        """Show the rows as they are ``elapsed`` seconds after the start."""
        if self._live is not None:
            self._live.update(_table(rows, self._console.width), refresh=True)
            return
        for row in rows:
            step = None if row.progress is None else int(row.progress // _PLAIN_STEP)
            now = (row.state, row.attempt, step)
            if row.state is not None and self._shown.get(row.name) != now:
                self._shown[row.name] = now
                self._console.print(_line(row, elapsed), soft_wrap=True, highlight=False)


def _table(rows: Sequence[Row], width: int) -> Table:
    wide = width >= _WIDE
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", expand=wide)
    table.add_column("job", no_wrap=True)
    table.add_column("actor", no_wrap=True, style="dim")
    table.add_column("state", no_wrap=True, min_width=9)
    table.add_column("try", no_wrap=True, justify="right", min_width=4)
    table.add_column("progress", no_wrap=True, min_width=_BAR + 8)
    table.add_column("time", no_wrap=True, justify="right", min_width=10)
    if wide:
        table.add_column("says", no_wrap=True, ratio=1, overflow="ellipsis", style="dim")
    for row in rows:
        cells: list[str | Text] = [row.name, row.actor, _state(row), row.attempt, _progress(row), row.time]
        table.add_row(*cells, *([row.note] if wide else []))
    return table


def _state(row: Row) -> Text:
    if row.state is None:
        return Text("-", style="dim")
    return Text(row.state, style=_COLOURS[row.state])


def _progress(row: Row) -> Text:
    """A bar, and the job's own word for where it is."""
    if row.progress is None:
        return Text("")
    filled = round(_BAR * row.progress / 100)
    return Text.assemble(("━" * filled, "green"), ("━" * (_BAR - filled), "bright_black"), f" {row.stage}")


def _line(row: Row, elapsed: float) -> str:
    progress = "" if row.progress is None else f"  {row.progress:3.0f} % {row.stage}"
    attempt = f"  attempt {row.attempt}" if row.attempt else ""
    note = f"  {row.note}" if row.note and row.state in (State.RETRYING, State.DEAD) else ""
    return f"{elapsed:6.2f} s  {row.name.strip():16}{row.actor:18}{row.state or '':10}{attempt}{progress}{note}"
