"""A queue rests, and what is sent to it meanwhile runs afterwards, changed and in another order."""

from __future__ import annotations

import time
from typing import Any

import dramatiq

import switchyard

switchyard.configure()


@dramatiq.actor(queue_name="mail")
def write_to(name: str, text: str) -> str:
    """Write to somebody."""
    return f"{text}, {name}"


def look(message: dramatiq.Message[Any]) -> switchyard.Job:
    """The job of a message, as it stands now."""
    job = switchyard.get_job(message.message_id)
    assert job is not None
    return job


def main() -> None:
    """Pause, send, change, resume."""
    switchyard.pause(queue="mail")
    ada, bob = write_to.send("Ada", "Hello"), write_to.send("Bob", "Hello")
    while look(bob).wait_reason is None:
        time.sleep(0.05)
    print("waits because it is", look(bob).wait_reason)

    switchyard.edit(bob.message_id, kwargs={}, args=["Bob", "Good morning"], priority=-10)
    print([pause.what for pause in switchyard.paused()])

    switchyard.resume(queue="mail")
    print(switchyard.wait(ada.message_id, timeout=30).result)
    print(switchyard.wait(bob.message_id, timeout=30).result)


if __name__ == "__main__":
    main()

# Prints:
# waits because it is paused
# ['queue mail']
# Hello, Ada
# Good morning, Bob
