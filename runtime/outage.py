"""Saying once that something is away, now and then that it still is, and once that it is back."""

from __future__ import annotations

from time import monotonic
from typing import Final

from structlog.stdlib import get_logger

logger = get_logger(__name__)

#: How often a lasting outage is mentioned again, in seconds.
REMIND: Final = 30.0


class Outage:
    """The log lines of one thread about one server; used by that thread alone.

    Parameters:
        what: who is kept from working, for example ``keeper``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None
        self._said = 0.0

    def failed(self, error: BaseException) -> None:
        """It is away (still)."""
        now = monotonic()
        if self._since is None:
            self._since = now
        elif now - self._said < REMIND:
            return
        self._said = now
        reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        logger.warning("waiting, will go on by itself", who=self._what, seconds=round(now - self._since, 1), error=reason)

    def over(self) -> None:
        """It answered."""
        if self._since is not None:
            logger.info("going on", who=self._what, after_seconds=round(monotonic() - self._since, 1))
            self._since = None
