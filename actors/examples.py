"""Two job types that fail on purpose, for the demo, the documentation, and trying out an installation."""

from __future__ import annotations

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
