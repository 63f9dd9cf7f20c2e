"""What the worker and ``periodiq`` of the acceptance tests import: an actor of every minute, declared with periodiq's own ``cron``."""

import dramatiq
from periodiq import cron

import switchyard

broker = switchyard.configure()


@dramatiq.actor(periodic=cron("* * * * *"))
def every_minute() -> None:
    """Comes by the clock."""
