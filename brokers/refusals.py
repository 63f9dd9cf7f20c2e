"""Queues that a broker refuses while it serves the others: each is set aside alone, asked for again with back-off, and said once.

refused   somebody declared it otherwise, its key holds something else, or the user may not use it: only an operator can end that
rests     nothing is sent to it or taken from it, its jobs wait in the ledger
due       it is asked for again, after 1 s at first and every 30 s at last; answered, it is as any other from then on
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Final

from structlog.stdlib import get_logger

from brokers.transport import QueueRefused

logger = get_logger(__name__)

#: First and longest pause before a refused queue is asked for again, in seconds.
RETRY_MIN: Final = 1.0
RETRY_MAX: Final = 30.0
#: How long one round of asking may take, in seconds; the others are asked for in the next one.
ROUND: Final = 1.0


@dataclass(slots=True)
class _Refused:
    reason: str
    since: float
    retry_at: float
    pause: float


class Refusals:
    """The queues of one broker that one end of it was refused. Used by one thread; ``in`` and iteration by any.

    Parameters:
        broker: its name, for log lines.
        what: what the end does with a queue, for log lines: ``publish``, ``consume``.
    """

    def __init__(self, broker: str, what: str) -> None:
        self._broker = broker
        self._what = what
        self._queues: dict[str, _Refused] = {}

    def __contains__(self, queue: str) -> bool:
        """Whether the queue is refused."""
        return queue in self._queues

    def __iter__(self) -> Iterator[str]:
        """The refused queues."""
        return iter(list(self._queues))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._queues)

    def note(self, error: QueueRefused) -> None:
        """It is refused (still); said in the log the first time, and when the reason is another one."""
        now = monotonic()
        known = self._queues.get(error.queue)
        pause = RETRY_MIN if known is None else min(known.pause * 2, RETRY_MAX)
        since = now if known is None else known.since
        self._queues[error.queue] = _Refused(error.reason, since, now + pause, pause)
        if known is None or known.reason != error.reason:
            logger.warning(
                "the broker refuses this queue, its jobs wait in the ledger, the other queues go on",
                broker=self._broker, queue=error.queue, refused=self._what, error=error.reason, advice=error.advice,
            )  # fmt: skip

    def accept(self, queue: str) -> None:
        """It is taken; said in the log if it was refused."""
        known = self._queues.pop(queue, None)
        if known is not None:
            seconds = round(monotonic() - known.since, 1)
            logger.info(
                "the broker takes the queue again", broker=self._broker, queue=queue, was=self._what, after_seconds=seconds
            )

    def put_off(self, queues: Iterable[str]) -> None:
        """They could not be asked for: later."""
        for queue in queues:
            known = self._queues.get(queue)
            if known is not None:
                known.pause = min(known.pause * 2, RETRY_MAX)
                known.retry_at = monotonic() + known.pause

    def rests(self, queue: str) -> bool:
        """Whether it is refused, and too early to ask for again."""
        known = self._queues.get(queue)
        return known is not None and monotonic() < known.retry_at

    def due(self) -> list[str]:
        """Those to ask for again, the one that has waited longest first."""
        now = monotonic()
        ready = [(known.retry_at, queue) for queue, known in self._queues.items() if known.retry_at <= now]
        return [queue for _, queue in sorted(ready)]

    def ask(self, queues: Iterable[str], question: Callable[[str], None]) -> None:
        """Ask for each of these queues, and take note of the answers; after ``ROUND`` seconds no other one is begun.

        Parameters:
            question: raises ``QueueRefused`` when the queue is.
        """
        deadline = monotonic() + ROUND
        for queue in queues:
            try:
                question(queue)
            except QueueRefused as error:
                self.note(error)
            else:
                self.accept(queue)
            if monotonic() >= deadline:
                return
