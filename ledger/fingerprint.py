"""What failures of the same kind have in common, so that ten thousand dead letters are three groups.

    fingerprint = hash of: actor, reason, type of the error, and its kind
    kind        = hash of: the error's text without what differs from one job to the next, and the last own frames of its traceback

The kind is made here, where the traceback is; the database joins it with the rest when the job dies (``switchyard.fingerprint``), and has
none for deaths that no worker was there for. Line numbers are left out, so that a deploy which moves code does not split a group; so are
numbers, ids, addresses and whatever is quoted. Pure, and never raises, whatever the text.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePath
from typing import Final

#: How many of the innermost own frames count.
FRAMES: Final = 3
#: Longest error text that is looked at, in characters.
LONGEST: Final = 2_000
#: Deaths whose text and traceback say nothing about their kind: the ledger's own, and those of bodies interrupted anywhere.
PLAIN: Final = frozenset({"expired", "worker_lost", "unknown_actor", "time_limit"})

#: In this order: what may hold the later ones comes first.
_VARIABLE: Final = (
    # 'quoted' and "quoted", but not an apostrophe within a word.
    (re.compile(r"""(?<!\w)(['"`])(?:\\.|(?!\1).)*\1(?!\w)""", re.DOTALL), "'…'"),
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "<address>"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "<hex>"),
    (re.compile(r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE), "<address>"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "<address>"),
    # Eight or more hexadecimal digits, both letters and figures: a digest, an object id, a short commit.
    (re.compile(r"\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{8,}\b", re.IGNORECASE), "<hex>"),
    # Figures, wherever they stand: 1,234.5 and 2026-11-28T08:36:00 and job7 too.
    (re.compile(r"\d+(?:[.,:_-]?\d+)*"), "#"),
    (re.compile(r"\s+"), " "),
)
_FRAME: Final = re.compile(r'^[ |+-]*File "(?P<file>[^"\n]+)", line \d+, in (?P<function>.+)$', re.MULTILINE)
_BEGINNING: Final = "Traceback (most recent call last):"
#: What a path has in it that leads to somebody else's code.
_FOREIGN: Final = re.compile(r"[/\\](?:site-packages|dist-packages|lib[/\\]python\d[^/\\]*)[/\\]|^<")
_HERE: Final = str(Path(__file__).resolve().parent.parent)
#: Our own packages, through which every body is called.
_OURS: Final = ("brokers", "control", "keeper", "ledger", "middleware", "runtime")


def failure_kind(reason: str | None, error: str | None, traceback: str | None) -> str:
    """What a failure has in common with others of its kind, as a short hash; empty for reasons that are kinds by themselves."""
    if reason in PLAIN:
        return ""
    parts = [normalised(error or ""), *own_frames(traceback or "")]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def normalised(text: str) -> str:
    """An error's text without what differs from one job to the next. Doing it again changes nothing."""
    text = text[:LONGEST]
    for pattern, stand_in in _VARIABLE:
        text = pattern.sub(stand_in, text)
    return text.strip()


def own_frames(traceback: str) -> list[str]:
    """``file:function`` of the innermost frames that are neither a library's nor Switchyard's; if there are none, of the innermost one."""
    # Of an exception that came of another one, its own traceback is the last.
    last = traceback.rpartition(_BEGINNING)[2]
    frames = [(frame["file"], frame["function"].strip()) for frame in _FRAME.finditer(last)]
    own = [frame for frame in frames if not _FOREIGN.search(frame[0]) and not _is_ours(frame[0])]
    return [f"{'/'.join(PurePath(file).parts[-2:])}:{function}" for file, function in own[-FRAMES:] or frames[-1:]]


def _is_ours(file: str) -> bool:
    return file.startswith(tuple(f"{_HERE}/{package}/" for package in _OURS))
