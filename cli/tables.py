"""Lists as tables for which 80 columns suffice: what is copied from them stands whole, the rest goes on in the next line."""

from __future__ import annotations

from shutil import get_terminal_size
from typing import Final

from rich.console import Console
from rich.table import Table

#: What is no terminal, such as a pipe or a file, gets them so wide (and so many lines, which nobody asks), unless COLUMNS says otherwise.
_UNSEEN: Final = (200, 24)


def listing(*headings: str, whole: tuple[str, ...], caption: str | None = None) -> Table:
    """An empty table.

    Parameters:
        whole: the headings of columns that are never broken, such as ids; together they must fit into 80 columns.
    """
    table = Table(box=None, pad_edge=False, collapse_padding=True, caption=caption, caption_justify="left")
    for heading in headings:
        table.add_column(heading, no_wrap=heading in whole, overflow="fold")
    return table


def print_listing(table: Table) -> None:
    """Print it as wide as the terminal is."""
    Console(width=get_terminal_size(_UNSEEN).columns).print(table)
