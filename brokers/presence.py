"""What the watching keeper of a ledger says of itself in its broker, so that systems that share a BROKER_PREFIX find each other.

It is JSON, for people who look into a broker as well, and goes by itself some sweeps after it was said last. Whatever does not read as one
is passed over: in the worst case, a forged one has an operator look for a system that is not there.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

#: Longest text that is read, in bytes, and longest part of it that is shown, in characters.
_MAX_TEXT: Final = 4_096
_MAX_WORD: Final = 200
#: The most others that one tells of.
NAMED: Final = 5


class Presence(NamedTuple):
    """One ledger's watching keeper, as it was a sweep ago or less.

    ``keeper`` is its name in the ledger's row about who watches, ``beat`` another number each time it says so, and ``seconds`` for how
    long that counts. ``ledger`` is where its ledger is and who says so, for people. ``others`` are the ledgers that it has found beside
    its own.
    """

    keeper: str
    beat: int
    seconds: float
    ledger: str
    others: tuple[str, ...] = ()


def encode(presence: Presence) -> str:
    """The text of a presence."""
    return json.dumps(presence._replace(others=presence.others[:NAMED])._asdict(), separators=(",", ":"))


def decode(text: bytes) -> Presence | None:
    """Read a presence; None where there is none in the text."""
    if len(text) > _MAX_TEXT:
        return None
    try:
        found = json.loads(text)
        keeper, ledger, others = found["keeper"], found["ledger"], found["others"]
        beat, seconds = int(found["beat"]), float(found["seconds"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if not (isinstance(others, list) and all(isinstance(word, str) for word in (keeper, ledger, *others)) and 0 < seconds < 1e6):
        return None
    return Presence(_word(keeper), beat, seconds, _word(ledger), tuple(map(_word, others[:NAMED])))


def _word(text: str) -> str:
    """For logs and terminals, whoever wrote it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_WORD])
