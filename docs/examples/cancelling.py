"""A running job is stopped from another process and cleans up; waiting ones are cancelled by a tag."""

from __future__ import annotations

import time
from typing import Any

import dramatiq

import switchyard
from switchyard import Cancelled, current_job

switchyard.configure()


@dramatiq.actor
def render(film: str) -> None:
    """Render a film, which takes a minute."""
    try:
        for second in range(60):
            current_job().progress(second / 0.6, "rendering")
            time.sleep(1)
    except Cancelled:
        current_job().log(f"removed what there was of {film}")
        raise


def look(message: dramatiq.Message[Any]) -> switchyard.Job:
    """The job of a message, as it stands now."""
    job = switchyard.get_job(message.message_id)
    assert job is not None
    return job


def main() -> None:
    """Send, think better of it, and look at what became of the jobs."""
    running = render.send("first")
    while look(running).stage is None:
        time.sleep(0.05)
    later = switchyard.enqueue_many(
        [render.message_with_options(args=("later",), tags=["night"]) for _ in range(3)], delay=3_600_000
    )

    print("asked to stop:", switchyard.cancel(running.message_id))
    print("cancelled by tag:", switchyard.cancel_many(tag="night").cancelled)

    job = switchyard.wait(running.message_id, timeout=30)
    print(f"{job.state}: {job.error}")
    print(switchyard.logs(job.id)[0].line)
    print(look(later[0]).state)
    print("again:", switchyard.cancel(running.message_id))


if __name__ == "__main__":
    main()

# Prints:
# asked to stop: True
# cancelled by tag: 3
# cancelled: the job was cancelled
# removed what there was of first
# cancelled
# again: False
