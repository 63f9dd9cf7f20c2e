"""Lists and details for a terminal of any width: nothing is cut, and what is copied from them stands whole.

A list whose rows fit has each in a line. If they do not, the columns that may go below (errors, reasons) follow under their row, indented
and by their names; if that is not enough, the others are broken, the widest first, but for ids and the like, which never are. Of those
that may go below, one without any value is left out; where there is no room, so is one that counts nothing. A pipe or a file gets each
row in one line. Colours go to a terminal alone, and not where NO_COLOR is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

from rich.cells import cell_len, chop_cells
from rich.text import Text

from cli.terminal import console, printable, width

#: Blanks between columns; where that makes the difference, one.
GAPS: Final = (2, 1)
#: To this a column may be broken, in characters.
NARROWEST: Final = 4
#: How far what follows below is indented.
INDENT: Final = 4
#: Words that stand out, in the columns that are coloured.
STYLES: Final = {
    "dead": "red", "failed": "red", "lost": "red", "unreachable": "red", "overdue": "red", "silent": "red", "retrying": "yellow",
    "paused": "yellow", "running": "cyan", "completed": "green", "succeeded": "green", "cancelled": "dim",
}  # fmt: skip
COLOURED: Final = ("state", "outcome")


@dataclass(slots=True)
class Listing:
    """A list in the making."""

    headings: Sequence[str]
    #: Never broken.
    whole: Sequence[str] = ()
    #: Go below their row where there is no room beside it, in this order.
    below: Sequence[str] = ()
    #: Stand to the right.
    numbers: Sequence[str] = ()
    #: What follows the list, a line each.
    notes: Sequence[str] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add_row(self, *cells: object) -> None:
        """One row; None is an empty cell."""
        self.rows.append(tuple("" if cell is None else printable(str(cell)) for cell in cells))


def listing(
    *headings: str,
    whole: Sequence[str] = (),
    below: Sequence[str] = (),
    numbers: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Listing:
    """An empty list.

    Parameters:
        whole: the headings of columns that are never broken, such as ids; together they should fit into 80 columns.
        below: those that go below their row where there is no room, the first first.
        numbers: those that stand to the right.
        notes: what follows it.
    """
    return Listing(headings, whole, [heading for heading in below if heading in headings], numbers, notes)


def print_listing(table: Listing, nothing: str | None = None) -> None:
    """Print it as wide as the terminal is.

    Parameters:
        nothing: what is printed instead when it has no rows; None: the headings alone.
    """
    out = console()
    if not table.rows and nothing is not None:
        out.print(nothing)
        return
    for line in _lines(table, width()):
        out.print(line)
    for note in table.notes:
        print_paragraph("", note)


def print_details(rows: Iterable[tuple[str, object]], indent: int = 0) -> None:
    """Print names and values, a line each, the values one under another; what is None is left out. Long values go on beside their names."""
    shown = [(name, printable(str(value))) for name, value in rows if value is not None]
    names = max((cell_len(name) for name, _ in shown), default=0) + 2
    out = console()
    for name, value in shown:
        first = True
        for piece in _folded(value, max(NARROWEST, width() - names - indent)):
            line = Text(" " * indent)
            line.append(f"{name if first else '':<{names}}", "bold")
            line.append(piece, _style(name, piece))
            out.print(line)
            first = False


def print_paragraph(label: str, *texts: str, style: str = "") -> None:
    """Print texts beside a label, each beginning a line of its own and going on under itself."""
    out = console()
    head = Text(label, style)
    for text in texts:
        for piece in _folded(printable(text), max(NARROWEST, width() - cell_len(label))):
            out.print(head + Text(piece))
            head = Text(" " * cell_len(label))


def _lines(table: Listing, room: int) -> Iterable[Text]:
    # What is empty needs no room, what counts nothing can do without; of the others the first goes first.
    below = sorted(table.below, key=lambda heading: _weight(table, heading))
    empty = sum(_weight(table, heading) == 0 for heading in below)
    sunk: list[str] = []
    for position in range(empty, len(below) + 1):
        sunk = below[:position]
        beside = [index for index, heading in enumerate(table.headings) if heading not in sunk]
        widths = [_natural(table, index) for index in beside]
        gap = next((gap for gap in GAPS if _sum(widths, gap) <= room), None)
        if gap is not None:
            break
    else:
        gap = GAPS[-1]
        widths = _squeezed(table, beside, widths, room)
    yield from _row(table, table.headings, beside, widths, gap, heading=True)
    for row in table.rows:
        yield from _row(table, row, beside, widths, gap)
        rest = "  ".join(f"{heading}: {_cell(table, row, heading)}" for heading in reversed(sunk) if _has(table, row, heading))
        for piece in _folded(rest, room - INDENT) if rest else ():
            yield Text(" " * INDENT + piece, "dim")


def _cell(table: Listing, row: Sequence[str], heading: str) -> str:
    return row[table.headings.index(heading)]


def _weight(table: Listing, heading: str) -> int:
    """What a column has to say: 0 nothing at all, 1 that nothing was counted, 2 something."""
    if any(_has(table, row, heading) for row in table.rows):
        return 2
    return int(any(_cell(table, row, heading) for row in table.rows))


def _has(table: Listing, row: Sequence[str], heading: str) -> bool:
    """Whether a cell is worth its name below the row."""
    cell = _cell(table, row, heading)
    return cell != "" and not (cell == "0" and heading in table.numbers)


def _sum(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _natural(table: Listing, index: int) -> int:
    return max(map(cell_len, (table.headings[index], *(row[index] for row in table.rows))))


def _squeezed(table: Listing, beside: Sequence[int], widths: Sequence[int], room: int) -> list[int]:
    """Narrower columns, by one at a time off the widest that may be broken."""
    found = list(widths)
    while _sum(found, GAPS[-1]) > room:
        free = [
            place for place, index in enumerate(beside) if table.headings[index] not in table.whole and found[place] > NARROWEST
        ]
        if not free:
            break
        found[max(free, key=found.__getitem__)] -= 1
    return found


def _row(
    table: Listing, cells: Sequence[str], beside: Sequence[int], widths: Sequence[int], gap: int, *, heading: bool = False
) -> Iterable[Text]:
    folded = [_folded(cells[index], widths[place]) for place, index in enumerate(beside)]
    for pieces in zip_longest(*folded, fillvalue=""):
        line = Text()
        for place, (index, piece) in enumerate(zip(beside, pieces, strict=True)):
            name = table.headings[index]
            blanks = " " * (widths[place] - cell_len(piece))
            line.append(blanks if name in table.numbers else "")
            line.append(piece, "bold" if heading else _style(name, cells[index]))
            line.append("" if name in table.numbers else blanks)
            line.append(" " * gap)
        line.rstrip()
        yield line


def _style(name: str, text: str) -> str:
    return STYLES.get(text.split(" ", 1)[0].rstrip(":,"), "") if name in COLOURED else ""


def _folded(text: str, room: int) -> list[str]:
    """Lines of at most so many columns, broken between words where there are any, else anywhere."""
    if cell_len(text) <= room:
        return [text]
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= room:
            line = joined
            continue
        if line:
            lines.append(line)
        *full, line = chop_cells(word, room) or [""]
        lines += full
    # Of two blanks between words one may be left at the end.
    return [line.rstrip() for line in (*lines, line)]
