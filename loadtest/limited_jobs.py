"""The job whose starts are limited, and its sender: ``dramatiq loadtest.limited_jobs``, ``python -m loadtest.limited_jobs JOBS KEYS``.

The rate in force is set in the ledger by ``loadtest.limits``, as an operator would, and not declared here.
"""

from __future__ import annotations

import sys

import dramatiq

import switchyard

switchyard.configure()


@dramatiq.actor(rate_limit="1/second", rate_limit_key="key", store_results=False)
def limited(key: int) -> None:
    """Does nothing, as often as it may."""


def send(jobs: int, keys: int) -> None:
    """Send so many jobs, one key after the other."""
    for first in range(0, jobs, 1_000):
        switchyard.enqueue_many([limited.message(number % keys) for number in range(first, min(jobs, first + 1_000))])


if __name__ == "__main__":
    send(int(sys.argv[1]), int(sys.argv[2]))
