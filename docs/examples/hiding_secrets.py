"""A card number is seen by the actor's body, and by nobody who looks at the job."""

from __future__ import annotations

import dramatiq

import switchyard

# An example's: make yours with `switchyard secrets new-key`, and keep it where your passwords are.
switchyard.configure(secret_keys="c3dpdGNoeWFyZCBleGFtcGxlIGtleSwgMzIgYnl0ZXM=")  # noqa: S106


@dramatiq.actor(secret=("card",), max_retries=0)
def charge(cents: int, card: str) -> str:
    """Charge a card, if it is one of ours."""
    if not card.startswith("4"):
        raise ValueError(f"{card} is no card of ours")
    return f"charged {cents} cents to the card that ends in {card[-4:]}"


def main() -> None:
    """Send twice, and look at the jobs."""
    fine = charge.send(1200, "4111 1111 1111 1111")
    print(fine.get_result(block=True))
    print("arguments:", switchyard.wait(fine.message_id).args)

    job = switchyard.wait(charge.send(1200, "5500 0000 0000 0004").message_id, timeout=30)
    print(f"{job.state}: {job.error}")


if __name__ == "__main__":
    main()

# Prints:
# charged 1200 cents to the card that ends in 1111
# arguments: (1200, '[secret]')
# dead: [secret] is no card of ours
