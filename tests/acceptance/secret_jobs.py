"""Actors that are given a secret and end in every way there is; ``dramatiq tests.acceptance.secrets_worker`` runs them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker
from dramatiq.middleware import SkipMessage


def declare(broker: Broker) -> SimpleNamespace:
    """Declare the actors on a broker."""

    @dramatiq.actor(broker=broker)
    def keeps(secret: Any) -> None:
        return None

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=20, max_backoff=50)
    def breaks(secret: str) -> None:
        raise ValueError("a bug")

    @dramatiq.actor(broker=broker, max_retries=0)
    def leaves(secret: str) -> None:
        raise SystemExit("out")

    @dramatiq.actor(broker=broker, max_retries=0)
    def returns_too_much(secret: str) -> str:
        return secret * 100_000

    @dramatiq.actor(broker=broker, max_retries=0, time_limit=50)
    def old(secret: str) -> None:
        while True:
            len(secret)

    @dramatiq.actor(broker=broker)
    def skips(secret: str) -> None:
        raise SkipMessage("not today")

    return SimpleNamespace(keeps=keeps, breaks=breaks, leaves=leaves, returns_too_much=returns_too_much, old=old, skips=skips)
