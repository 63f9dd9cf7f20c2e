"""Which claim the current code runs for: set around every execution, seen by sends, progress and log lines, also in async actors."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from runtime.claims import Claim

#: The claim whose actor is running in this context; None outside an actor.
current_claim: Final[ContextVar[Claim | None]] = ContextVar("switchyard_current_claim", default=None)
