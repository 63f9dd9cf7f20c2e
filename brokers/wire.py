"""The text of a trigger on Redis and RabbitMQ: ``<job id> <actor>``, for example ``1742 send_email``.

It is written for people who look into a broker, and for no one else: what it says is only a hint, since the claim asks the
ledger. So a forged or mangled text can at worst offer a job that the claim refuses. A mark says ``mark <seconds since 1970>``; a forged
one can at worst have triggers published twice.
"""

from __future__ import annotations

from functools import lru_cache

#: Longest job id that is believed, in digits. It keeps a forged one inside Postgres' bigint, where it would fail a whole claim.
_MAX_DIGITS = 18


def encode(job_id: int, actor: str) -> str:
    """The text of a trigger."""
    return f"{job_id} {actor}"


def decode(text: bytes) -> tuple[int, str] | None:
    """Read a trigger's job id and actor; None where there is no trigger in the text."""
    digits, _, actor = text.partition(b" ")
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        return None
    try:
        return int(digits), _actor(actor)
    except ValueError:
        return None


def encode_mark(at: float) -> str:
    """The text of a mark, for example ``mark 1763746000.25``."""
    return f"mark {at:.6f}"


def decode_mark(text: bytes) -> float | None:
    """Read when a mark was published; None where there is no mark in the text."""
    word, _, digits = text.partition(b" ")
    if word != b"mark" or len(digits) > _MAX_DIGITS or not digits.replace(b".", b"", 1).isdigit():
        return None
    return float(digits)


# A fleet has a few hundred actors and runs each many times: remembering their names makes reading one three times as fast.
@lru_cache(maxsize=4096)
def _actor(name: bytes) -> str:
    """Raises ValueError (UnicodeDecodeError is one) on what Postgres could not hold as the name of an actor."""
    if not name or b"\0" in name:
        raise ValueError("no name of an actor")
    return name.decode()
