"""Retries: what becomes of an execution that raised.

    Snooze                          scheduled again, counts as nothing
    Shutdown                        released: pending again at once, counts as nothing
    Cancelled                       cancelled; so does any other error end once somebody asked the job to stop
    Permanent, or one of ``throws`` dead (permanent)
    failures left                   retrying, after a back-off with jitter, or when ``Retry(delay=)`` says
    none left                       dead (max_retries, or time_limit when that was the last error)

Effect: unlike Dramatiq's own, a retry is no new message: it is a column of the row, written with the failure in one statement, so
nothing between the two can lose it. Names, meaning and milliseconds of the options are Dramatiq's.
Actor and message options: ``max_retries`` (20; None: none), ``min_backoff`` (15 s), ``max_backoff`` (7 days), ``retry_when`` (a function
of failures so far and exception, decides alone), ``throws`` (exception classes that are expected and final).
Store: none; the flusher writes what is noted here.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final

from dramatiq import Actor, Broker, Message, MessageProxy, Middleware
from dramatiq.errors import Retry
from dramatiq.middleware import Shutdown
from dramatiq.middleware.time_limit import TimeLimitExceeded
from structlog.stdlib import get_logger

from errors import Cancelled, OptionError, Permanent, Snooze
from ledger.records import Finish
from ledger.states import State
from ledger.write import MAX_DELAY
from runtime.claims import Claim
from runtime.encoding import clean_text
from runtime.node import released
from runtime.options import DEFAULT_MAX_BACKOFF_MS, DEFAULT_MIN_BACKOFF_MS, HasOptions, check_numbers, max_attempts, option

logger = get_logger(__name__)

#: Longest error text and traceback that are stored, in characters.
MAX_ERROR: Final = 2_000
MAX_TRACEBACK: Final = 16_000
#: More retries than this do not fit the row; None means no bound.
MAX_RETRIES: Final = 1_000_000_000
#: Doubling stops here; any larger exponent is beyond every max_backoff.
_MAX_EXPONENT: Final = 40


def backoff_ms(failures: int, min_backoff: int, max_backoff: int) -> int:
    """The pause before the next attempt, in milliseconds: ``min_backoff`` doubled with every failure, up to ``max_backoff``, with jitter.

    The jitter adds up to half of the pause on top and stays below the cap, so the first pause is never shorter than ``min_backoff``.
    """
    pause = min(max_backoff, min_backoff * 2 ** min(max(failures - 1, 0), _MAX_EXPONENT))
    return int(min(max_backoff, pause + random.uniform(0, pause / 2)))  # noqa: S311 (spreads load, hides nothing)


def failed(message: Any, error: BaseException, actor: Actor[Any, Any] | None) -> Finish:
    """How an execution ends that raised ``error``."""
    claim: Claim = message.claim
    if isinstance(error, Cancelled) or claim.cancel_requested:
        return cancelled(claim, error)
    if isinstance(error, Shutdown):
        return released(claim)
    if isinstance(error, Snooze):
        return snoozed(claim, error.delay.total_seconds())
    failures = claim.job.failures + 1
    now = monotonic()
    finish = Finish(
        id=claim.job.id,
        token=claim.token,
        state=State.RETRYING,
        started=claim.started if claim.started is not None else now,
        finished=now,
        outcome="failed",
        error_type=type(error).__name__,
        error=clean_text(claim.redacted(_text(error)) or _why(error, claim), MAX_ERROR),
        traceback=clean_text(claim.redacted("".join(traceback.format_exception(error))), MAX_TRACEBACK),
    )
    reason = _why_dead(message, error, actor, failures)
    if reason is not None:
        finish.state, finish.dead_reason = State.DEAD, reason
    else:
        finish.delay = _delay_ms(message, error, actor, failures) / 1000
    return finish


def cancelled(claim: Claim, error: BaseException) -> Finish:
    """How an execution ends that was asked to stop, or wanted to."""
    now = monotonic()
    return Finish(
        id=claim.job.id,
        token=claim.token,
        state=State.CANCELLED,
        started=claim.started if claim.started is not None else now,
        finished=now,
        outcome="cancelled",
        error_type=type(error).__name__,
        error=clean_text(claim.redacted(_text(error)), MAX_ERROR),
        traceback=None
        if isinstance(error, Cancelled)
        else clean_text(claim.redacted("".join(traceback.format_exception(error))), MAX_TRACEBACK),
    )


def snoozed(claim: Claim, delay: float) -> Finish:
    """How an execution ends that asked to be run again in ``delay`` seconds."""
    now = monotonic()
    return Finish(
        id=claim.job.id,
        token=claim.token,
        state=State.SCHEDULED,
        started=claim.started if claim.started is not None else now,
        finished=now,
        outcome="snoozed",
        delay=max(0.0, delay),
    )


def _why_dead(message: HasOptions, error: BaseException, actor: Actor[Any, Any] | None, failures: int) -> str | None:
    throws = option("throws", message, actor)
    if isinstance(error, Permanent):
        return error.dead_reason
    if throws and isinstance(error, throws):
        return "permanent"
    retry_when: Callable[[int, BaseException], bool] | None = option("retry_when", message, actor)
    if retry_when is not None:
        try:
            return None if retry_when(failures - 1, error) else "max_retries"
        except Exception:
            # The job must not hang on it: max_retries decides instead.
            logger.exception("retry_when raised")
    limit = max_attempts(message, actor)
    if limit is None or failures < limit:
        return None
    return "time_limit" if isinstance(error, TimeLimitExceeded) else "max_retries"


def _delay_ms(message: HasOptions, error: BaseException, actor: Actor[Any, Any] | None, failures: int) -> float:
    if isinstance(error, Retry) and error.delay is not None:
        if isinstance(error.delay, int | float) and not isinstance(error.delay, bool):
            # Whatever the number: nothing is before now (nor is what is no number), and beyond this Postgres has no dates left.
            return min(max(0, error.delay), MAX_DELAY * 1000)
        # The job must not die of it: the back-off decides instead.
        logger.error("Retry(delay=) is no number of milliseconds", given=f"{error.delay!r:.50}")
    return backoff_ms(
        failures,
        option("min_backoff", message, actor, DEFAULT_MIN_BACKOFF_MS),
        option("max_backoff", message, actor, DEFAULT_MAX_BACKOFF_MS),
    )


def _check(actor_name: str, options: Mapping[str, Any]) -> None:
    retries = options.get("max_retries")
    if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries < MAX_RETRIES):
        raise OptionError(
            actor_name, "max_retries", f"{retries!r:.50} is no integer from 0 to {MAX_RETRIES:,} (a number of retries)"
        )
    check_numbers(actor_name, options, {"min_backoff": "milliseconds", "max_backoff": "milliseconds"})
    if (options.get("min_backoff") or 0) > (options.get("max_backoff") or DEFAULT_MAX_BACKOFF_MS):
        raise OptionError(actor_name, "min_backoff", "is longer than max_backoff")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        # An error whose text cannot be made is a failure like any other.
        return f"a {type(error).__name__} whose text cannot be made"


def _why(error: BaseException, claim: Claim) -> str:
    """What to say of an error that says nothing itself."""
    if isinstance(error, TimeLimitExceeded) and claim.time_limit is not None:
        return f"it ran for longer than its time limit of {claim.time_limit:g} s"
    return ""


class Retries(Middleware):
    """Notes failures."""

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"max_retries", "min_backoff", "max_backoff", "retry_when", "throws"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Refuse option values that would only be found out when the first job fails."""
        options = actor.options
        _check(actor.actor_name, options)
        throws = options.get("throws") or ()
        for entry in throws if isinstance(throws, tuple) else (throws,):
            if not (isinstance(entry, type) and issubclass(entry, BaseException)):
                raise OptionError(actor.actor_name, "throws", f"{entry!r} is no exception class (give one, or a tuple of them)")

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check the message's own options."""
        if message.options:
            _check(message.actor_name, message.options)

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Note what becomes of a failed execution, unless something was noted before."""
        claim: Claim = message.claim
        if exception is None or claim.ending is not None:
            return
        ending = failed(message, exception, broker.actors.get(message.actor_name))
        claim.ending = ending
        if ending.state is State.DEAD:
            # To the worker's thread too: foreign middleware may look at it, as with Dramatiq's own Retries.
            message.fail()
            logger.error(
                "job is dead",
                reason=ending.dead_reason,
                error=f"{ending.error_type}: {ending.error}",
                exc_info=None if ending.dead_reason in ("permanent", "undecryptable") else exception,
            )
        elif ending.state is State.RETRYING:
            error = f"{ending.error_type}: {ending.error}"
            logger.warning("job failed, trying again", failures=claim.job.failures + 1, delay=round(ending.delay, 3), error=error)
        elif ending.state is State.CANCELLED:
            logger.info("job cancelled", error=f"{ending.error_type}: {ending.error}")
        elif ending.outcome == "released":
            logger.info("job released at the shutdown, due again at once")
