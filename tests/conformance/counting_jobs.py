"""Actors whose jobs have keys of every kind, made of their arguments, for tests of what follows other arguments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker

from tests.conformance.jobs import gate, note
from tests.conformance.system import System

HOUR = 3_600_000


def declare(broker: Broker) -> SimpleNamespace:
    """Declare them on a broker and return them by name."""
    actors = SimpleNamespace()

    def actor(**options: Any) -> Any:
        def register(fn: Any) -> Any:
            setattr(actors, fn.__name__, dramatiq.actor(broker=broker, **options)(fn))
            return getattr(actors, fn.__name__)

        return register

    @actor(rate_limit="1/hour", rate_limit_key="customer", rate_limit_cost=lambda customer, weight=1: weight)
    def hourly(customer: str, weight: int = 1) -> None:
        note(customer, weight)

    @actor(concurrency=1, concurrency_key="account", fair_key="tenant", fair_weight=lambda account, tenant="": 2)
    def serial(account: str, tenant: str = "") -> None:
        note(account, tenant)
        if not gate(account).wait(30):
            raise TimeoutError(account)

    @actor(unique_key=("account",))
    def rebuild(account: str, reason: str = "") -> str:
        return f"{account} {reason}"

    @actor(unique_key=lambda account: account or None)
    def some(account: str) -> None:
        note(account)

    @actor(unique_for=3600, unique_key=("account",))
    def once_an_hour(account: str, reason: str = "") -> None:
        note(account, reason)

    @actor(unique_key=("account",), max_retries=0)
    def picky(account: str, good: bool = False) -> str:
        if not good:
            raise ValueError(account)
        return account

    @actor(
        unique_key=("shop",), unique_mode="debounce", rate_limit="1/hour", rate_limit_key="customer",
        rate_limit_cost=lambda shop, customer, weight=1: weight,
    )  # fmt: skip
    def reindex(shop: str, customer: str, weight: int = 1) -> None:
        note(shop, customer)

    @actor(
        unique_key=("shop",), unique_mode="debounce", concurrency=1, concurrency_key="account", fair_key="tenant",
        fair_weight=lambda shop, account, tenant="": 2,
    )  # fmt: skip
    def rebuild_shop(shop: str, account: str, tenant: str = "") -> None:
        note(shop, account)
        if not gate(account).wait(30):
            raise TimeoutError(account)

    @actor()
    def plain(value: Any) -> Any:
        return value

    return actors


def waits_for(system: System, message: Any, reason: str) -> Any:
    return system.until(message, lambda job: job.wait_reason == reason)


def row(system: System, message: Any) -> tuple[Any, ...]:
    """What the job counts as, and all else that an edit may touch."""
    (found,) = system.rows(
        "SELECT unique_key, rate_key, rate_cost, concurrency_key, fair_key, fair_weight, limited, state, payload::text, priority,"
        " run_at::text, next_publish_at, wait_reason, blocked_on FROM switchyard.job WHERE message_id = %s",
        message.message_id,
    )
    return found
