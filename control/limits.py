"""What people do about limits: look at them, set one while jobs run, and go back to what the code says.

What is set stays in force whatever processes declare, through restarts and deploys, until it is reset. It holds from the next decision on:
jobs that run already go on. Whoever waits for a slot that a raised limit makes free, or was promised a time under another rate, is told at
once.
"""

from __future__ import annotations

from control.access import ask
from ledger import limits as ledger_limits
from ledger.database import BoundedConnection
from ledger.limits import MAX_AMOUNT, Kind, Limit, Rule, default_burst, parse_rate
from settings import check_queue


def limits() -> list[Limit]:
    """Every limit there is, by name: what is in force, what the code declares, how much is used, how many wait, when the next may start.

    Raises:
        LedgerUnavailable: Postgres did not answer.
    """
    return ask(ledger_limits.limits)


def set_limit(
    *,
    actor: str | None = None,
    queue: str | None = None,
    rate: str | None = None,
    burst: int | None = None,
    concurrency: int | None = None,
) -> None:
    """Put other limits in force than the code declares, at once and everywhere, until ``reset_limit``.

    Parameters:
        actor: whose jobs to limit; needs ``rate``, ``concurrency`` or both, each of which its code must have: jobs are counted by what
            they were sent with.
        queue: or which queue's; needs ``concurrency``.
        rate: such as ``100/minute`` or ``5/30s``.
        burst: how many may start together; default: what one second brings, at least 1.
        concurrency: how many may run at once.

    Raises:
        ValueError: a value cannot work, or does not go with the others; the text names it.
        LedgerUnavailable: Postgres did not answer.
    """
    rules = _rules(actor, queue, rate, burst, concurrency)

    def change(connection: BoundedConnection) -> None:
        with connection.transaction():
            for rule in rules:
                if not ledger_limits.set_rule(connection, rule):
                    option = "rate_limit" if rule.kind == "rate" else "concurrency"
                    raise ValueError(
                        f"no worker or sender has declared an actor {rule.name!r} with {option}: its jobs are not counted"
                    )
        _tell(connection)

    ask(change)


def reset_limit(*, actor: str | None = None, queue: str | None = None) -> bool:
    """Put in force again what the code or the settings declare. False: nothing else was.

    Raises:
        ValueError: give an actor or a queue.
        LedgerUnavailable: Postgres did not answer.
    """
    kinds, name = _which(actor, queue)

    def change(connection: BoundedConnection) -> bool:
        with connection.transaction():
            changed = [ledger_limits.reset_rule(connection, kind, name) for kind in kinds]
        if queue is not None:
            ledger_limits.offer_again(connection, [queue])
        _tell(connection)
        return any(changed)

    return ask(change)


def _which(actor: str | None, queue: str | None) -> tuple[tuple[Kind, ...], str]:
    if (actor is None) == (queue is None):
        raise ValueError("give an actor or a queue, one of them")
    return (("rate", "concurrency"), actor) if actor is not None else (("queue",), queue or "")


def _rules(actor: str | None, queue: str | None, rate: str | None, burst: int | None, concurrency: int | None) -> list[Rule]:
    kinds, name = _which(actor, queue)
    rules = []
    if queue is not None:
        check_queue(queue)
        if rate is not None:
            raise ValueError("a queue has no rate; limit its actors, or give concurrency")
    if rate is not None:
        amount, period = parse_rate(rate)
        rules.append(
            Rule("rate", name, amount, period, default_burst(amount, period) if burst is None else _whole("burst", burst))
        )
    elif burst is not None:
        raise ValueError("burst goes with a rate")
    if concurrency is not None:
        rules.append(Rule(kinds[-1], name, _whole("concurrency", concurrency)))
    if not rules:
        raise ValueError("give a rate or concurrency" if queue is None else "give concurrency")
    return rules


def _whole(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_AMOUNT:
        raise ValueError(f"{name} {value!r:.50} is no whole number from 1 to {MAX_AMOUNT:,}; to stop jobs, pause them")
    return value


def _tell(connection: BoundedConnection) -> None:
    """Wake whoever may go on by the new rules; what is left when this process dies is for the keepers."""
    after: str | None = ""
    while after is not None:
        _, after = ledger_limits.wake_missed(connection, after)
    while ledger_limits.renew_promises(connection):
        pass
