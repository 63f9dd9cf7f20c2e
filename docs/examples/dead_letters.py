"""Jobs that fail for good: grouped by what they have in common, replayed one by one and all at a rate, and a hook that hears of each."""

from __future__ import annotations

import time

import dramatiq

import switchyard

switchyard.configure()


@dramatiq.actor
def tell_support(letter: dict) -> None:
    """Runs once for each death, as a job of its own."""
    print(f"{letter['actor']} is dead: {letter['error']}", flush=True)


@dramatiq.actor(max_retries=0, on_dead=tell_support)
def charge(order: int, card: str) -> str:
    """Fails for cards that are no cards, and in the first generation for all others."""
    if not card.isdigit():
        raise switchyard.Permanent(f"order {order}: {card!r} is no card")
    if switchyard.current_job().generation == 1:
        raise ConnectionError(f"order {order}: the bank does not answer")
    return f"order {order} is paid"


def main() -> None:
    """Let some jobs die, and look after them."""
    orders = switchyard.enqueue_many([charge.message(order, "4711") for order in range(1, 6)])
    typo = charge.send(6, "47-11")
    for message in (*orders, typo):
        switchyard.wait(message.message_id, timeout=60)

    for group in switchyard.dead_groups(actor="charge"):
        print(f"{group.count} dead: {group.reason}, {group.error_type}")

    # One, with the argument that was wrong put right.
    switchyard.replay(typo, args=[6, "4711"])
    print(switchyard.wait(typo.message_id, timeout=60).result)

    # A whole group, ten a second; first only counted.
    largest = switchyard.dead_groups(actor="charge")[0].fingerprint
    print("would replay", switchyard.replay_many(fingerprint=largest, dry_run=True).matched)
    done = switchyard.replay_many(fingerprint=largest, rate="10/s")
    print("replayed", done.replayed)
    for message in orders:
        print(switchyard.wait(message.message_id, timeout=60).result)

    hooks = dict(actor="tell_support", state="completed")
    while len(switchyard.list_jobs(**hooks).jobs) < 6:
        time.sleep(0.1)
    print("support heard of", len(switchyard.list_jobs(**hooks).jobs))


if __name__ == "__main__":
    main()

# Prints:
# 5 dead: max_retries, ConnectionError
# 1 dead: permanent, Permanent
# order 6 is paid
# would replay 5
# replayed 5
# order 1 is paid
# order 2 is paid
# order 3 is paid
# order 4 is paid
# order 5 is paid
# support heard of 6
