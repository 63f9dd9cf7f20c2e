"""Actors that are given secrets, and do their best to tell them; ``dramatiq tests.conformance.secrets_worker`` runs them."""

from __future__ import annotations

import hashlib
import logging
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker

import switchyard
from errors import Cancelled, Permanent
from tests.conformance import jobs


def made(key: str) -> str:
    """What the actors make that make secrets: nothing that the ledger would hold anyway."""
    return hashlib.sha256(f"made {key}".encode()).hexdigest()


def declare(broker: Broker) -> SimpleNamespace:
    """Declare them on a broker and return them by name."""
    actors = SimpleNamespace()

    def actor(**options: Any) -> Any:
        def register(fn: Any) -> Any:
            made = dramatiq.actor(broker=broker, **options)(fn)
            setattr(actors, fn.__name__, made)
            return made

        return register

    @actor(secret=("card",))
    def keeps(key: str, card: str) -> int:
        jobs.note(key, card)
        return len(card)

    @actor(secret=("card",), queue_name="parked", unique_key=("key",), unique_mode="debounce")
    def parked(key: str, card: str) -> None:
        jobs.note(key, card)

    @actor(secret=("card",), max_retries=1, **jobs.FAST)
    def breaks(key: str, card: Any) -> None:
        jobs.note(key, card)
        switchyard.current_job().log(f"the card is {card}")
        switchyard.current_job().progress(50, f"with {card}")
        logging.getLogger("theirs").warning("card %s", card)
        try:
            raise KeyError(card)
        except KeyError as error:
            raise ValueError(f"no card {card!r}") from error

    @actor(secret=("card",), max_retries=0)
    def gives_up(key: str, card: str) -> None:
        raise Permanent(f"no card {card}")

    @actor(secret=("card",))
    def stops(key: str, card: str) -> None:
        raise Cancelled(f"no card {card}")

    @actor(secret=("card",))
    def tells(key: str, card: str) -> dict[str, Any]:
        return {"card": card, "text": f"<{card}>", "key": key}

    @actor(secret=("card",))
    def completes(key: str, card: str) -> None:
        with switchyard.current_job().transaction():
            switchyard.current_job().result = [card, key]

    @actor(secret=("card",))
    async def later(key: str, card: str) -> None:
        logging.getLogger("theirs").warning("card %s", card)
        jobs.note(key, card)

    @actor(secret=("card",), queue_name="parked")
    def waits(key: str, card: str) -> str:
        jobs.note(key, card)
        return key

    @actor()
    def makes(key: str) -> str:
        return made(key)

    @actor(store_results=False)
    def makes_unstored(key: str) -> str:
        return made(key)

    @actor()
    def makes_within(key: str) -> None:
        with switchyard.current_job().transaction():
            switchyard.current_job().result = made(key)

    @actor(secret=("token",))
    def uses(key: str, note: str, token: str) -> str:
        jobs.note(key, token)
        return note

    @actor(secret=("cards",))
    def gathers(key: str, cards: list[Any]) -> int:
        jobs.note(key, cards)
        return len(cards)

    @actor(secret=("pin",))
    def counts(key: str, pin: int) -> None:
        jobs.note(key, pin)

    @actor(secret=("card",), max_retries=0)
    def trips(key: str, card: str) -> None:
        jobs.note(key, card)
        if len(jobs.seen[key]) == 1:
            raise ValueError(f"no card {card}")

    @actor(secret=("result",))
    def after_secretly(message: dict[str, Any], result: Any) -> None:
        jobs.note(f"after {message['message_id']}", result)

    @actor(secret=("message", "result"), queue_name="parked")
    def after_all_secretly(message: dict[str, Any], result: Any) -> None:
        jobs.note(f"after {message['message_id']}", message["args"])

    @actor()
    def after_openly(message: dict[str, Any], result: Any) -> None:
        jobs.note(f"after {message['message_id']}", result)

    @actor()
    def after(message: dict[str, Any], result: Any) -> None:
        jobs.note(f"after {message['message_id']}", message["args"])

    @actor()
    def plain(key: str, card: Any = None) -> str:
        return key

    return actors
