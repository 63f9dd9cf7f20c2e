"""Job types for the demo, the documentation, and trying out an installation: two fail on purpose, one takes its time, one is held back."""

from __future__ import annotations

import math
from itertools import takewhile

import dramatiq

from switchyard import Permanent, current_job


@dramatiq.actor(queue_name="maintenance", max_retries=9, min_backoff=200, max_backoff=5_000, time_limit=10_000)
def flaky(failures: int = 2) -> dict[str, int]:
    """Demonstrate retries: fail on the first ``failures`` attempts (0 to 9), then succeed.

    Returns:
        ``attempts``: how many it took.
    """
    if not 0 <= failures <= 9:
        raise Permanent(f"failures: must be 0 to 9, not {failures}")
    attempt = current_job().attempt
    if attempt <= failures:
        raise RuntimeError(f"attempt {attempt} fails as ordered; attempt {failures + 1} will succeed")
    return {"attempts": attempt}


@dramatiq.actor(queue_name="maintenance", max_retries=1, min_backoff=200, max_backoff=200, time_limit=10_000)
def doomed(reason: str = "this job fails as ordered") -> None:
    """Demonstrate dead letters: fail on both of its attempts with the given reason.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(reason)


@dramatiq.actor(queue_name="maintenance", max_retries=1, min_backoff=200, max_backoff=200, time_limit=60_000)
def count_primes(below: int = 100_000) -> int:
    """Demonstrate progress and cancellation: count the primes below a number by trial division, at most 100 million.

    Returns:
        How many there are.
    """
    if not 2 <= below <= 100_000_000:
        raise Permanent(f"below: must be 2 to 100,000,000, not {below}")
    job, primes, part = current_job(), [2], max(1, below // 1_000)
    for number in range(3, below):
        if number % part == 0:
            job.progress(100 * number / below, "dividing")
        limit = math.isqrt(number)
        if number % 2 and all(number % prime for prime in takewhile(limit.__ge__, primes)):
            primes.append(number)
    return len(primes)


@dramatiq.actor(
    queue_name="maintenance",
    max_retries=1,
    min_backoff=200,
    max_backoff=200,
    time_limit=10_000,
    rate_limit="10/second",
    rate_limit_burst=1,
)
def paced(number: int = 0) -> int:
    """Demonstrate a rate limit: of all that are sent, ten start in a second, a tenth of a second apart.

    Returns:
        Its number.
    """
    return number
