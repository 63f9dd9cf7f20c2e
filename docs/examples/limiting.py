"""A burst over a rate limit, one job at a time per account, and a limit that is changed while jobs wait."""

from __future__ import annotations

import time

import dramatiq

import switchyard

switchyard.configure()


@dramatiq.actor(rate_limit="5/second", rate_limit_burst=1, rate_limit_key="provider")
def fetch(provider: str) -> float:
    """Ask somebody who answers five times a second. Returns when it did."""
    return time.time()


@dramatiq.actor(concurrency=1, concurrency_key="account")
def book(account: str, seconds: float) -> None:
    """Change an account, which nobody else may meanwhile."""
    time.sleep(seconds)


@dramatiq.actor(rate_limit="1/hour")
def remind(name: str) -> str:
    """Not too often."""
    return f"reminded {name}"


def until(message: dramatiq.Message[object], reason: str) -> switchyard.Job:
    """The job, once it waits for this reason."""
    while True:
        job = switchyard.get_job(message.message_id)
        if job is not None and job.wait_reason == reason:
            return job
        time.sleep(0.02)


def main() -> None:
    """Send more than may run, and look."""
    burst = switchyard.enqueue_many([fetch.message("maps") for _ in range(6)])
    starts = sorted(message.get_result(block=True) for message in burst)
    print("six started over", round(starts[-1] - starts[0]), "s")

    first, second = book.send("ada", 1.0), book.send("ada", 0.0)
    other = book.send("bob", 0.0)
    print("waits for:", until(second, "concurrency").blocked_on)
    print("bob is", switchyard.wait(other.message_id).state, "while ada's first is", switchyard.get_job(first.message_id).state)
    print("then ada's second is", switchyard.wait(second.message_id).state)

    remind.send("ada")
    late = remind.send("bob")
    job = until(late, "rate_limit")
    print("bob has to wait for", round((job.run_at - job.created_at).total_seconds() / 60), "minutes")
    switchyard.set_limit(actor="remind", rate="10/second")
    print(switchyard.wait(late.message_id).result)
    print("as declared again:", switchyard.reset_limit(actor="remind"))


if __name__ == "__main__":
    main()

# Prints:
# six started over 1 s
# waits for: book:ada
# bob is completed while ada's first is running
# then ada's second is completed
# bob has to wait for 60 minutes
# reminded bob
# as declared again: True
