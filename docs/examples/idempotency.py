"""One order is charged once, however often it is sent; an index is rebuilt once for many changes."""

from __future__ import annotations

import uuid

import dramatiq

import switchyard

switchyard.configure()


@dramatiq.actor
def charge(order: str, cents: int) -> str:
    """Charge an order."""
    return f"charged {cents} cents"


@dramatiq.actor(unique_key=("shop",), unique_mode="debounce")
def rebuild_index(shop: str, version: int) -> str:
    """Rebuild a shop's search index."""
    return f"index of version {version}"


def main() -> None:
    """Send twice, and see that it was once."""
    order = uuid.uuid4().hex

    first = charge.send_with_options(args=(order, 1200), idempotency_key=order)
    again = charge.send_with_options(args=(order, 1200), idempotency_key=order)
    print("the same job:", again.message_id == first.message_id, "- replayed:", again.options["replayed"])
    print(again.get_result(block=True))

    try:
        charge.send_with_options(args=(order, 9900), idempotency_key=order)
    except switchyard.IdempotencyConflict as conflict:
        print("refused, the key stands for the first job:", conflict.existing_id == first.message_id)

    messages = [rebuild_index.send_with_options(args=(order, version), delay=500) for version in (1, 2, 3)]
    print("jobs for three changes:", len({message.message_id for message in messages}))
    print(messages[0].get_result(block=True))


if __name__ == "__main__":
    main()

# Prints:
# the same job: True - replayed: True
# charged 1200 cents
# refused, the key stands for the first job: True
# jobs for three changes: 1
# index of version 3
