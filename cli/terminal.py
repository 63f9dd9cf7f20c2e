"""Text from anywhere on a terminal: errors, arguments and log lines are other people's, and must not steer it."""

from __future__ import annotations


def printable(text: str) -> str:
    """Without what could move the cursor, colour the rest, or turn its direction."""
    return "".join(character if character.isprintable() else " " if character.isspace() else "\ufffd" for character in text)
