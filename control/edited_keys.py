"""What a job counts as once its arguments are others: keys that the actor makes of arguments follow them.

    limits          rate_limit_key, rate_limit_cost, concurrency_key, fair_key, fair_weight: as a send with these arguments would have them
    unique_key      the same, while the job is active and for a period; a key that was let go (``forget_key``) stays so until another is due
    idempotency_key stays: it is the sender's, and stands for what was sent

What the message itself said (``send_with_options(concurrency_key=...)``) is an option of the job and stays. A process that does not know
the actor cannot work keys out, so it is refused where the job has one: it would go on counting as what it is no more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from errors import OptionError, PayloadError
from ledger.control import Keys, PeriodKey, WaitingJob
from ledger.records import JobControl, NewJob

_UNKNOWN: Final = (
    "is made of the arguments, and this process does not know the actor; change the job in a program that imports it, or with "
    "`switchyard edit --actors MODULE`. Nothing was changed"
)


def new_keys(waiting: WaitingJob, new: NewJob, old: Callable[[], NewJob]) -> Keys:
    """The keys of a job that becomes ``new``.

    Parameters:
        old: makes the row of the job as it is.
    """
    control = new.control or JobControl()
    unique_key = control.unique_key
    if waiting.unique_key is None and unique_key is not None and _key_now(old) == unique_key:
        # It was taken away from the job, which goes on without it.
        unique_key = None
    return Keys(unique_key, control.rate_key, control.rate_cost, control.concurrency_key, control.fair_key, control.fair_weight)


def moved_period(waiting: WaitingJob, id_: str, key: str | None, new: NewJob) -> PeriodKey | None:
    """How the key that a job has for a period is to change; None: it has none, or the same."""
    unique = None if new.control is None else new.control.unique
    to = None if unique is None else unique.key
    return None if key is None or key == to else PeriodKey(waiting.actor, id_, key, to)


def refuse_without_actor(waiting: WaitingJob, period_key: str | None) -> None:
    """Raises: OptionError: the job has a key that its actor may have made of its arguments."""
    own = (waiting.options or {}).keys()
    for option, key, said in (
        ("unique_key", waiting.unique_key or period_key, {"unique_key"}),
        ("rate_limit_key", waiting.rate_key, {"rate_limit_key", "rate_limit_cost"}),
        ("concurrency_key", waiting.concurrency_key, {"concurrency_key"}),
        ("fair_key", waiting.fair_key, {"fair_key"}),
    ):
        if key is not None and not said <= own:
            raise OptionError(waiting.actor, option, _UNKNOWN)


def _key_now(old: Callable[[], NewJob]) -> str | None:
    # Arguments that fit no more have no key: they are why they are changed.
    with suppress(OptionError, PayloadError):
        control = old().control
        return None if control is None else control.unique_key
    return None
