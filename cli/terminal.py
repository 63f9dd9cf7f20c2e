"""What a terminal is told: its width, its colours, and other people's text (errors, arguments, log lines) without the power to steer it."""

from __future__ import annotations

from shutil import get_terminal_size
from typing import Final

from rich.console import Console

#: What is no terminal, such as a pipe or a file, gets its lines whole, unless COLUMNS says how wide it is.
_UNSEEN: Final = (100_000, 24)


def printable(text: str) -> str:
    """Without what could move the cursor, colour the rest, or turn its direction."""
    return "".join(character if character.isprintable() else " " if character.isspace() else "\ufffd" for character in text)


def width() -> int:
    """How wide lines may be, in columns."""
    return get_terminal_size(_UNSEEN).columns


def console() -> Console:
    """Standard output with the colours that it, NO_COLOR and TERM allow. Nothing is read as markup, wrapped or cut by it."""
    return Console(width=width(), highlight=False, markup=False, emoji=False, soft_wrap=True)
